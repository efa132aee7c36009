"""Normalizations, with Keras' conventions in training too: biased running variance, momentum of what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.converters.keras_torch.layer import Layer, make
from parity.converters.registry import lowers


class BatchNorm(nn.Module):
    """Normalizes each feature of `axis` by the batch (training) or by running statistics.

    `momentum` is the share of the old running statistics that stays. A frozen layer always uses the running ones.
    """

    def __init__(
        self,
        features: int,
        axis: int = -1,
        momentum: float = 0.99,
        eps: float = 1e-3,
        scale: bool = True,
        center: bool = True,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.features, self.axis, self.momentum, self.eps = features, axis, momentum, eps
        self.scale, self.center, self.frozen = scale, center, frozen
        self.weight = nn.Parameter(torch.ones(features)) if scale else None
        self.bias = nn.Parameter(torch.zeros(features)) if center else None
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        features_second = x.movedim(self.axis, 1)
        mean, variance = self.running_mean, self.running_var
        if self.training and not self.frozen:
            mean, variance = self.batch_statistics(features_second, mask)
            with torch.no_grad():
                self.running_mean.lerp_(mean, 1 - self.momentum)
                self.running_var.lerp_(variance, 1 - self.momentum)
            shape = [-1] + [1] * (features_second.ndim - 2)
            y = (features_second - mean.reshape(shape)) * torch.rsqrt(variance.reshape(shape) + self.eps)
            y = y if self.weight is None else y * self.weight.reshape(shape)
            y = y if self.bias is None else y + self.bias.reshape(shape)
        else:
            y = F.batch_norm(features_second, mean, variance, self.weight, self.bias, False, 0.0, self.eps)
        return y.movedim(1, self.axis)

    def batch_statistics(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of each feature of (batch, features, *others), over what the mask keeps."""
        axes = [axis for axis in range(x.ndim) if axis != 1]
        if mask is None:
            variance, mean = torch.var_mean(x, dim=axes, correction=0)
            return mean, variance
        kept = mask.unsqueeze(1).expand_as(x)
        count = kept.sum(dim=axes).to(x.dtype) + 1e-7
        mean = torch.where(kept, x, 0.0).sum(dim=axes) / count
        deviation = x - mean.reshape([-1] + [1] * (x.ndim - 2))
        return mean, torch.where(kept, deviation**2, 0.0).sum(dim=axes) / count

    def extra_repr(self) -> str:
        return f"{self.features}, axis={self.axis}, momentum={self.momentum}, eps={self.eps}"


class LayerNorm(nn.Module):
    """Normalizes over `axes` of each sample."""

    def __init__(
        self, shape: tuple[int, ...], axes: tuple[int, ...], eps: float, scale: bool = True, center: bool = True
    ) -> None:
        super().__init__()
        self.shape, self.axes, self.eps, self.scale, self.center = tuple(shape), tuple(axes), eps, scale, center
        self.weight = nn.Parameter(torch.ones(self.shape)) if scale else None
        self.bias = nn.Parameter(torch.zeros(self.shape)) if center else None

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=self.axes, correction=0, keepdim=True)
        y = (x - mean) * torch.rsqrt(variance + self.eps)
        y = y if self.weight is None else y * along(self.weight, self.axes, x.ndim)
        return y if self.bias is None else y + along(self.bias, self.axes, x.ndim)

    def extra_repr(self) -> str:
        return f"{self.shape}, axes={self.axes}, eps={self.eps}"


class RMSNorm(nn.Module):
    """Divides by the root of the mean square over `axes` of each sample."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...], eps: float) -> None:
        super().__init__()
        self.shape, self.axes, self.eps = tuple(shape), tuple(axes), eps
        self.weight = nn.Parameter(torch.ones(self.shape))

    def forward(self, x: Tensor) -> Tensor:
        y = x * torch.rsqrt((x * x).mean(dim=self.axes, keepdim=True) + self.eps)
        return y * along(self.weight, self.axes, x.ndim)


class GroupNorm(nn.Module):
    """Normalizes each group of features of `axis` over everything but the batch."""

    def __init__(
        self, groups: int, features: int, axis: int = -1, eps: float = 1e-3, scale: bool = True, center: bool = True
    ) -> None:
        super().__init__()
        self.groups, self.features, self.axis, self.eps = groups, features, axis, eps
        self.scale, self.center = scale, center
        self.weight = nn.Parameter(torch.ones(features)) if scale else None
        self.bias = nn.Parameter(torch.zeros(features)) if center else None

    def forward(self, x: Tensor) -> Tensor:
        # torch.group_norm and not F.group_norm, which refuses groups of one element.
        groups = self.groups if self.groups > 0 else x.shape[self.axis]
        # contiguous(): in torch 2.13, the backward pass ends the process for a channels_last input without gradient.
        moved = x.movedim(self.axis, 1).contiguous()
        if self.weight is None and self.bias is not None:  # torch 2.13 has no backward pass for a bias alone
            y = torch.group_norm(moved, groups, None, None, self.eps)
            y = y + self.bias.reshape(-1, *[1] * (x.ndim - 2))
        else:
            y = torch.group_norm(moved, groups, self.weight, self.bias, self.eps)
        return y.movedim(1, self.axis)

    def extra_repr(self) -> str:
        return f"{self.groups}, {self.features}, axis={self.axis}, eps={self.eps}"


class UnitNorm(nn.Module):
    """Divides by the Euclidean norm over `axes`."""

    def __init__(self, axes: tuple[int, ...] = (-1,)) -> None:
        super().__init__()
        self.axes = tuple(axes)

    def forward(self, x: Tensor) -> Tensor:
        squares = (x * x).sum(dim=self.axes, keepdim=True)
        return x * torch.rsqrt(torch.clamp(squares, min=1e-24))  # the largest factor is Keras' 1e12


class Standardize(nn.Module):
    """Subtracts a mean and divides by a standard deviation, or the other way round, both with axes to broadcast."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...], invert: bool = False) -> None:
        super().__init__()
        self.shape, self.axes, self.invert = tuple(shape), tuple(axes), invert
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(self.shape))
        self.register_buffer("variance", torch.ones(self.shape))

    def forward(self, x: Tensor) -> Tensor:
        mean = along(self.mean, self.axes, x.ndim)
        deviation = torch.clamp(torch.sqrt(along(self.variance, self.axes, x.ndim)), min=1e-7)
        return mean + x * deviation if self.invert else (x - mean) / deviation


class Rescale(nn.Module):
    """`x · scale + offset`; either may be one number for each feature of the last axis."""

    def __init__(self, scale: float | tuple[float, ...] = 1.0, offset: float | tuple[float, ...] = 0.0) -> None:
        super().__init__()
        self.scale, self.offset = scale, offset

    def forward(self, x: Tensor) -> Tensor:
        return x * self.number(self.scale, x) + self.number(self.offset, x)

    def number(self, value: float | tuple[float, ...], x: Tensor) -> float | Tensor:
        return value if isinstance(value, float) else torch.tensor(value, dtype=x.dtype, device=x.device)

    def extra_repr(self) -> str:
        return f"{self.scale}, {self.offset}"


def along(values: Tensor, axes: Sequence[int], rank: int) -> Tensor:
    """`values`, one axis for each of `axes` in rising order, with axes of length 1 for the others of `rank`."""
    shape = [1] * rank
    for axis, length in zip(sorted(axis % rank for axis in axes), values.shape, strict=True):
        shape[axis] = length
    return values.reshape(shape)


@lowers("BatchNormalization", to="torch")
def batch_normalization(layer: Layer) -> nn.Module:
    layer.refuse_unless(renorm=False, synchronized=False)
    config = layer.config
    scale, center = config.get("scale", True), config.get("center", True)
    names = [*(["weight"] * scale), *(["bias"] * center), "running_mean", "running_var"]
    if len(names) != len(layer.variables):
        raise layer.refuse(
            f"it has {len(layer.variables)} variables, not {len(names)}: it was never built", "call the model"
        )
    state = dict(zip(names, layer.variables, strict=True))
    axis = config.get("axis", -1)
    return make(
        BatchNorm,
        len(state["running_mean"]),
        axis=axis[0] if isinstance(axis, list) else axis,
        momentum=config.get("momentum", 0.99),
        eps=config.get("epsilon", 1e-3),
        scale=scale,
        center=center,
        frozen=layer.frozen or not layer.trainable,
        state=state,
    )


def _gains(layer: Layer) -> dict[str, np.ndarray]:
    config = layer.config
    names = [*(["weight"] * config.get("scale", True)), *(["bias"] * config.get("center", True))]
    return dict(zip(names, layer.variables, strict=True))


@lowers("LayerNormalization", to="torch")
def layer_normalization(layer: Layer) -> nn.Module:
    layer.refuse_unless(rms_scaling=False)
    config, state = layer.config, _gains(layer)
    axes = _axes(config.get("axis", -1))
    eps, scale, center = config.get("epsilon", 1e-3), "weight" in state, "bias" in state
    shape = next(iter(state.values())).shape if state else (1,) * len(axes)
    if axes == (-1,) and scale:
        return make(nn.LayerNorm, shape, eps=eps, bias=center, state=state)
    return make(LayerNorm, shape, axes, eps, scale, center, state=state)


@lowers("RMSNormalization", to="torch")
def rms_normalization(layer: Layer) -> nn.Module:
    (scale,) = layer.variables
    eps = layer.config.get("epsilon", 1e-6)
    return make(RMSNorm, scale.shape, _axes(layer.config.get("axis", -1)), eps, state={"weight": scale})


@lowers("GroupNormalization", to="torch")
def group_normalization(layer: Layer) -> nn.Module:
    config, state = layer.config, _gains(layer)
    axis = config.get("axis", -1)
    if axis < -1:
        raise layer.refuse("a negative axis other than the last", "count it from the front")
    features = len(next(iter(state.values()))) if state else 0
    eps, scale, center = config.get("epsilon", 1e-3), "weight" in state, "bias" in state
    return make(GroupNorm, config.get("groups", 32), features, axis, eps, scale, center, state=state)


@lowers("UnitNormalization", to="torch")
def unit_normalization(layer: Layer) -> nn.Module:
    return UnitNorm(_axes(layer.config.get("axis", -1)))


@lowers("Normalization", to="torch")
def normalization(layer: Layer) -> nn.Module:
    config = layer.config
    axis = config.get("axis", -1)
    axes = () if axis is None else _axes(axis)
    if config.get("mean") is not None:
        mean, variance = (np.asarray(config[key], dtype=layer.dtype) for key in ("mean", "variance"))
        axes = axes[len(axes) - mean.ndim :]
    elif len(layer.variables) >= 2:
        mean, variance = layer.variables[:2]
    else:
        raise layer.refuse("it has no statistics", "call adapt, or pass mean and variance")
    state = {"mean": mean, "variance": variance}
    return make(Standardize, mean.shape, axes, bool(config.get("invert", False)), state=state)


@lowers("Rescaling", to="torch")
def rescaling(layer: Layer) -> nn.Module:
    return Rescale(*(_number(layer.config.get(key, default)) for key, default in (("scale", 1.0), ("offset", 0.0))))


def _number(value: Any) -> float | tuple[float, ...]:
    if isinstance(value, dict):
        value = value["config"]["value"]
    return tuple(map(float, value)) if isinstance(value, list | tuple) else float(value)


def _axes(axis: Any) -> tuple[int, ...]:
    return (axis,) if isinstance(axis, int) else tuple(sorted(axis))
