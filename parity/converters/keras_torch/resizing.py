"""UpSampling and Resizing. TensorFlow samples at half pixels; torch's own bicubic kernel is another one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.converters.keras_torch.contractions import per_axis
from parity.converters.keras_torch.layer import Layer
from parity.converters.keras_torch.windows import channels_to_back, channels_to_front
from parity.converters.registry import lowers


def cubic_weights(length: int, new: int, like: Tensor) -> Tensor:
    """Matrix (new, length) of cubic interpolation (Keys, 1981, a = -1/2); weights outside the image are left out.

    TensorFlow reads the weights from a table of 1024 positions between two pixels, and so do we.
    """
    pixels = torch.arange(max(length, new), dtype=like.dtype, device=like.device)
    centers = (pixels[:new] + 0.5) * (length / new) - 0.5
    centers = centers.floor() + torch.round((centers - centers.floor()) * 1024) / 1024
    t = (centers[:, None] - pixels[:length]).abs()
    near, far = (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
    weights = torch.where(t <= 1, near, torch.where(t < 2, far, 0.0))
    return weights / weights.sum(dim=1, keepdim=True)


def bicubic(x: Tensor, size: tuple[int, ...]) -> Tensor:
    rows, columns = cubic_weights(x.shape[2], size[0], x), cubic_weights(x.shape[3], size[1], x)
    return rows @ x @ columns.T


class Upsample(nn.Module):
    """Each spatial axis longer by a whole factor."""

    def __init__(self, factor: tuple[int, ...], interpolation: str = "nearest", channels_last: bool = True) -> None:
        super().__init__()
        self.factor, self.interpolation, self.channels_last = tuple(factor), interpolation, channels_last

    def forward(self, x: Tensor) -> Tensor:
        if self.interpolation == "nearest":
            for axis, factor in enumerate(self.factor):
                x = x.repeat_interleave(factor, dim=axis + (1 if self.channels_last else 2))
            return x
        images = channels_to_front(x) if self.channels_last else x
        size = (images.shape[2] * self.factor[0], images.shape[3] * self.factor[1])
        images = resize(images, size, self.interpolation)
        return channels_to_back(images) if self.channels_last else images

    def extra_repr(self) -> str:
        return f"{self.factor}, {self.interpolation!r}"


class Resize(nn.Module):
    """Images of another height and width."""

    def __init__(self, size: tuple[int, int], interpolation: str = "bilinear", channels_last: bool = True) -> None:
        super().__init__()
        self.size, self.interpolation, self.channels_last = tuple(size), interpolation, channels_last

    def forward(self, x: Tensor) -> Tensor:
        images = resize(channels_to_front(x) if self.channels_last else x, self.size, self.interpolation)
        return channels_to_back(images) if self.channels_last else images

    def extra_repr(self) -> str:
        return f"{self.size}, {self.interpolation!r}"


def resize(images: Tensor, size: tuple[int, ...], interpolation: str) -> Tensor:
    """(batch, channels, height, width)"""
    if interpolation == "bicubic":
        return bicubic(images, size)
    if interpolation == "nearest":
        return F.interpolate(images, size, mode="nearest-exact")
    return F.interpolate(images, size, mode="bilinear", align_corners=False)


INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


@lowers("UpSampling1D", "UpSampling2D", "UpSampling3D", to="torch")
def up_sampling(layer: Layer) -> nn.Module:
    interpolation = layer.config.get("interpolation", "nearest")
    _check(layer, interpolation)
    factor = per_axis(layer.config["size"], int(layer.class_name[-2]))
    return Upsample(factor, interpolation, layer.channels_last)


@lowers("Resizing", to="torch")
def resizing(layer: Layer) -> nn.Module:
    config = layer.config
    layer.refuse_unless(crop_to_aspect_ratio=False, pad_to_aspect_ratio=False, antialias=False)
    interpolation = config.get("interpolation", "bilinear")
    _check(layer, interpolation)
    return Resize((config["height"], config["width"]), interpolation, layer.channels_last)


def _check(layer: Layer, interpolation: str) -> None:
    if interpolation not in INTERPOLATIONS:
        raise layer.refuse(
            f"interpolation {interpolation!r} is not converted", f"use one of {', '.join(INTERPOLATIONS)}"
        )
