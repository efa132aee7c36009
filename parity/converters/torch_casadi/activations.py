"""Activations. Written so that CasADi's derivatives, of any order, are finite and right for every input.

CasADi differentiates both branches of `if_else` and multiplies by the condition: an infinite derivative of the branch
not taken would give NaN. So its argument is held near the switching point. Comparisons have no derivative, and the side
that a switching point belongs to is torch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import casadi
import numpy as np
from torch import nn

from parity.converters.registry import lowers
from parity.converters.torch_casadi.parameters import weights
from parity.converters.torch_casadi.spelling import spelled
from parity.converters.torch_casadi.tensor import Axes, Operand, Tensor, elementwise, held

Expression = Any
"""A `casadi.MX`, or a number where a lowering mixes it with one."""


def _minus_magnitude(x: Expression) -> Expression:
    """-|x|, with the slope of its right side at 0 (CasADi's |x| has slope 0 there, half-way between the sides)."""
    return casadi.if_else(x < 0, x, -x)


def logistic(x: Expression) -> Expression:
    """1 / (1 + exp(-x)), accurate in both tails: below -700 the exponential would overflow, and the value is 1e-304."""
    return 1 / (1 + casadi.exp(-casadi.fmax(x, -700.0)))


def _positive(x: Expression) -> Expression:
    return casadi.if_else(x > 0, x, 0)


def log_one_plus_exp(x: Expression) -> Expression:
    """log(1 + exp(x)), accurate in both tails."""
    return casadi.if_else(x < 0, 0, x) + casadi.log1p(casadi.exp(_minus_magnitude(x)))


def _log_sigmoid(x: Expression) -> Expression:
    return casadi.if_else(x < 0, x, 0) - casadi.log1p(casadi.exp(_minus_magnitude(x)))


def _softplus(x: Expression, beta: float = 1.0, threshold: float = 20.0) -> Expression:
    highest = min(threshold, 700.0)  # from 37 on, log(1 + exp(x)) is x; from 710 on, exp(x) is infinite
    scaled = beta * x
    smooth = casadi.log1p(casadi.exp(casadi.fmin(scaled, highest + 1))) / beta
    return casadi.if_else(scaled > highest, x, smooth)


def _elu(x: Expression, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Expression:
    negative = (scale * alpha) * casadi.expm1(casadi.fmin(input_scale * x, 1))
    return casadi.if_else(x > 0, scale * x, negative)


def _selu(x: Expression) -> Expression:
    """Klambauer et al. (2017); the two numbers are torch's."""
    return _elu(x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


def _celu(x: Expression, alpha: float = 1.0) -> Expression:
    return _elu(x, alpha, 1.0, 1.0 / alpha)


def _gelu(x: Expression, approximate: str = "none") -> Expression:
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
        return 0.5 * x * (1 + casadi.tanh(inner))
    return 0.5 * x * (1 + casadi.erf(x * math.sqrt(0.5)))


def _clip(x: Expression, low: float, high: float) -> Expression:
    """Constant from each bound on, the bounds included: fmin and fmax would have slope 1/2 there."""
    inside = casadi.logic_and(x > low, x < high)
    return casadi.if_else(inside, x, casadi.if_else(x <= low, low, high))


def _hard_sigmoid(x: Expression) -> Expression:
    return _clip(x + 3, 0.0, 6.0) / 6


def _hard_swish(x: Expression) -> Expression:
    middle = x * (casadi.fmax(casadi.fmin(x, 4), -4) + 3) / 6
    return casadi.if_else(x <= -3, 0, casadi.if_else(x >= 3, x, middle))


def _leaky(x: Expression, slope: Expression = 0.01) -> Expression:
    return casadi.if_else(x > 0, x, slope * x)


def _hard_shrink(x: Expression, bound: float = 0.5) -> Expression:
    return casadi.if_else(casadi.logic_and(x >= -bound, x <= bound), 0, x)


def _soft_shrink(x: Expression, bound: float = 0.5) -> Expression:
    return casadi.if_else(x > bound, x - bound, casadi.if_else(x < -bound, x + bound, 0))


def _threshold(x: Expression, threshold: float, value: float) -> Expression:
    return casadi.if_else(x > threshold, x, value)


def _activation(function: Callable[..., Expression], layer_type: type[nn.Module], attributes: str, *names: str) -> None:
    """Register a function of elements for a layer, with those attributes as arguments, and for torch's functions."""
    order = attributes.split()

    def lower(x: Operand, *arguments: Any, inplace: bool = False, **options: Any) -> Tensor:
        positional = arguments[: len(order)]  # one more would be `inplace`
        given = [options[name] for name in order[len(positional) :] if name in options]
        return elementwise(lambda elements: function(elements, *positional, *given), x)

    def lower_layer(layer: nn.Module, x: Operand) -> Tensor:
        return lower(x, *(getattr(layer, name) for name in order))

    lowers(*spelled(*names), to="casadi")(lower)
    lowers(layer_type, to="casadi")(lower_layer)


_activation(_positive, nn.ReLU, "", "relu")
_activation(logistic, nn.Sigmoid, "", "sigmoid", "expit")
_activation(casadi.tanh, nn.Tanh, "", "tanh")
_activation(_log_sigmoid, nn.LogSigmoid, "", "logsigmoid")
_activation(_softplus, nn.Softplus, "beta threshold", "softplus")
_activation(_elu, nn.ELU, "alpha", "elu")
_activation(_selu, nn.SELU, "", "selu")
_activation(_celu, nn.CELU, "alpha", "celu")
_activation(_gelu, nn.GELU, "approximate", "gelu")
_activation(lambda x: x * logistic(x), nn.SiLU, "", "silu")
_activation(lambda x: x * casadi.tanh(log_one_plus_exp(x)), nn.Mish, "", "mish")
_activation(lambda x: x / (1 + casadi.fabs(x)), nn.Softsign, "", "softsign")
_activation(lambda x, low=-1.0, high=1.0: _clip(x, low, high), nn.Hardtanh, "min_val max_val", "hardtanh")
_activation(lambda x: _clip(x, 0.0, 6.0), nn.ReLU6, "", "relu6")
_activation(_hard_sigmoid, nn.Hardsigmoid, "", "hardsigmoid")
_activation(_hard_swish, nn.Hardswish, "", "hardswish")
_activation(_leaky, nn.LeakyReLU, "negative_slope", "leaky_relu")
_activation(_hard_shrink, nn.Hardshrink, "lambd", "hardshrink")
_activation(_soft_shrink, nn.Softshrink, "lambd", "softshrink")
_activation(lambda x: x - casadi.tanh(x), nn.Tanhshrink, "", "tanhshrink")
_activation(_threshold, nn.Threshold, "threshold value", "threshold")


@lowers(*spelled("prelu"), to="casadi")
def prelu(x: Tensor, weight: Operand) -> Tensor:
    """One slope for all, or one for each channel (dimension 1)."""
    slopes = Tensor.of(weight)
    return elementwise(_leaky, x, slopes.reshape(-1, *(1,) * (x.ndim - 2)) if slopes.size > 1 else weight)


@lowers(nn.PReLU, to="casadi")
def prelu_layer(layer: nn.PReLU, x: Tensor) -> Tensor:
    return prelu(x, *weights(layer, "weight"))


# --- over a dimension -------------------------------------------------------------------------------------------------


def _shift(x: Tensor, dim: Axes) -> Tensor:
    """The maximum along `dim`. Any shift cancels in softmax and logsumexp, so holding it leaves derivatives exact."""
    return elementwise(held, x.max(dim, keepdim=True))


@lowers(*spelled("softmax"), to="casadi")
def softmax(x: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: object = None) -> Tensor:
    """exp(x) over its sum along `dim`."""
    dim = _implicit(x, dim)
    grown = elementwise(casadi.exp, x - _shift(x, dim))
    return grown / grown.sum(dim, keepdim=True)


@lowers(*spelled("log_softmax"), to="casadi")
def log_softmax(x: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: object = None) -> Tensor:
    """The logarithm of softmax."""
    dim = _implicit(x, dim)
    shifted = x - _shift(x, dim)
    return shifted - elementwise(casadi.log, elementwise(casadi.exp, shifted).sum(dim, keepdim=True))


@lowers(*spelled("softmin"), to="casadi")
def softmin(x: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: object = None) -> Tensor:
    """softmax(-x)."""
    return softmax(-x, dim)


@lowers(*spelled("logsumexp"), to="casadi")
def logsumexp(x: Tensor, dim: int | tuple[int, ...], keepdim: bool = False) -> Tensor:
    """The logarithm of the sum of exponentials along `dim`."""
    shift = _shift(x, dim)
    total = shift + elementwise(casadi.log, elementwise(casadi.exp, x - shift).sum(dim, keepdim=True))
    return total if keepdim else total.reshape(*x.sum(dim).shape)


@lowers(*spelled("glu"), to="casadi")
def glu(x: Tensor, dim: int = -1) -> Tensor:
    """The first half along `dim`, gated by the sigmoid of the second."""
    first, second = (x.take(half) for half in np.split(x.positions, 2, axis=dim))
    return first * elementwise(logistic, second)


def _implicit(x: Tensor, dim: int | None) -> int:
    """torch's choice where `dim` is None."""
    return dim if dim is not None else (0 if x.ndim in (0, 1, 3) else 1)


for _type, _function in ((nn.Softmax, softmax), (nn.LogSoftmax, log_softmax), (nn.Softmin, softmin), (nn.GLU, glu)):

    @lowers(_type, to="casadi")
    def along_dimension(layer: nn.Module, x: Tensor, _function: Callable[..., Tensor] = _function) -> Tensor:
        """The function along the layer's `dim`."""
        return _function(x, layer.dim)


@lowers(nn.Softmax2d, to="casadi")
def softmax_over_channels(layer: nn.Softmax2d, x: Tensor) -> Tensor:
    return softmax(x, -3)
