"""Executes `torch.nn.Module`s: the reference in float64, or a converted module in its own precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch

from parity.runtimes import Arrays
from parity.runtimes.rounding import rounding

DTYPES = {"float64": torch.float64, "float32": torch.float32}


class TorchRuntime:
    """A copy of the module, in eval mode, on the CPU, in `dtype` (by default the precision of its parameters)."""

    representation = "torch"

    def __init__(self, model: torch.nn.Module, dtype: str | None = None) -> None:
        self.dtype = dtype or _dtype_of(model)
        self.model = copy.deepcopy(model).to("cpu", DTYPES[self.dtype]).eval().requires_grad_(False)

    def value(self, inputs: Arrays) -> np.ndarray:
        with torch.no_grad():
            outputs = self._outputs(*self._tensors(inputs))
        batch = inputs[0].shape[0]
        return np.concatenate([_float64(output).reshape(batch, -1) for output in outputs], axis=1)

    def jacobian(self, inputs: Arrays) -> np.ndarray:
        tensors = self._tensors(inputs)
        return _float64(self._jacobian(tensors))

    def hessian(self, inputs: Arrays, projection: np.ndarray) -> np.ndarray:
        tensors = self._tensors(inputs)
        return _float64(self._hessian(tensors, torch.from_numpy(projection).to(DTYPES[self.dtype])))

    def rounding(self, dtype: str, seed: int) -> AbstractContextManager[None]:
        return rounding(dtype, seed)

    def caller(self, check: str, inputs: Arrays, projection: np.ndarray) -> Callable[[], object]:
        tensors = self._tensors(inputs)
        weights = torch.from_numpy(projection).to(DTYPES[self.dtype])
        if check == "jacobian":
            return lambda: self._jacobian(tensors)
        if check == "hessian":
            return lambda: self._hessian(tensors, weights)
        model = self.model

        def forward() -> object:
            with torch.inference_mode():
                return model(*tensors)

        return forward

    def caller_description(self, check: str) -> str:
        call = {"value": "eager forward", "jacobian": "torch.func.jacrev", "hessian": "torch.func.jacrev of grad"}[check]
        return f"torch {call}, {self.dtype}, {torch.get_num_threads()} thread(s)"

    def _tensors(self, inputs: Arrays) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(np.array(array)).to(DTYPES[self.dtype]) for array in inputs)

    def _outputs(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.model(*tensors)
        return (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)

    def _flat(self, *tensors: torch.Tensor) -> torch.Tensor:
        return torch.cat([output.flatten() for output in self._outputs(*tensors)])

    def _jacobian(self, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        blocks = torch.func.jacrev(self._flat, argnums=tuple(range(len(tensors))))(*tensors)
        return torch.cat([block.flatten(1) for block in blocks], dim=1)

    def _hessian(self, tensors: tuple[torch.Tensor, ...], projection: torch.Tensor) -> torch.Tensor:
        sizes = [tensor.numel() for tensor in tensors]

        def projected(flat: torch.Tensor) -> torch.Tensor:
            parts = flat.split(sizes)
            shaped = [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
            return self._flat(*shaped) @ projection

        return torch.func.jacrev(torch.func.grad(projected))(torch.cat([tensor.flatten() for tensor in tensors]))


def _dtype_of(model: torch.nn.Module) -> str:
    parameter = next(model.parameters(), None)
    return "float64" if parameter is not None and parameter.dtype == torch.float64 else "float32"


def _float64(tensor: torch.Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().to(torch.float64).numpy())
