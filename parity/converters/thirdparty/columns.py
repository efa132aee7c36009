"""CasADi has matrices only: how a torch model of any shapes becomes one of columns."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def in_columns(model: torch.nn.Module, example: tuple[torch.Tensor, ...], *, joined: bool = False) -> torch.nn.Module:
    """A module that takes each input of `model` as one column (elements, 1) and gives its outputs as one column.

    Tensors are flattened in torch's row-major order; several outputs follow one another. With `joined`, the inputs
    are one column too, for converters that know functions of one argument only.
    """
    import torch

    shapes = [tuple(tensor.shape) for tensor in example]
    ends = list(accumulate(tensor.numel() for tensor in example))

    class InColumns(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *columns: torch.Tensor) -> torch.Tensor:
            if joined and len(shapes) > 1:
                starts = [0, *ends[:-1]]
                columns = tuple(columns[0][start:end] for start, end in zip(starts, ends, strict=True))
            outputs = self.model(*(column.reshape(shape) for column, shape in zip(columns, shapes, strict=True)))
            if isinstance(outputs, torch.Tensor):
                return outputs.reshape(-1, 1)
            return torch.cat([output.reshape(-1, 1) for output in outputs])

    return InColumns().eval().requires_grad_(False)
