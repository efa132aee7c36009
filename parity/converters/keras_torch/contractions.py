"""Dense, EinsumDense, Embedding and the convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.converters.keras_torch.activations import Activation, activation_of
from parity.converters.keras_torch.layer import Layer, make
from parity.converters.keras_torch.windows import channels_to_back, channels_to_front, pad_borders
from parity.converters.registry import lowers


class Dense(nn.Linear):
    """A linear map of the last axis and an activation."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, activation: Activation) -> None:
        super().__init__(in_features, out_features, bias)
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        return self.activation(super().forward(input))


class EinsumDense(nn.Module):
    """torch.einsum of the input with a weight, plus a bias, and an activation."""

    def __init__(
        self,
        equation: str,
        weight_shape: tuple[int, ...],
        bias_shape: tuple[int, ...] | None = None,
        activation: Activation | None = None,
    ) -> None:
        super().__init__()
        self.equation, self.activation = equation, activation
        self.weight_shape, self.bias_shape = tuple(weight_shape), bias_shape and tuple(bias_shape)
        self.weight = nn.Parameter(torch.empty(self.weight_shape))
        self.bias = nn.Parameter(torch.empty(self.bias_shape)) if self.bias_shape else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum(self.equation, x, self.weight)
        y = y if self.bias is None else y + self.bias
        return self.activation(y) if self.activation else y


class Embedding(nn.Embedding):
    """Rows of a table. Numbers that are no integers are cut off to one, as Keras does."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.long())


class _Convolution:
    """What the convolutions add to torch's: Keras' paddings and axis order, and an activation."""

    kernel_size: Any
    stride: Any
    dilation: Any
    padding: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        border: str = "valid",
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        channels_last: bool = True,
        activation: Activation | None = None,
    ) -> None:
        options: dict[str, Any] = {"stride": stride, "dilation": dilation, "groups": groups, "bias": bias}
        super().__init__(in_channels, out_channels, kernel_size, **options)  # type: ignore[call-arg]
        self.border, self.channels_last, self.activation = border, channels_last, activation
        self.symmetric = border == "same" and all(s == 1 for s in self.stride) and all(k % 2 for k in self.kernel_size)
        if self.symmetric:  # then torch pads by itself
            self.padding = tuple(d * (k // 2) for d, k in zip(self.dilation, self.kernel_size, strict=True))

    def forward(self, input: Tensor) -> Tensor:
        x = channels_to_front(input) if self.channels_last else input
        if not self.symmetric:
            x = pad_borders(x, self.border, self.kernel_size, self.stride, self.dilation)
        x = super().forward(x)  # type: ignore[misc]
        x = channels_to_back(x) if self.channels_last else x
        return self.activation(x) if self.activation else x

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, border={self.border!r}"  # type: ignore[misc]


class Conv1d(_Convolution, nn.Conv1d):
    """Over (batch, steps, channels)."""


class Conv2d(_Convolution, nn.Conv2d):
    """Over (batch, height, width, channels)."""


class Conv3d(_Convolution, nn.Conv3d):
    """Over (batch, depth, height, width, channels)."""


class Separable(nn.Module):
    """A convolution of each channel, then one that mixes the channels."""

    def __init__(self, depthwise: nn.Module, pointwise: nn.Module) -> None:
        super().__init__()
        self.depthwise, self.pointwise = depthwise, pointwise

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


CONVOLUTIONS = {1: Conv1d, 2: Conv2d, 3: Conv3d}


def dense_module(kernel: np.ndarray, bias: np.ndarray | None, activation: Activation | None = None) -> nn.Module:
    """A linear module with a Keras kernel (inputs, outputs)."""
    state = {"weight": kernel.T} | ({} if bias is None else {"bias": bias})
    if activation is None:
        return make(nn.Linear, *kernel.shape, bias=bias is not None, state=state)
    return make(Dense, *kernel.shape, bias=bias is not None, activation=activation, state=state)


def kernel_and_bias(layer: Layer, kernels: int = 1) -> tuple[Any, ...]:
    """The kernels and the bias, which is None if there is none."""
    bias = layer.config.get("use_bias", True)
    if len(layer.variables) != kernels + bool(bias):
        raise layer.refuse(
            f"it has {len(layer.variables)} variables (quantized, low-rank or never built)", "save it plain"
        )
    return (*layer.variables[:kernels], layer.variables[kernels] if bias else None)


@lowers("Dense", to="torch")
def dense(layer: Layer) -> nn.Module:
    kernel, bias = kernel_and_bias(layer)
    return dense_module(kernel, bias, activation_of(layer))


@lowers("EinsumDense", to="torch")
def einsum_dense(layer: Layer) -> nn.Module:
    kernel, *bias = layer.variables
    state = dict(zip(("weight", "bias"), layer.variables, strict=False))
    shape = bias[0].shape if bias else None
    return make(EinsumDense, layer.config["equation"], kernel.shape, shape, activation_of(layer), state=state)


@lowers("Embedding", to="torch")
def embedding(layer: Layer) -> nn.Module:
    if len(layer.variables) != 1:
        raise layer.refuse(f"it has {len(layer.variables)} variables (quantized or low-rank)", "save it plain")
    (table,) = layer.variables
    return make(Embedding, *table.shape, state={"weight": table})


@lowers("Conv1D", "Conv2D", "Conv3D", to="torch")
def convolution(layer: Layer) -> nn.Module:
    kernel, bias = kernel_and_bias(layer)
    groups = layer.config.get("groups", 1)
    # Keras: (*spatial, inputs per group, outputs); torch: (outputs, inputs per group, *spatial)
    return _convolution(layer, np.moveaxis(kernel, (-1, -2), (0, 1)), bias, groups, activation_of(layer))


@lowers("DepthwiseConv1D", "DepthwiseConv2D", to="torch")
def depthwise(layer: Layer) -> nn.Module:
    kernel, bias = kernel_and_bias(layer)
    return _convolution(layer, _per_channel(kernel), bias, kernel.shape[-2], activation_of(layer))


@lowers("SeparableConv1D", "SeparableConv2D", to="torch")
def separable(layer: Layer) -> nn.Module:
    kernel, mixing, bias = kernel_and_bias(layer, kernels=2)
    first = _convolution(layer, _per_channel(kernel), None, kernel.shape[-2], None)
    weight = np.moveaxis(mixing, (-1, -2), (0, 1))
    options = {"channels_last": layer.channels_last, "activation": activation_of(layer), "bias": bias is not None}
    state = {"weight": weight} | ({} if bias is None else {"bias": bias})
    second = make(
        CONVOLUTIONS[kernel.ndim - 2], weight.shape[1], weight.shape[0], weight.shape[2:], state=state, **options
    )
    return Separable(first, second)


def _per_channel(kernel: np.ndarray) -> np.ndarray:
    """A depthwise kernel (*spatial, channels, multiplier) as torch's (channels · multiplier, 1, *spatial)."""
    moved = np.moveaxis(kernel, (-2, -1), (0, 1))
    return moved.reshape(-1, 1, *kernel.shape[:-2])


def _convolution(
    layer: Layer, weight: np.ndarray, bias: np.ndarray | None, groups: int, activation: Activation | None
) -> nn.Module:
    spatial = weight.ndim - 2
    return make(
        CONVOLUTIONS[spatial],
        weight.shape[1] * groups,
        weight.shape[0],
        weight.shape[2:],
        stride=per_axis(layer.config.get("strides", 1), spatial),
        border=layer.config.get("padding", "valid"),
        dilation=per_axis(layer.config.get("dilation_rate", 1), spatial),
        groups=groups,
        bias=bias is not None,
        channels_last=layer.channels_last,
        activation=activation,
        state={"weight": weight} | ({} if bias is None else {"bias": bias}),
    )


def per_axis(value: Any, count: int) -> tuple[int, ...]:
    return (value,) * count if isinstance(value, int) else tuple(value)
