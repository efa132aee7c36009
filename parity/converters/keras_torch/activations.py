"""Activations: every function of `keras.activations`, and the layers that apply one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.converters.keras_torch.layer import Layer, lower, make
from parity.converters.registry import find_lowering, lowers

Activation = Callable[[Tensor], Tensor]


def leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def softmax(x: Tensor) -> Tensor:
    return F.softmax(x, dim=-1)


def log_softmax(x: Tensor) -> Tensor:
    return F.log_softmax(x, dim=-1)


def softplus(x: Tensor) -> Tensor:
    # torch's own threshold of 20, above which it returns x, costs 2e-9.
    return F.softplus(x, threshold=40.0)


def mish(x: Tensor) -> Tensor:
    return x * torch.tanh(softplus(x))


def squareplus(x: Tensor) -> Tensor:
    return (x + torch.sqrt(x * x + 4)) / 2


def sparse_plus(x: Tensor) -> Tensor:
    return torch.where(x <= -1, 0.0, torch.where(x < 1, (x + 1) ** 2 / 4, x))


def sparse_sigmoid(x: Tensor) -> Tensor:
    return torch.where(x <= -1, 0.0, torch.where(x >= 1, 1.0, (x + 1) / 2))


def hard_sigmoid(x: Tensor) -> Tensor:
    # The gradient of F.hardsigmoid has a float32 number for 1/6 even in float64.
    return F.relu6(x + 3) / 6


def hard_silu(x: Tensor) -> Tensor:
    return x * hard_sigmoid(x)


def hard_tanh(x: Tensor) -> Tensor:
    return torch.clamp(x, -1.0, 1.0)


def sparsemax(x: Tensor) -> Tensor:
    """Keras' sparsemax, along the last axis.

    It sums cumulative sums where the projection onto the simplex (Martins & Astudillo, 2016) sums elements: with more
    than one element in the support, the result does not sum to 1 (Keras 3.15.1).
    """
    ordered = x.sort(dim=-1, descending=True).values
    total = ordered.cumsum(dim=-1)
    rank = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    support = ordered - (total - 1) / rank > 0
    count = support.sum(dim=-1, keepdim=True).to(x.dtype)
    threshold = (torch.where(support, total, 0.0).sum(dim=-1, keepdim=True) - 1) / count
    return torch.relu(x - threshold)


FUNCTIONS: dict[str, Activation] = {
    "celu": F.celu,
    "elu": F.elu,
    "exponential": torch.exp,
    "gelu": F.gelu,
    "glu": F.glu,
    "hard_shrink": F.hardshrink,
    "hard_sigmoid": hard_sigmoid,
    "hard_silu": hard_silu,
    "hard_swish": hard_silu,
    "hard_tanh": hard_tanh,
    "leaky_relu": leaky_relu,
    "log_sigmoid": F.logsigmoid,
    "log_softmax": log_softmax,
    "mish": mish,
    "relu": torch.relu,
    "relu6": F.relu6,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "soft_shrink": F.softshrink,
    "softmax": softmax,
    "softplus": softplus,
    "softsign": F.softsign,
    "sparse_plus": sparse_plus,
    "sparse_sigmoid": sparse_sigmoid,
    "sparsemax": sparsemax,
    "squareplus": squareplus,
    "swish": F.silu,
    "tanh": torch.tanh,
    "tanh_shrink": F.tanhshrink,
}


def activation_of(layer: Layer, key: str = "activation") -> Activation | None:
    """The function that an argument of the layer names, or the module of an activation layer; None for the identity.

    Raises Unsupported.
    """
    value: Any = layer.config.get(key)
    if isinstance(value, Mapping) and isinstance(value.get("config"), str):
        value = value["config"]
    if value is None or value == "linear":
        return None
    if isinstance(value, Mapping) and find_lowering(value["class_name"], "torch"):
        return lower(layer.inside(key, value))
    if not isinstance(value, str) or value not in FUNCTIONS:
        name = value.get("class_name", "?") if isinstance(value, Mapping) else value
        remedy = "use a name of keras.activations, or put the layer after this one"
        raise layer.refuse(f"its {key} is {name}, which is no function of keras.activations", remedy)
    return FUNCTIONS[value]


class Activate(nn.Module):
    """An activation function as a module."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x)

    def extra_repr(self) -> str:
        return self.activation.__name__


class ReLU(nn.Module):
    """Keras' ReLU: 0 (or a slope) below `threshold`, `max_value` at most."""

    def __init__(self, max_value: float | None = None, negative_slope: float = 0.0, threshold: float = 0.0) -> None:
        super().__init__()
        self.max_value, self.negative_slope, self.threshold = max_value, negative_slope, threshold

    def forward(self, x: Tensor) -> Tensor:
        y = torch.where(x > self.threshold, x, 0.0)
        if self.max_value is not None:
            y = torch.clamp(y, 0.0, self.max_value)
        if self.negative_slope:
            y = y - self.negative_slope * torch.relu(self.threshold - x)
        return y


class PReLU(nn.Module):
    """A slope per element below zero; `shape` has 1 where an axis shares it."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.weight = nn.Parameter(torch.empty(self.shape))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) - self.weight * torch.relu(-x)


class Softmax(nn.Module):
    """Softmax over one axis, or jointly over several."""

    def __init__(self, axis: int | tuple[int, ...] = -1) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.axis, int):
            return F.softmax(x, dim=self.axis)
        return torch.exp(x - torch.logsumexp(x, dim=self.axis, keepdim=True))


@lowers("Activation", to="torch")
def activation(layer: Layer) -> nn.Module:
    function = activation_of(layer)
    return Activate(function) if function else nn.Identity()


@lowers("ReLU", to="torch")
def relu(layer: Layer) -> nn.Module:
    config = layer.config
    options = {key: float(config[key]) for key in ("negative_slope", "threshold") if config.get(key)}
    if config.get("max_value") is not None:
        options["max_value"] = float(config["max_value"])
    return ReLU(**options) if options else nn.ReLU()


@lowers("LeakyReLU", to="torch")
def leaky(layer: Layer) -> nn.Module:
    slope = layer.config.get("negative_slope", layer.config.get("alpha", 0.3))
    return nn.LeakyReLU(float(slope))


@lowers("ELU", to="torch")
def elu(layer: Layer) -> nn.Module:
    return nn.ELU(float(layer.config.get("alpha", 1.0)))


@lowers("PReLU", to="torch")
def prelu(layer: Layer) -> nn.Module:
    (slopes,) = layer.variables
    return make(PReLU, slopes.shape, state={"weight": slopes})


@lowers("Softmax", to="torch")
def softmax_layer(layer: Layer) -> nn.Module:
    axis = layer.config.get("axis", -1)
    if isinstance(axis, list | tuple):
        axis = tuple(axis) if len(axis) > 1 else axis[0]
    return Softmax(axis) if isinstance(axis, tuple) else nn.Softmax(dim=axis)
