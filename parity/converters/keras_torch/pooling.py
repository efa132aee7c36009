"""Pooling over windows and over everything."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.converters.keras_torch.contractions import per_axis
from parity.converters.keras_torch.layer import Layer
from parity.converters.keras_torch.windows import channels_to_back, channels_to_front, pad_borders
from parity.converters.registry import lowers


class _Pooling(nn.Module):
    def __init__(
        self, pool_size: tuple[int, ...], stride: tuple[int, ...], border: str = "valid", channels_last: bool = True
    ) -> None:
        super().__init__()
        self.pool_size, self.stride = tuple(pool_size), tuple(stride)
        self.border, self.channels_last = border, channels_last

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(channels_to_front(x) if self.channels_last else x)
        return channels_to_back(y) if self.channels_last else y

    def pool(self, x: Tensor) -> Tensor:
        """Of (batch, channels, *spatial)."""
        raise NotImplementedError

    def padded(self, x: Tensor, value: float) -> Tensor:
        return pad_borders(x, self.border, self.pool_size, self.stride, (1,) * len(self.pool_size), value)

    def extra_repr(self) -> str:
        return f"{self.pool_size}, stride={self.stride}, border={self.border!r}"


class MaxPool(_Pooling):
    """The largest element of each window; what pads a border is never the largest."""

    def pool(self, x: Tensor) -> Tensor:
        function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(self.pool_size) - 1]
        return function(self.padded(x, float("-inf")), self.pool_size, self.stride)


class AvgPool(_Pooling):
    """The mean of each window's elements; what pads a border does not count."""

    def pool(self, x: Tensor) -> Tensor:
        function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(self.pool_size) - 1]
        padded = self.padded(x, 0.0)
        y = function(padded, self.pool_size, self.stride)
        if padded.shape == x.shape:
            return y
        share = function(self.padded(torch.ones_like(x[:1, :1]), 0.0), self.pool_size, self.stride)
        return y / share


class GlobalAvgPool(nn.Module):
    """The mean over all spatial axes, or over the steps that a mask keeps."""

    def __init__(self, keepdims: bool = False, channels_last: bool = True) -> None:
        super().__init__()
        self.keepdims, self.channels_last = keepdims, channels_last

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        axes = tuple(range(1, x.ndim - 1) if self.channels_last else range(2, x.ndim))
        if mask is None:
            return x.mean(dim=axes, keepdim=self.keepdims)
        kept = mask.unsqueeze(2 if self.channels_last else 1)
        total = torch.where(kept, x, 0.0).sum(dim=axes, keepdim=self.keepdims)
        return total / kept.to(x.dtype).sum(dim=axes, keepdim=self.keepdims)


class GlobalMaxPool(nn.Module):
    """The largest element over all spatial axes."""

    def __init__(self, keepdims: bool = False, channels_last: bool = True) -> None:
        super().__init__()
        self.keepdims, self.channels_last = keepdims, channels_last

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(1, x.ndim - 1) if self.channels_last else range(2, x.ndim))
        return x.amax(dim=axes, keepdim=self.keepdims)


@lowers("MaxPooling1D", "MaxPooling2D", "MaxPooling3D", to="torch")
def max_pooling(layer: Layer) -> nn.Module:
    return _pooling(layer, MaxPool)


@lowers("AveragePooling1D", "AveragePooling2D", "AveragePooling3D", to="torch")
def average_pooling(layer: Layer) -> nn.Module:
    return _pooling(layer, AvgPool)


def _pooling(layer: Layer, build: type[_Pooling]) -> nn.Module:
    config = layer.config
    spatial = int(layer.class_name[-2])
    size = per_axis(config["pool_size"], spatial)
    stride = per_axis(config["strides"], spatial) if config.get("strides") else size
    return build(size, stride, border=config.get("padding", "valid"), channels_last=layer.channels_last)


@lowers("GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D", to="torch")
def global_average_pooling(layer: Layer) -> nn.Module:
    return GlobalAvgPool(layer.config.get("keepdims", False), layer.channels_last)


@lowers("GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D", to="torch")
def global_max_pooling(layer: Layer) -> nn.Module:
    return GlobalMaxPool(layer.config.get("keepdims", False), layer.channels_last)
