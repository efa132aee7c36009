"""ONNX's operators as functions of torch tensors. Importing this module registers them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from parity.converters.registry import lowers
from parity.errors import Unsupported

Ints = Sequence[int]

PLAIN: dict[str, Any] = {
    **{name: getattr(torch, name.lower()) for name in ("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh")},
    **{name: getattr(torch, name.lower()) for name in ("Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "Log", "Round")},
    **{name: getattr(torch, name.lower()) for name in ("Reciprocal", "Sigmoid", "Sign", "Sin", "Sinh", "Sqrt", "Tan")},
    **{"Tanh": torch.tanh, "Relu": torch.relu, "Softsign": F.softsign, "HardSwish": F.hardswish, "Mish": F.mish},
    **{"Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "Pow": torch.pow, "Greater": torch.gt},
    **{"MatMul": torch.matmul, "Max": torch.maximum, "Clip": torch.clamp},
}
for _name, _function in PLAIN.items():
    lowers(_name, to="torch")(_function)


@lowers("Identity", to="torch")
def identity(x: Tensor) -> Tensor:
    return x


@lowers("Softplus", to="torch")
def softplus(x: Tensor) -> Tensor:
    """torch's own is linear above a threshold."""
    return torch.logaddexp(x, torch.zeros_like(x))


@lowers("LeakyRelu", to="torch")
def leaky_relu(x: Tensor, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


@lowers("Elu", to="torch")
def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


@lowers("PRelu", to="torch")
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


@lowers("Cast", to="torch")
def cast(x: Tensor, to: int) -> Tensor:
    if to != 1:
        raise Unsupported(f"operator Cast(to={to}): only to float32")
    return x.to(torch.float32)


@lowers("Sum", to="torch")
def total(*terms: Tensor) -> Tensor:
    return reduce(torch.add, terms)


@lowers("Softmax", to="torch")
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


# --- contractions, pooling and normalization --------------------------------------------------------------------------

CONVOLUTIONS: dict[int, tuple[Any, Any]] = {
    1: (F.conv1d, F.conv_transpose1d),
    2: (F.conv2d, F.conv_transpose2d),
    3: (F.conv3d, F.conv_transpose3d),
}


def _even(operator: str, pads: Ints) -> list[int]:
    half = len(pads) // 2
    if list(pads[:half]) != list(pads[half:]):
        raise Unsupported(f"operator {operator}(pads={list(pads)}): only the same at both ends; Caffe knows no other")
    return list(pads[:half])


@lowers("Conv", to="torch")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_shape: Ints,
    strides: Ints,
    dilations: Ints,
    pads: Ints,
    group: int,
) -> Tensor:
    function = CONVOLUTIONS[len(kernel_shape)][0]
    result: Tensor = function(x, weight, bias, strides, _even("Conv", pads), dilations, group)
    return result


@lowers("ConvTranspose", to="torch")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_shape: Ints,
    strides: Ints,
    dilations: Ints,
    pads: Ints,
    group: int,
) -> Tensor:
    function = CONVOLUTIONS[len(kernel_shape)][1]
    result: Tensor = function(x, weight, bias, strides, _even("ConvTranspose", pads), 0, group, dilations)
    return result


@lowers("MaxPool", to="torch")
def max_pool(x: Tensor, *, kernel_shape: Ints, strides: Ints) -> Tensor:
    return F.max_pool2d(x, list(kernel_shape), list(strides))


@lowers("AveragePool", to="torch")
def average_pool(x: Tensor, *, kernel_shape: Ints, strides: Ints) -> Tensor:
    return F.avg_pool2d(x, list(kernel_shape), list(strides))


@lowers("GlobalAveragePool", to="torch")
def global_average_pool(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


@lowers("GlobalMaxPool", to="torch")
def global_max_pool(x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


@lowers("BatchNormalization", to="torch")
def batch_norm(x: Tensor, gain: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, epsilon: float = 1e-5) -> Tensor:
    return F.batch_norm(x, mean, variance, gain, shift, eps=epsilon)


@lowers("LRN", to="torch")
def local_response_norm(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    return F.local_response_norm(x, size, alpha, beta, bias)


# --- reductions and shapes --------------------------------------------------------------------------------------------


def _reduction(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Callable[..., Tensor]:
    def reduced(x: Tensor, given: Ints | None = None, *, axes: Ints | None = None, keepdims: int = 1) -> Tensor:
        """The axes are an attribute before opset 18, an input since (ReduceSum: 13)."""
        return function(x, tuple(given or axes or range(x.dim())), bool(keepdims))

    return reduced


reduce_mean = lowers("ReduceMean", to="torch")(_reduction(lambda x, axes, keep: x.mean(axes, keep)))
reduce_sum = lowers("ReduceSum", to="torch")(_reduction(lambda x, axes, keep: x.sum(axes, keep)))
reduce_l1 = lowers("ReduceL1", to="torch")(_reduction(lambda x, axes, keep: x.abs().sum(axes, keep)))
reduce_sum_square = lowers("ReduceSumSquare", to="torch")(_reduction(lambda x, axes, keep: x.square().sum(axes, keep)))


@lowers("Reshape", to="torch")
def reshape(x: Tensor, shape: Ints) -> Tensor:
    """0 copies the input's size."""
    return x.reshape([x.shape[place] if size == 0 else size for place, size in enumerate(shape)])


@lowers("Transpose", to="torch")
def transpose(x: Tensor, *, perm: Ints) -> Tensor:
    return x.permute(list(perm))


@lowers("Concat", to="torch")
def concat(*parts: Tensor, axis: int) -> Tensor:
    return torch.cat(parts, axis)


@lowers("Split", to="torch")
def split(x: Tensor, sizes: Ints, axis: int = 0) -> tuple[Tensor, ...]:
    return x.split(list(sizes), axis)


@lowers("Slice", to="torch")
def slice_(x: Tensor, starts: Ints, ends: Ints, axes: Ints) -> Tensor:
    for start, end, axis in zip(starts, ends, axes, strict=True):
        x = x.narrow(axis, start, end - start)
    return x


@lowers("Tile", to="torch")
def tile(x: Tensor, repeats: Ints) -> Tensor:
    return x.repeat(tuple(repeats))


@lowers("Pad", to="torch")
def pad(x: Tensor, widths: Ints, value: float) -> Tensor:
    """ONNX lists all begins and then all ends, torch pairs of them, last axis first."""
    half = len(widths) // 2
    pairs = [width for axis in reversed(range(half)) for width in (widths[axis], widths[half + axis])]
    return F.pad(x, pairs, value=value)
