"""Transposed convolutions. Keras' output length is not torch's, and may need one more crop after than before."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from parity.converters.keras_torch.activations import Activation, activation_of
from parity.converters.keras_torch.contractions import kernel_and_bias, per_axis
from parity.converters.keras_torch.layer import Layer, make
from parity.converters.keras_torch.windows import channels_to_back, channels_to_front, same_padding
from parity.converters.registry import lowers


class _TransposedConvolution:
    """torch's convolution without padding, then cut (or filled with zeros) to Keras' output length."""

    weight: Tensor
    bias: Any
    stride: Any
    dilation: Any
    kernel_size: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        border: str = "valid",
        extra: tuple[int, ...] | None = None,
        dilation: int | tuple[int, ...] = 1,
        bias: bool = True,
        channels_last: bool = True,
        activation: Activation | None = None,
    ) -> None:
        options: dict[str, Any] = {"stride": stride, "dilation": dilation, "bias": bias}
        super().__init__(in_channels, out_channels, kernel_size, **options)  # type: ignore[call-arg]
        self.border, self.extra = border, extra and tuple(extra)
        self.channels_last, self.activation = channels_last, activation

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        x = channels_to_front(input) if self.channels_last else input
        amounts: list[int] = []
        for axis, length in enumerate(x.shape[2:]):
            amounts = [*self.crop(axis, length), *amounts]
        function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[x.ndim - 3]
        fills = any(amount > 0 for amount in amounts)  # what is filled up has the bias, too
        x = function(x, self.weight, None if fills else self.bias, stride=self.stride, dilation=self.dilation)
        x = F.pad(x, amounts) if any(amounts) else x
        if fills and self.bias is not None:
            x = x + self.bias.reshape(-1, *[1] * (x.ndim - 2))
        x = channels_to_back(x) if self.channels_last else x
        return self.activation(x) if self.activation else x

    def crop(self, axis: int, length: int) -> tuple[int, int]:
        """What to add before and after an axis of the full result; negative numbers cut."""
        stride, window = self.stride[axis], self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        full = (length - 1) * stride + window
        extra = None if self.extra is None else self.extra[axis]
        if self.border == "valid":
            return 0, max(stride - window, 0) if extra is None else extra
        result = length * stride if extra is None else (length - 1) * stride + window % 2 + extra
        before = same_padding(result, window, stride)[0]
        return -before, result - (full - before)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, border={self.border!r}"  # type: ignore[misc]


class ConvTranspose1d(_TransposedConvolution, nn.ConvTranspose1d):
    """Over (batch, steps, channels)."""


class ConvTranspose2d(_TransposedConvolution, nn.ConvTranspose2d):
    """Over (batch, height, width, channels)."""


class ConvTranspose3d(_TransposedConvolution, nn.ConvTranspose3d):
    """Over (batch, depth, height, width, channels)."""


@lowers("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose", to="torch")
def transposed_convolution(layer: Layer) -> nn.Module:
    kernel, bias = kernel_and_bias(layer)
    # Keras: (*spatial, outputs, inputs); torch: (inputs, outputs, *spatial)
    weight = np.moveaxis(kernel, (-1, -2), (0, 1))
    spatial = weight.ndim - 2
    extra = layer.config.get("output_padding")
    return make(
        (ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)[spatial - 1],
        weight.shape[0],
        weight.shape[1],
        weight.shape[2:],
        stride=per_axis(layer.config.get("strides", 1), spatial),
        border=layer.config.get("padding", "valid"),
        extra=None if extra is None else per_axis(extra, spatial),
        dilation=per_axis(layer.config.get("dilation_rate", 1), spatial),
        bias=bias is not None,
        channels_last=layer.channels_last,
        activation=activation_of(layer),
        state={"weight": weight} | ({} if bias is None else {"bias": bias}),
    )
