"""Normalizations: by the elements' own mean and variance, or by running ones, which make an affine map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import casadi
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from parity.converters.registry import lowers
from parity.converters.torch_casadi.parameters import weights
from parity.converters.torch_casadi.tensor import Tensor, elementwise
from parity.errors import Unsupported

Weight = np.ndarray | None


def _standardize(x: Tensor, dims: Sequence[int], eps: float) -> Tensor:
    """Mean 0 and variance (biased) 1 over `dims`."""
    deviation = x - x.mean(dims, keepdim=True)
    variance = (deviation * deviation).mean(dims, keepdim=True)
    return deviation / elementwise(casadi.sqrt, variance + eps)


def _scale(x: Tensor, weight: Weight, bias: Weight) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _channels(x: Tensor, weight: Weight) -> Weight:
    """One number for each element of dimension 1, to broadcast."""
    return None if weight is None else weight.reshape(-1, *(1,) * (x.ndim - 2))


@lowers(functional.layer_norm, torch.layer_norm, to="casadi")
def layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Weight = None, bias: Weight = None, eps: float = 1e-5
) -> Tensor:
    """Ba et al. (2016), over the last dimensions."""
    return _scale(_standardize(input, range(-len(normalized_shape), 0), eps), weight, bias)


@lowers(nn.LayerNorm, to="casadi")
def layer_norm_layer(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    weight, bias = weights(layer, "weight", "bias")
    return layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)


@lowers(functional.rms_norm, torch.rms_norm, to="casadi")
def rms_norm(input: Tensor, normalized_shape: Sequence[int], weight: Weight = None, eps: float | None = None) -> Tensor:
    """Zhang and Sennrich (2019); torch's default `eps` is the machine epsilon of the type it computes in."""
    square = (input * input).mean(range(-len(normalized_shape), 0), keepdim=True)
    eps = torch.finfo(torch.float64).eps if eps is None else eps
    return _scale(input / elementwise(casadi.sqrt, square + eps), weight, None)


@lowers(nn.RMSNorm, to="casadi")
def rms_norm_layer(layer: nn.RMSNorm, x: Tensor) -> Tensor:
    (weight,) = weights(layer, "weight")
    return rms_norm(x, layer.normalized_shape, weight, layer.eps)


@lowers(functional.group_norm, torch.group_norm, to="casadi")
def group_norm(input: Tensor, num_groups: int, weight: Weight = None, bias: Weight = None, eps: float = 1e-5) -> Tensor:
    """Wu and He (2018)."""
    grouped = _standardize(input.reshape(input.shape[0], num_groups, -1), (2,), eps).reshape(*input.shape)
    return _scale(grouped, _channels(input, weight), _channels(input, bias))


@lowers(nn.GroupNorm, to="casadi")
def group_norm_layer(layer: nn.GroupNorm, x: Tensor) -> Tensor:
    weight, bias = weights(layer, "weight", "bias")
    return group_norm(x, layer.num_groups, weight, bias, layer.eps)


@lowers(functional.batch_norm, to="casadi")
def batch_norm(
    input: Tensor, running_mean: Weight, running_var: Weight, weight: Weight = None, bias: Weight = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Ioffe and Szegedy (2015) with running statistics: x * scale + shift for each channel."""
    if training or running_mean is None or running_var is None:
        raise Unsupported("statistics of the batch would mix its samples: call model.eval(), with running statistics")
    scale = 1.0 / np.sqrt(running_var + eps) * (1.0 if weight is None else weight)
    shift = (0.0 if bias is None else bias) - running_mean * scale
    return _scale(input, _channels(input, scale), _channels(input, shift))


@lowers(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, to="casadi")
def batch_norm_layer(layer: Any, x: Tensor) -> Tensor:
    if layer.running_mean is None:
        raise Unsupported("without running statistics it mixes the samples of a batch: set track_running_stats=True")
    mean, variance, weight, bias = weights(layer, "running_mean", "running_var", "weight", "bias")
    return batch_norm(x, mean, variance, weight, bias, eps=layer.eps)


@lowers(functional.instance_norm, to="casadi")
def instance_norm(
    input: Tensor, running_mean: Weight = None, running_var: Weight = None, weight: Weight = None, bias: Weight = None,
    use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Ulyanov et al. (2016)."""
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, eps=eps)
    return _scale(_standardize(input, range(2, input.ndim), eps), _channels(input, weight), _channels(input, bias))


@lowers(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, to="casadi")
def instance_norm_layer(layer: Any, x: Tensor) -> Tensor:
    mean, variance, weight, bias = weights(layer, "running_mean", "running_var", "weight", "bias")
    rank = int(type(layer).__name__[-2])
    batch = x if x.ndim == rank + 2 else x.reshape(1, *x.shape)  # a single sample may come without a batch axis
    result = instance_norm(batch, mean, variance, weight, bias, use_input_stats=mean is None, eps=layer.eps)
    return result.reshape(*x.shape)
