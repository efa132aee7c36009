"""Layers that take several tensors. As in Keras, they are called with one list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.converters.keras_torch.layer import Layer
from parity.converters.registry import lowers


def of_one_rank(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of fewer axes get axes of length 1 after the batch axis."""
    rank = max(x.ndim for x in tensors)
    return [x.reshape(x.shape[0], *[1] * (rank - x.ndim), *x.shape[1:]) for x in tensors]


def concatenated_mask(inputs: Sequence[Tensor], masks: Sequence[Tensor | None], axis: int) -> Tensor:
    """The mask of the concatenation of tensors (batch, steps, features), some of which have none."""
    full = [
        torch.ones_like(x, dtype=torch.bool) if mask is None else mask.unsqueeze(-1).expand_as(x)
        for x, mask in zip(inputs, masks, strict=True)
    ]
    return torch.cat(full, dim=axis).any(dim=-1)


def fold_masked(function: Callable[..., Tensor], inputs: Sequence[Tensor], masks: Sequence[Tensor | None]) -> Tensor:
    """`function` of all, where a masked step of one tensor counts as what the others have there."""
    result, known = inputs[0], None if masks[0] is None else masks[0].unsqueeze(-1)
    for x, mask in zip(inputs[1:], masks[1:], strict=True):
        keep = None if mask is None else mask.unsqueeze(-1)
        other = x if keep is None else torch.where(keep, x, result)
        result = result if known is None else torch.where(known, result, other)
        known = None if known is None or keep is None else known | keep
        result = function(result, other)
    return result


class Add(nn.Module):
    """The sum of all."""

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        return reduce(torch.add, of_one_rank(inputs))


class Subtract(nn.Module):
    """The first less the second."""

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        first, second = of_one_rank(inputs)
        return first - second


class Multiply(nn.Module):
    """The product of all."""

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        return reduce(torch.mul, of_one_rank(inputs))


class Average(nn.Module):
    """The mean of all."""

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        return reduce(torch.add, of_one_rank(inputs)) / len(inputs)


class Maximum(nn.Module):
    """The largest, element by element."""

    def forward(self, inputs: Sequence[Tensor], mask: Sequence[Tensor | None] | None = None) -> Tensor:
        if mask is not None and len({x.ndim for x in inputs}) == 1:
            return fold_masked(torch.maximum, inputs, mask)
        return reduce(torch.maximum, of_one_rank(inputs))


class Minimum(nn.Module):
    """The smallest, element by element."""

    def forward(self, inputs: Sequence[Tensor], mask: Sequence[Tensor | None] | None = None) -> Tensor:
        if mask is not None and len({x.ndim for x in inputs}) == 1:
            return fold_masked(torch.minimum, inputs, mask)
        return reduce(torch.minimum, of_one_rank(inputs))


class Concatenate(nn.Module):
    """All, joined along an axis."""

    def __init__(self, axis: int = -1) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(inputs), dim=self.axis)


class Dot(nn.Module):
    """The product of two tensors summed over one axis of each, sample by sample."""

    def __init__(self, axes: tuple[int, int], normalize: bool = False) -> None:
        super().__init__()
        self.axes, self.normalize = axes, normalize

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        first, second = (x.movedim(axis, 1) for x, axis in zip(inputs, self.axes, strict=True))
        if self.normalize:
            first, second = (F.normalize(x, dim=1, eps=1e-7) for x in (first, second))
        left, right = first.flatten(2) if first.ndim > 2 else first.unsqueeze(2), second.reshape(*second.shape[:2], -1)
        product = left.transpose(1, 2) @ right
        result = product.reshape(first.shape[0], *first.shape[2:], *second.shape[2:])
        return result if result.ndim > 1 else result.unsqueeze(1)


@lowers("Add", to="torch")
def add(layer: Layer) -> nn.Module:
    return Add()


@lowers("Subtract", to="torch")
def subtract(layer: Layer) -> nn.Module:
    return Subtract()


@lowers("Multiply", to="torch")
def multiply(layer: Layer) -> nn.Module:
    return Multiply()


@lowers("Average", to="torch")
def average(layer: Layer) -> nn.Module:
    return Average()


@lowers("Maximum", to="torch")
def maximum(layer: Layer) -> nn.Module:
    return Maximum()


@lowers("Minimum", to="torch")
def minimum(layer: Layer) -> nn.Module:
    return Minimum()


@lowers("Concatenate", to="torch")
def concatenate(layer: Layer) -> nn.Module:
    return Concatenate(layer.config.get("axis", -1))


@lowers("Dot", to="torch")
def dot(layer: Layer) -> nn.Module:
    axes = layer.config["axes"]
    first, second = (axes, axes) if isinstance(axes, int) else axes
    return Dot((first, second), layer.config.get("normalize", False))
