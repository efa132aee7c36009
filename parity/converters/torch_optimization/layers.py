"""One lowering per layer: what a torch layer is as an expression. A function of the layer and its `Value` inputs."""

from __future__ import annotations

import copy
import operator
from itertools import product as pairs_of
from math import prod
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import nn

from parity.converters.registry import lowers
from parity.converters.torch_optimization import expressions as ex
from parity.converters.torch_optimization.program import Shape, Value
from parity.errors import Unsupported

TO = "optimization"
CHUNK = 512
"""Unit vectors that go through a layer at once."""


def _doubled(layer: nn.Module) -> nn.Module:
    return copy.deepcopy(layer).double().cpu().eval().requires_grad_(False)


@lowers(nn.Linear, nn.Conv1d, nn.Conv2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
        nn.ZeroPad2d, to=TO)  # fmt: skip
def affine_layer(layer: nn.Module, x: Value) -> Value:
    """Every option of an affine layer at once: unit vectors go through torch's own layer, without its bias."""
    whole = _doubled(layer)
    linear: Any = _doubled(layer)
    if getattr(linear, "bias", None) is not None:
        linear.bias = None
    with torch.no_grad():
        at_zero = whole(torch.zeros(1, *x.shape, dtype=torch.float64))
        size, columns = prod(x.shape), []
        for start in range(0, size, CHUNK):
            units = torch.eye(size, dtype=torch.float64)[start : start + CHUNK]
            columns.append(sp.csr_array(linear(units.reshape(-1, *x.shape)).flatten(1).numpy()))
    matrix = sp.csr_array(sp.vstack(columns).T)
    return x.affine(matrix, at_zero.flatten().numpy(), tuple(at_zero.shape[1:]))


@lowers(nn.BatchNorm1d, nn.BatchNorm2d, to=TO)
def batch_norm(layer: Any, x: Value) -> Value:
    if layer.running_mean is None:
        raise Unsupported(
            "without running statistics it depends on the whole batch: a model of one input cannot hold it"
        )
    mean, variance = _numbers(layer.running_mean), _numbers(layer.running_var)
    gain = 1.0 if layer.weight is None else _numbers(layer.weight)
    bias = 0.0 if layer.bias is None else _numbers(layer.bias)
    inner = prod(x.shape[1:])
    factor = np.repeat(gain / np.sqrt(variance + layer.eps), inner)
    centred = ex.scale(1.0, x.expression, np.repeat(-mean, inner))
    return x.like(ex.scale(factor, centred, np.repeat(np.broadcast_to(bias, mean.shape), inner)))


@lowers(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.Identity, to=TO)
def identity(layer: nn.Module, x: Value) -> Value:
    return x


@lowers(nn.Flatten, nn.Unflatten, to=TO)
def reshaping_layer(layer: nn.Module, x: Value) -> Value:
    return x.reshape(_shape_after(layer, x.shape))


def _shape_after(function: Any, shape: Shape) -> Shape:
    """Shape of what it gives, without the batch axis; two samples tell whether it keeps that axis."""
    result = tuple(function(torch.empty(2, *shape, device="meta")).shape)
    if result[0] != 2:
        raise Unsupported("it mixes the batch axis with others: a model of one input cannot hold it")
    return result[1:]


@lowers(nn.MaxPool1d, nn.MaxPool2d, to=TO)
def max_pool(layer: Any, x: Value) -> Value:
    """Padding is minus infinity, which no window ever chooses: it is left out."""
    if layer.return_indices:
        raise Unsupported("return_indices=True gives places, which no expression can: leave it out")
    rank = 1 if isinstance(layer, nn.MaxPool1d) else 2
    kernel, stride, padding, dilation = (
        (value,) * rank if isinstance(value, int) else tuple(value)
        for value in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    )
    shape = _shape_after(layer, x.shape)
    numbers = np.arange(prod(x.shape)).reshape(x.shape)
    windows = []
    for channel, *place in np.ndindex(*shape):
        axes = [
            [start for k in range(kernel[axis])
             if 0 <= (start := at * stride[axis] - padding[axis] + k * dilation[axis]) < x.shape[1 + axis]]
            for axis, at in enumerate(place)
        ]  # fmt: skip
        windows.append([int(numbers[(channel, *each)]) for each in pairs_of(*axes)])
    return x.like(x.builder.maximum(x.expression, windows), shape)


@lowers(nn.LayerNorm, to=TO)
def layer_norm(layer: Any, x: Value) -> Value:
    length = prod(layer.normalized_shape)
    groups = prod(x.shape) // length
    mean = sp.kron(sp.eye_array(groups), np.full((length, length), 1.0 / length), format="csr")
    centred = ex.affine(sp.eye_array(groups * length) - mean, x.expression)
    variance = ex.affine(mean, ex.multiply(centred, centred), layer.eps)
    variance = _within(variance, layer.eps, np.inf)
    normal = ex.divide(centred, ex.apply("sqrt", variance))
    limit = np.sqrt(length - 1.0)  # of one among n numbers of mean 0 and variance at most 1
    normal = _within(normal, -limit, limit)
    gain = np.ones(length) if layer.weight is None else _numbers(layer.weight).ravel()
    bias = np.zeros(length) if layer.bias is None else _numbers(layer.bias).ravel()
    return x.like(ex.scale(np.tile(gain, groups), normal, np.tile(bias, groups)))


def _within(expression: ex.Expression, lower: float, upper: float) -> Any:
    """The same with bounds that are known beside interval arithmetic."""
    from dataclasses import replace

    return replace(expression, lower=np.maximum(expression.lower, lower), upper=np.minimum(expression.upper, upper))


@lowers(nn.Softmax, to=TO)
def softmax(layer: Any, x: Value) -> Value:
    if layer.dim is None:
        raise Unsupported("dim=None leaves the axis to an old rule: name it")
    return _softmax(x, layer.dim)


def _softmax(x: Value, dim: int) -> Value:
    axis = dim if dim >= 0 else dim + len(x.shape) + 1
    if axis == 0:
        raise Unsupported("dim=0 is the batch axis: a model of one input cannot hold it")
    numbers = np.moveaxis(np.arange(prod(x.shape)).reshape(x.shape), axis - 1, -1)
    return x.like(ex.softmax(x.expression, numbers.reshape(-1, x.shape[axis - 1]).tolist()))


# --- activations ------------------------------------------------------------------------------------------------------


@lowers(nn.ReLU, to=TO)
def relu(layer: nn.Module, x: Value) -> Value:
    return x.relu()


@lowers(nn.LeakyReLU, to=TO)
def leaky_relu(layer: Any, x: Value) -> Value:
    if x.direct:
        return x.apply("leaky_relu", layer.negative_slope)
    return x.relu() * (1 - layer.negative_slope) + x * layer.negative_slope


@lowers(nn.ReLU6, nn.Hardtanh, to=TO)
def hardtanh(layer: Any, x: Value) -> Value:
    """low + max(u - low, 0) - max(u - high, 0)."""
    low, high = float(layer.min_val), float(layer.max_val)
    if x.direct:
        return x.apply("clip", low, high)
    result = (x - low).relu() - (x - high).relu() + low
    return result.like(_within(result.expression, low, high))


@lowers(nn.ELU, to=TO)
def elu(layer: Any, x: Value) -> Value:
    """max(u, 0) + α (exp(min(u, 0)) - 1), with min(u, 0) = u - max(u, 0)."""
    if x.direct:
        return x.apply("elu", float(layer.alpha))
    positive = x.relu()
    return positive + (x - positive).apply("exp") * float(layer.alpha) - float(layer.alpha)


@lowers(nn.Sigmoid, to=TO)
def sigmoid(layer: nn.Module, x: Value) -> Value:
    return x.apply("sigmoid")


@lowers(nn.Tanh, to=TO)
def tanh(layer: nn.Module, x: Value) -> Value:
    return x.apply("tanh")


@lowers(nn.SiLU, to=TO)
def silu(layer: nn.Module, x: Value) -> Value:
    return x.apply("silu")


@lowers(nn.Softplus, to=TO)
def softplus(layer: Any, x: Value) -> Value:
    return x.apply("softplus", float(layer.beta), float(layer.threshold))


@lowers(nn.GELU, to=TO)
def gelu(layer: Any, x: Value) -> Value:
    return x.apply("gelu_tanh" if layer.approximate == "tanh" else "gelu")


# --- what `forward` writes between layers -----------------------------------------------------------------------------


@lowers(operator.add, operator.iadd, torch.add, "add", to=TO)
def add(first: Any, second: Any, *, alpha: float = 1) -> Value:
    return _operand(first) + _operand(second) * alpha if alpha != 1 else _operand(first) + _operand(second)


@lowers(operator.sub, torch.sub, "sub", to=TO)
def subtract(first: Any, second: Any) -> Value:
    return _operand(first) - _operand(second)


@lowers(operator.mul, torch.mul, "mul", to=TO)
def multiply(first: Any, second: Any) -> Value:
    return _operand(first) * _operand(second)


@lowers(operator.truediv, torch.div, "div", to=TO)
def divide(first: Any, second: Any) -> Value:
    return _operand(first) / _operand(second)


@lowers(operator.neg, torch.neg, "neg", to=TO)
def negative(x: Value) -> Value:
    return -x


def _operand(value: Any) -> Any:
    """A constant tensor has no batch axis of its own here, or one of length 1."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.ndim and value.shape[0] != 1 and value.ndim > 1:
        raise Unsupported(f"a constant of shape {tuple(value.shape)} beside a batch: give it a batch axis of length 1")
    return _numbers(value[0] if value.ndim > 1 else value)


@lowers(torch.cat, torch.concat, to=TO)
def concatenate(tensors: Any, dim: int = 0) -> Value:
    shapes = [each.shape for each in tensors]
    axis = dim if dim >= 0 else dim + len(shapes[0]) + 1
    if axis == 0:
        raise Unsupported("dim=0 is the batch axis: a model of one input cannot hold it")
    starts = np.cumsum([0, *(prod(shape) for shape in shapes[:-1])])
    numbers = [start + np.arange(prod(shape)).reshape(shape) for start, shape in zip(starts, shapes, strict=True)]
    order = np.concatenate(numbers, axis=axis - 1)
    joined = ex.stack(*(each.expression for each in tensors))
    return tensors[0].like(ex.select(joined, order.ravel().tolist()), order.shape)


@lowers(torch.flatten, "flatten", to=TO)
def flatten(x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    return x.reshape(_shape_after(lambda tensor: tensor.flatten(start_dim, end_dim), x.shape))


@lowers(torch.reshape, "reshape", "view", to=TO)
def reshape(x: Value, *sizes: Any) -> Value:
    given = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list | torch.Size) else sizes
    if not given or given[0] not in (1, -1):
        raise Unsupported(f"the shape {tuple(given)} does not begin with the batch axis")
    return x.reshape(_shape_after(lambda tensor: tensor.reshape(2, *given[1:]), x.shape))


@lowers("size", to=TO)
def size(x: Value, dim: int | None = None) -> Any:
    whole = (1, *x.shape)
    return whole if dim is None else whole[dim]


@lowers(torch.relu, nn.functional.relu, "relu", to=TO)
def relu_function(x: Value, inplace: bool = False) -> Value:
    return x.relu()


@lowers(torch.tanh, "tanh", to=TO)
def tanh_function(x: Value) -> Value:
    return x.apply("tanh")


@lowers(torch.sigmoid, "sigmoid", to=TO)
def sigmoid_function(x: Value) -> Value:
    return x.apply("sigmoid")


@lowers(nn.functional.leaky_relu, to=TO)
def leaky_relu_function(x: Value, negative_slope: float = 0.01, inplace: bool = False) -> Value:
    return leaky_relu(nn.LeakyReLU(negative_slope), x)


@lowers(nn.functional.elu, to=TO)
def elu_function(x: Value, alpha: float = 1.0, inplace: bool = False) -> Value:
    return elu(nn.ELU(alpha), x)


@lowers(nn.functional.hardtanh, to=TO)
def hardtanh_function(x: Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Value:
    return hardtanh(nn.Hardtanh(min_val, max_val), x)


@lowers(nn.functional.silu, to=TO)
def silu_function(x: Value, inplace: bool = False) -> Value:
    return x.apply("silu")


@lowers(nn.functional.softplus, to=TO)
def softplus_function(x: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    return x.apply("softplus", float(beta), float(threshold))


@lowers(nn.functional.gelu, to=TO)
def gelu_function(x: Value, approximate: str = "none") -> Value:
    return x.apply("gelu_tanh" if approximate == "tanh" else "gelu")


@lowers(torch.softmax, nn.functional.softmax, "softmax", to=TO)
def softmax_function(x: Value, dim: int) -> Value:
    return _softmax(x, dim)


def _numbers(tensor: torch.Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().cpu().double().numpy())
