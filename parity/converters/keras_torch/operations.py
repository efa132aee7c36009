"""`keras.ops` applied to tensors of a functional model: each becomes a torch function in the code of `forward`.

An operation's lowering is the function itself, called as Keras called the operation.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.converters.keras_torch import activations
from parity.converters.registry import lowers

SEVERAL = frozenset(["Split", "Unstack"])
"""Operations with several results."""
Axis = int | Sequence[int] | None


class Constant(nn.Module):
    """A tensor that the model holds itself."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.value: Tensor
        self.register_buffer("value", torch.zeros(self.shape))

    def forward(self) -> Tensor:
        return self.value


def _axes(axis: Axis) -> Any:
    return tuple(axis) if isinstance(axis, Sequence) else axis


def mean(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    return x.mean(dim=_axes(axis), keepdim=keepdims)


def total(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    return x.sum(dim=_axes(axis), keepdim=keepdims)


def largest(x: Tensor, axis: Axis = None, keepdims: bool = False, initial: None = None) -> Tensor:
    return x.amax(dim=tuple(range(x.ndim)) if axis is None else _axes(axis), keepdim=keepdims)


def smallest(x: Tensor, axis: Axis = None, keepdims: bool = False, initial: None = None) -> Tensor:
    return x.amin(dim=tuple(range(x.ndim)) if axis is None else _axes(axis), keepdim=keepdims)


def variance(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    return x.var(dim=_axes(axis), keepdim=keepdims, correction=0)


def reshape(x: Tensor, newshape: Sequence[int]) -> Tensor:
    return x.reshape([-1 if length is None else length for length in newshape])


def transpose(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    return x.permute(*(reversed(range(x.ndim)) if axes is None else axes))


def concatenate(xs: Sequence[Tensor], axis: int = 0) -> Tensor:
    return torch.cat(list(xs), dim=axis)


def stack(x: Sequence[Tensor], axis: int = 0) -> Tensor:
    return torch.stack(list(x), dim=axis)


def split(x: Tensor, indices_or_sections: Any, axis: int = 0) -> tuple[Tensor, ...]:
    return torch.tensor_split(x, indices_or_sections, dim=axis)


def expand_dims(x: Tensor, axis: int | Sequence[int]) -> Tensor:
    for position in [axis] if isinstance(axis, int) else axis:
        x = x.unsqueeze(position)
    return x


def squeeze(x: Tensor, axis: Axis = None) -> Tensor:
    return x.squeeze() if axis is None else x.squeeze(_axes(axis))


def clip(x: Tensor, x_min: float, x_max: float) -> Tensor:
    return torch.clamp(x, x_min, x_max)


def power(x1: Any, x2: Any) -> Any:
    return x1**x2


def maximum(x1: Any, x2: Any) -> Tensor:
    return _both(torch.maximum, x1, x2)


def minimum(x1: Any, x2: Any) -> Tensor:
    return _both(torch.minimum, x1, x2)


def _both(function: Any, first: Any, second: Any) -> Tensor:
    like = first if isinstance(first, Tensor) else second
    return function(*(torch.as_tensor(x, dtype=like.dtype, device=like.device) for x in (first, second)))


def softmax_along(x: Tensor, axis: int = -1) -> Tensor:
    return F.softmax(x, dim=axis)


def log_softmax_along(x: Tensor, axis: int = -1) -> Tensor:
    return F.log_softmax(x, dim=axis)


def gelu(x: Tensor, approximate: bool = True) -> Tensor:
    return F.gelu(x, approximate="tanh" if approximate else "none")


def leaky(x: Tensor, negative_slope: float = 0.2) -> Tensor:
    return F.leaky_relu(x, negative_slope)


def cast(x: Tensor, dtype: str) -> Tensor:
    return x.to(getattr(torch, dtype))


def einsum(subscripts: str, *operands: Tensor) -> Tensor:
    return torch.einsum(subscripts, *operands)


def any_of(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    return x.any() if axis is None else x.any(dim=_axes(axis), keepdim=keepdims)


OPERATIONS: dict[str, Any] = {
    "Add": operator.add, "Subtract": operator.sub, "Multiply": operator.mul, "Divide": operator.truediv,
    "TrueDivide": operator.truediv, "Negative": operator.neg, "Matmul": torch.matmul, "Power": power,
    "Maximum": maximum, "Minimum": minimum, "Absolute": torch.abs, "Abs": torch.abs, "Square": torch.square,
    "Sqrt": torch.sqrt, "Rsqrt": torch.rsqrt, "Exp": torch.exp, "Log": torch.log, "Sin": torch.sin, "Cos": torch.cos,
    "Mean": mean, "Sum": total, "Max": largest, "Min": smallest, "Var": variance, "Clip": clip,
    "Reshape": reshape, "Transpose": transpose, "Concatenate": concatenate, "Stack": stack, "Split": split,
    "ExpandDims": expand_dims, "Squeeze": squeeze, "GetItem": operator.getitem, "Cast": cast,
    "NotEqual": torch.ne, "Equal": torch.eq, "Greater": torch.gt, "Less": torch.lt, "Any": any_of,
    "LogicalOr": torch.logical_or, "LogicalAnd": torch.logical_and, "LogicalNot": torch.logical_not,
    "OnesLike": torch.ones_like, "ZerosLike": torch.zeros_like, "Where": torch.where,
    "Relu": torch.relu, "Relu6": F.relu6, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Silu": F.silu, "Gelu": gelu,
    "LeakyRelu": leaky, "Softmax": softmax_along, "LogSoftmax": log_softmax_along, "Softplus": activations.softplus,
    "Softsign": F.softsign, "Selu": F.selu, "HardSigmoid": activations.hard_sigmoid, "HardSilu": activations.hard_silu,
}  # fmt: skip
for _name, _function in OPERATIONS.items():
    lowers(f"ops.{_name}", to="torch")(_function)
