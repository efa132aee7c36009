"""Elementwise functions, comparisons, selections and reductions."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from itertools import accumulate
from typing import Any, NamedTuple

import casadi
import numpy as np
import torch

from parity.converters.registry import lowers
from parity.converters.torch_casadi.spelling import spelled
from parity.converters.torch_casadi.tensor import Operand, Tensor, elementwise, stack
from parity.errors import Unsupported

Dims = int | tuple[int, ...] | None

# --- one operand ------------------------------------------------------------------------------------------------------

ONE_OPERAND: dict[str, Callable[[casadi.MX], casadi.MX]] = {
    **{name: getattr(casadi, name) for name in (
        "exp", "expm1", "log", "log1p", "sqrt", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh",
        "asinh", "acosh", "atanh", "erf", "sign", "floor", "ceil")},
    "log2": lambda x: casadi.log(x) / math.log(2),
    "log10": casadi.log10,
    "exp2": lambda x: casadi.exp(x * math.log(2)),
    "erfc": lambda x: 1 - casadi.erf(x),
    "abs": casadi.fabs,
    "absolute": casadi.fabs,
    "neg": lambda x: -x,
    "negative": lambda x: -x,
    "positive": lambda x: x,
    "square": lambda x: x * x,
    "rsqrt": lambda x: 1 / casadi.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "trunc": lambda x: casadi.if_else(x < 0, casadi.ceil(x), casadi.floor(x)),
    "frac": lambda x: x - casadi.if_else(x < 0, casadi.ceil(x), casadi.floor(x)),
    "logical_not": casadi.logic_not,
    "bitwise_not": casadi.logic_not,  # of a mask: everything else here is floating-point, and torch has no `~` for it
    "sinc": lambda x: casadi.if_else(x == 0, 1, casadi.sin(math.pi * x) / casadi.if_else(x == 0, 1, math.pi * x)),
}  # fmt: skip
ALIASES = {"asin": ("arcsin",), "acos": ("arccos",), "atan": ("arctan",), "asinh": ("arcsinh",), "acosh": ("arccosh",),
           "atanh": ("arctanh",), "sign": ("sgn",), "neg": ("__neg__",), "bitwise_not": ("invert",)}  # fmt: skip


def _one_operand(function: Callable[[casadi.MX], casadi.MX]) -> Callable[[Operand], Tensor]:
    return lambda x: elementwise(function, x)


for _name, _function in ONE_OPERAND.items():
    lowers(*spelled(_name, *ALIASES.get(_name, ())), to="casadi")(_one_operand(_function))

# --- two operands -----------------------------------------------------------------------------------------------------


def _remainder(x: casadi.MX, y: casadi.MX) -> casadi.MX:
    """With the sign of `y`, as in Python."""
    return x - casadi.floor(x / y) * y


def _hypotenuse(x: casadi.MX, y: casadi.MX) -> casadi.MX:
    return casadi.sqrt(x * x + y * y)


TWO_OPERANDS: dict[str, Callable[..., casadi.MX]] = {
    "multiply mul imul": casadi.times,
    "maximum fmax": casadi.fmax,
    "minimum fmin": casadi.fmin,
    "atan2 arctan2": casadi.atan2,
    "hypot": _hypotenuse,
    "remainder mod": _remainder,
    "floor_divide floordiv": lambda x, y: casadi.floor(x / y),
    "lt less": casadi.lt,
    "le less_equal": casadi.le,
    "gt greater": casadi.gt,
    "ge greater_equal": casadi.ge,
    "eq": casadi.eq,
    "ne not_equal": casadi.ne,
    "logical_and and_ bitwise_and": casadi.logic_and,
    "logical_or or_ bitwise_or": casadi.logic_or,
    "logical_xor xor bitwise_xor": casadi.ne,
}


def _two_operands(function: Callable[..., casadi.MX]) -> Callable[..., Tensor]:
    return lambda input, other: elementwise(function, input, other)


for _names, _function in TWO_OPERANDS.items():
    lowers(*spelled(*_names.split()), to="casadi")(_two_operands(_function))


@lowers(*spelled("add", "iadd"), to="casadi")
def add(input: Operand, other: Operand, *, alpha: float = 1) -> Tensor:
    return elementwise(casadi.plus, input, other if alpha == 1 else elementwise(casadi.times, other, alpha))


@lowers(*spelled("sub", "subtract", "isub"), to="casadi")
def subtract(input: Operand, other: Operand, *, alpha: float = 1) -> Tensor:
    return elementwise(casadi.minus, input, other if alpha == 1 else elementwise(casadi.times, other, alpha))


@lowers(*spelled("rsub"), to="casadi")
def subtract_from(input: Operand, other: Operand, *, alpha: float = 1) -> Tensor:
    return subtract(other, input, alpha=alpha)


@lowers(*spelled("div", "divide", "true_divide", "truediv", "itruediv"), to="casadi")
def divide(input: Operand, other: Operand, *, rounding_mode: str | None = None) -> Tensor:
    quotient = elementwise(casadi.rdivide, input, other)
    if rounding_mode is None:
        return quotient
    return elementwise({"floor": casadi.floor, "trunc": ONE_OPERAND["trunc"]}[rounding_mode], quotient)


@lowers(*spelled("pow", "ipow", "float_power"), to="casadi")
def power(input: Operand, exponent: Operand) -> Tensor:
    """A whole exponent becomes products: CasADi's own derivative of 0 ** n by repeated rule would meet 0 * inf."""
    exponents = np.unique(exponent) if not isinstance(exponent, Tensor) else np.array([np.nan])
    if isinstance(input, Tensor) and exponents.size == 1 and float(exponents[0]) in range(-8, 9):
        result = elementwise(lambda x: _whole_power(x, abs(int(exponents[0]))), input)
        result = result if exponents[0] >= 0 else 1 / result
        return result.expand(*np.broadcast_shapes(input.shape, np.shape(exponent)))
    if isinstance(exponent, Tensor) and not isinstance(input, Tensor) and np.all(np.asarray(input) > 0):
        return elementwise(lambda y, logarithm: casadi.exp(y * logarithm), exponent, np.log(input))
    if isinstance(exponent, np.ndarray) and 1 < exponents.size <= 16:
        powers = [power(input, float(number)) for number in exponents]
        return reduce(lambda result, pair: where(exponent == pair[0], pair[1], result),
                      zip(exponents, powers, strict=True), Tensor.of(0.0))  # fmt: skip
    return elementwise(casadi.power, input, exponent)


def _whole_power(x: casadi.MX, exponent: int) -> casadi.MX:
    if exponent <= 1:
        return x if exponent == 1 else casadi.MX.ones(x.shape)
    half = _whole_power(x, exponent // 2)
    return half * half * x if exponent % 2 else half * half


# --- selecting --------------------------------------------------------------------------------------------------------


@lowers(*spelled("where"), to="casadi")
def where(condition: Operand, input: Operand, other: Operand) -> Tensor:
    if isinstance(condition, Tensor):
        return elementwise(casadi.if_else, condition, input, other)
    first, second = Tensor.of(input), Tensor.of(other)
    shape = np.broadcast_shapes(np.shape(condition), first.shape, second.shape)
    index = np.where(condition, np.broadcast_to(first.positions, shape), first.size + second.positions)
    return Tensor(casadi.vertcat(first.data, second.data), (first.size + second.size,)).take(index)


lowers("where", to="casadi", replace=True)(lambda self, condition, other: where(condition, self, other))


@lowers(*spelled("masked_fill"), to="casadi")
def masked_fill(input: Operand, mask: Operand, value: Operand) -> Tensor:
    return where(mask, value, input)


@lowers(*spelled("clamp", "clip"), to="casadi")
def clamp(input: Operand, min: Operand | None = None, max: Operand | None = None) -> Tensor:
    """The bounds themselves belong to the inside, as in torch's derivative."""
    result = input
    if min is not None:
        result = elementwise(lambda x, bound: casadi.if_else(x < bound, bound, x), result, min)
    if max is not None:
        result = elementwise(lambda x, bound: casadi.if_else(x > bound, bound, x), result, max)
    return Tensor.of(result)


lowers(*spelled("clamp_min"), to="casadi")(lambda input, min: clamp(input, min))
lowers(*spelled("clamp_max"), to="casadi")(lambda input, max: clamp(input, None, max))


@lowers(*spelled("lerp"), to="casadi")
def lerp(input: Operand, end: Operand, weight: Operand) -> Tensor:
    return add(input, elementwise(casadi.times, weight, subtract(end, input)))


@lowers(*spelled("addcmul"), to="casadi")
def add_product(input: Operand, tensor1: Operand, tensor2: Operand, *, value: float = 1) -> Tensor:
    return add(input, elementwise(casadi.times, tensor1, tensor2), alpha=value)


@lowers(*spelled("addcdiv"), to="casadi")
def add_quotient(input: Operand, tensor1: Operand, tensor2: Operand, *, value: float = 1) -> Tensor:
    return add(input, elementwise(casadi.rdivide, tensor1, tensor2), alpha=value)


# --- reductions -------------------------------------------------------------------------------------------------------


@lowers(*spelled("sum"), to="casadi")
def total(input: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: object = None) -> Tensor:
    return input.sum(dim, keepdim)


@lowers(*spelled("mean"), to="casadi")
def mean(input: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: object = None) -> Tensor:
    return input.mean(dim, keepdim)


@lowers(*spelled("prod"), to="casadi")
def product(input: Tensor, dim: int | None = None, keepdim: bool = False, *, dtype: object = None) -> Tensor:
    x = input if dim is not None else input.reshape(-1)
    axis = x.axes(dim if dim is not None else 0)[0]
    slices = [x.take(np.take(x.positions, [place], axis=axis)) for place in range(x.shape[axis])]
    result = reduce(lambda left, right: left * right, slices)
    return result if keepdim else result.reshape(*(n for place, n in enumerate(x.shape) if place != axis))


@lowers(*spelled("var"), to="casadi")
def variance(input: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False,
             *, correction: float | None = 1) -> Tensor:  # fmt: skip
    if isinstance(dim, bool):  # torch's other signature: var(input, unbiased)
        dim, unbiased = None, dim
    divisor_less = float(unbiased) if unbiased is not None else 1 if correction is None else correction
    return input.variance(dim, keepdim, divisor_less)


@lowers(*spelled("std"), to="casadi")
def standard_deviation(*arguments: Any, **options: Any) -> Tensor:
    return elementwise(casadi.sqrt, variance(*arguments, **options))


@lowers(*spelled("var_mean"), to="casadi")
def variance_and_mean(input: Tensor, dim: Any = None, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    keepdim = options.get("keepdim", len(arguments) > 1 and arguments[1])
    axes = None if isinstance(dim, bool) else dim
    return variance(input, dim, *arguments, **options), input.mean(axes, keepdim)


@lowers(*spelled("std_mean"), to="casadi")
def deviation_and_mean(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    square, average = variance_and_mean(*arguments, **options)
    return elementwise(casadi.sqrt, square), average


class Indices:
    """Stands for the positions of extreme elements, which are no function that CasADi could differentiate."""


class Extreme(NamedTuple):
    """What `max` and `min` along a dimension return."""

    values: Tensor
    indices: Indices


@lowers(*spelled("max"), to="casadi")
def maximum(input: Tensor, dim: Any = None, keepdim: bool = False, *, other: Operand | None = None) -> Any:
    other = dim if isinstance(dim, Tensor | np.ndarray) else other
    if other is not None:
        return elementwise(casadi.fmax, input, other)
    return input.max() if dim is None else Extreme(input.max(dim, keepdim), Indices())


@lowers(*spelled("min"), to="casadi")
def minimum(input: Tensor, dim: Any = None, keepdim: bool = False, *, other: Operand | None = None) -> Any:
    other = dim if isinstance(dim, Tensor | np.ndarray) else other
    if other is not None:
        return elementwise(casadi.fmin, input, other)
    return input.min() if dim is None else Extreme(input.min(dim, keepdim), Indices())


@lowers(*spelled("amax"), to="casadi")
def largest(input: Tensor, dim: Dims = (), keepdim: bool = False) -> Tensor:
    return input.max(dim, keepdim)


@lowers(*spelled("amin"), to="casadi")
def smallest(input: Tensor, dim: Dims = (), keepdim: bool = False) -> Tensor:
    return input.min(dim, keepdim)


def _root(x: casadi.MX) -> casadi.MX:
    """A square root whose derivatives at 0 are 0: torch's choice for the norm of a zero vector."""
    return casadi.if_else(x > 0, casadi.sqrt(casadi.if_else(x > 0, x, 1)), 0)


@lowers(*spelled("norm"), to="casadi")
def norm(input: Tensor, p: float | str | None = "fro", dim: Dims = None, keepdim: bool = False,
         dtype: object = None) -> Tensor:  # fmt: skip
    if p in ("fro", 2, None):
        return elementwise(_root, (input * input).sum(dim, keepdim))
    if p == 1:
        return abs(input).sum(dim, keepdim)
    if p == math.inf:
        return abs(input).max(dim, keepdim)
    raise Unsupported(f"the norm of order {p!r}: 1, 2 and inf have a lowering")


@lowers(torch.linalg.vector_norm, to="casadi")
def vector_norm(x: Tensor, ord: float = 2, dim: Dims = None, keepdim: bool = False, *, dtype: object = None) -> Tensor:
    return norm(x, ord, dim, keepdim)


@lowers(torch.linalg.norm, to="casadi")
def linalg_norm(A: Tensor, ord: float | str | None = None, dim: Dims = None, keepdim: bool = False) -> Tensor:
    if ord is not None and len(A.axes(dim)) > 1:
        raise Unsupported(f"the matrix norm of order {ord!r}")
    return norm(A, ord, dim, keepdim)


@lowers(torch.nn.functional.normalize, to="casadi")
def normalize(input: Tensor, p: float = 2.0, dim: Dims = 1, eps: float = 1e-12) -> Tensor:
    return input / clamp(norm(input, p, dim, keepdim=True), min=eps)


@lowers(*spelled("cumsum"), to="casadi")
def cumulative_sum(input: Tensor, dim: int, *, dtype: object = None) -> Tensor:
    axis = input.axes(dim)[0]
    order = [*(place for place in range(input.ndim) if place != axis), axis]
    last = input.permute(*order)
    length = input.shape[axis]
    return last.affine(np.tril(np.ones((length, length)))).permute(*np.argsort(order).tolist())


@lowers(*spelled("cumprod"), to="casadi")
def cumulative_product(input: Tensor, dim: int, *, dtype: object = None) -> Tensor:
    axis = input.axes(dim)[0]
    slices = [input.take(np.take(input.positions, place, axis=axis)) for place in range(input.shape[axis])]
    return stack(list(accumulate(slices, lambda left, right: left * right)), axis)


@lowers(*spelled("cosine_similarity"), to="casadi")
def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """Of each pair of vectors along `dim`; a length below `eps` counts as `eps`."""
    first, second = (clamp(norm(Tensor.of(x), 2, dim, keepdim=True), min=eps) for x in (x1, x2))
    return (Tensor.of(x1) / first * (Tensor.of(x2) / second)).sum(dim)


@lowers(torch.nn.CosineSimilarity, to="casadi")
def cosine_similarity_layer(layer: torch.nn.CosineSimilarity, x1: Tensor, x2: Tensor) -> Tensor:
    return cosine_similarity(x1, x2, layer.dim, layer.eps)


@lowers(torch._weight_norm, to="casadi")
def weight_norm(v: Tensor, g: Operand, dim: int = 0) -> Tensor:
    """Salimans and Kingma (2016): the direction of `v` for each index of `dim`, with length `g`."""
    others = tuple(axis for axis in range(v.ndim) if axis != dim % v.ndim)
    return v / norm(v, 2, others if dim != -1 else None, keepdim=True) * g
