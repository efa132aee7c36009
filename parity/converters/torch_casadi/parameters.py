"""Weights as an input of the function: one vector of all parameters."""

from __future__ import annotations

from typing import Any

import casadi
import numpy as np
import torch

from parity.converters.torch_casadi.tensor import Tensor


def parameter_vector(model: torch.nn.Module) -> np.ndarray:
    """All parameters in the order of `model.named_parameters()`, each flattened row by row, as float64."""
    parts = [parameter.detach().double().cpu().numpy().ravel() for parameter in model.parameters()]
    return np.concatenate([np.zeros(0), *parts])


def open_parameters(model: torch.nn.Module, name: str) -> casadi.MX:
    """A symbol for `parameter_vector(model)`, whose parts take the place of the parameters of `model`, in place.

    The parameters lose their numbers, so that nothing reads them as constants by mistake.
    """
    vector = casadi.MX.sym(name, sum(parameter.numel() for parameter in model.parameters()))
    opened: dict[int, torch.nn.Parameter] = {}
    start = 0
    for parameter in model.parameters():
        empty = torch.nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        end = start + parameter.numel()
        empty.symbol = Tensor(vector[start:end], tuple(parameter.shape))  # type: ignore[attr-defined]
        opened[id(parameter)], start = empty, end
    for module in model.modules():
        for key, own in module._parameters.items():
            if own is not None:
                module._parameters[key] = opened[id(own)]
    return vector


def symbol_of(tensor: object) -> Tensor | None:
    """What stands for an opened parameter."""
    return getattr(tensor, "symbol", None)


def weights(layer: torch.nn.Module, *names: str) -> tuple[Any, ...]:
    """The layer's parameters or buffers as float64 arrays; None for what it does not have.

    With `weights="parameter"`, a parameter comes as a symbolic `Tensor` of the same shape instead.
    """
    return tuple(_number_or_symbol(getattr(layer, name, None)) for name in names)


def _number_or_symbol(tensor: Any) -> Any:
    if isinstance(tensor, torch.Tensor):
        return symbol_of(tensor) or tensor.detach().double().numpy()
    return tensor
