"""Layers that do something in training only."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.converters.keras_torch.layer import Layer
from parity.converters.registry import lowers


class Dropout(nn.Module):
    """Dropout that draws once for the axes where `noise_shape` is 1."""

    def __init__(self, rate: float, noise_shape: tuple[int | None, ...]) -> None:
        super().__init__()
        self.rate, self.noise_shape = rate, tuple(noise_shape)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        shape = [length if wanted is None else wanted for length, wanted in zip(x.shape, self.noise_shape, strict=True)]
        return x * F.dropout(x.new_ones(shape), self.rate)


class SpatialDropout(nn.Module):
    """Drops whole channels."""

    def __init__(self, rate: float, channels_last: bool = True) -> None:
        super().__init__()
        self.rate, self.channels_last = rate, channels_last

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = x[:, :1] if x.ndim == 3 else x.flatten(1, -2)[:, :1]
        if not self.channels_last:
            return x * F.dropout(torch.ones_like(x.flatten(2)[:, :, :1]), self.rate).reshape(
                *x.shape[:2], *[1] * (x.ndim - 2)
            )
        return x * F.dropout(torch.ones_like(kept), self.rate).reshape(x.shape[0], *[1] * (x.ndim - 2), x.shape[-1])


class GaussianNoise(nn.Module):
    """Adds N(0, stddev²) in training."""

    def __init__(self, stddev: float) -> None:
        super().__init__()
        self.stddev = stddev

    def forward(self, x: Tensor) -> Tensor:
        return x + self.stddev * torch.randn_like(x) if self.training else x


class GaussianDropout(nn.Module):
    """Multiplies by N(1, rate / (1 - rate)) in training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (1 + math.sqrt(self.rate / (1 - self.rate)) * torch.randn_like(x))


@lowers("Dropout", to="torch")
def dropout(layer: Layer) -> nn.Module:
    rate = float(layer.config["rate"])
    if layer.frozen:
        return nn.Identity()
    shape = layer.config.get("noise_shape")
    return Dropout(rate, tuple(shape)) if shape else nn.Dropout(rate)


@lowers("SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", to="torch")
def spatial_dropout(layer: Layer) -> nn.Module:
    return nn.Identity() if layer.frozen else SpatialDropout(float(layer.config["rate"]), layer.channels_last)


@lowers("GaussianNoise", to="torch")
def gaussian_noise(layer: Layer) -> nn.Module:
    return nn.Identity() if layer.frozen else GaussianNoise(float(layer.config["stddev"]))


@lowers("GaussianDropout", to="torch")
def gaussian_dropout(layer: Layer) -> nn.Module:
    return nn.Identity() if layer.frozen else GaussianDropout(float(layer.config["rate"]))


@lowers("AlphaDropout", to="torch")
def alpha_dropout(layer: Layer) -> nn.Module:
    layer.refuse_unless(noise_shape=None)
    return nn.Identity() if layer.frozen else nn.AlphaDropout(float(layer.config["rate"]))


@lowers("ActivityRegularization", to="torch")
def activity_regularization(layer: Layer) -> nn.Module:
    return nn.Identity()  # a term of the loss, not of the output


@lowers("Lambda", to="torch")
def python_function(layer: Layer) -> nn.Module:
    remedy = (
        "put the function in a registered keras.layers.Layer of your own, "
        'and lower that with @parity.lowers("<ClassName>", to="torch")'
    )
    raise layer.refuse("it holds Python code", remedy)
