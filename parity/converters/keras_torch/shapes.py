"""Layers that move elements: reshaping, padding, cropping, repeating."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from parity.converters.keras_torch.layer import Layer
from parity.converters.registry import lowers


def to_channels_last(x: Tensor) -> Tensor:
    """(batch, channels, *spatial) seen as (batch, *spatial, channels)."""
    return x.movedim(1, -1)


def to_channels_first(x: Tensor) -> Tensor:
    """(batch, *spatial, channels) seen as (batch, channels, *spatial), for two or more spatial axes."""
    return x.movedim(-1, 1) if x.ndim > 3 else x


class Flatten(nn.Module):
    """All but the batch axis in one, the channels fastest."""

    def __init__(self, channels_last: bool = True) -> None:
        super().__init__()
        self.channels_last = channels_last

    def forward(self, x: Tensor) -> Tensor:
        if not self.channels_last:
            x = x.movedim(1, -1)
        return x.reshape(x.shape[0], -1)


class Reshape(nn.Module):
    """The elements of each sample in another shape, which may have one -1."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *self.shape)

    def extra_repr(self) -> str:
        return f"{self.shape}"


class Permute(nn.Module):
    """The axes in another order; the first axis after the batch is 1."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.dims = tuple(dims)

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, *self.dims)

    def extra_repr(self) -> str:
        return f"{self.dims}"


class RepeatVector(nn.Module):
    """(batch, features) to (batch, n, features)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1).repeat(1, self.n, 1)


class ZeroPad(nn.Module):
    """Zeros (before, after) each spatial axis; negative numbers crop."""

    def __init__(self, amounts: tuple[tuple[int, int], ...], channels_last: bool = True) -> None:
        super().__init__()
        self.amounts, self.channels_last = tuple(map(tuple, amounts)), channels_last

    def forward(self, x: Tensor) -> Tensor:
        flat = [amount for pair in reversed(self.amounts) for amount in pair]  # F.pad counts axes from the last
        return F.pad(x, [0, 0, *flat] if self.channels_last else flat)

    def extra_repr(self) -> str:
        return f"{self.amounts}"


class Masking(nn.Module):
    """Steps of which every feature is `mask_value` become 0."""

    def __init__(self, mask_value: float = 0.0) -> None:
        super().__init__()
        self.mask_value = mask_value

    def forward(self, x: Tensor) -> Tensor:
        return x.where((x != self.mask_value).any(dim=-1, keepdim=True), 0.0)


@lowers("Flatten", to="torch")
def flatten(layer: Layer) -> nn.Module:
    return nn.Flatten() if layer.channels_last else Flatten(channels_last=False)


@lowers("Reshape", to="torch")
def reshape(layer: Layer) -> nn.Module:
    return Reshape(layer.config["target_shape"])


@lowers("Permute", to="torch")
def permute(layer: Layer) -> nn.Module:
    return Permute(layer.config["dims"])


@lowers("RepeatVector", to="torch")
def repeat_vector(layer: Layer) -> nn.Module:
    return RepeatVector(layer.config["n"])


@lowers("Identity", "InputLayer", to="torch")
def identity(layer: Layer) -> nn.Module:
    return nn.Identity()


@lowers("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D", to="torch")
def zero_padding(layer: Layer) -> nn.Module:
    return ZeroPad(_pairs(layer.config["padding"]), layer.channels_last)


@lowers("Cropping1D", "Cropping2D", "Cropping3D", to="torch")
def cropping(layer: Layer) -> nn.Module:
    pairs = tuple((-before, -after) for before, after in _pairs(layer.config["cropping"]))
    return ZeroPad(pairs, layer.channels_last)


def _pairs(value: list) -> tuple[tuple[int, int], ...]:
    """Keras saves (before, after) for one axis, ((before, after), …) for several."""
    pairs = [value] if isinstance(value[0], int) else value
    return tuple((pair[0], pair[1]) for pair in pairs)


@lowers("Masking", to="torch")
def masking(layer: Layer) -> nn.Module:
    return Masking(float(layer.config.get("mask_value", 0.0)))
