"""Scalar functions that layers are made of: NumPy's formula and the interval rule of each. Imports no framework."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import erf, expit

Array = np.ndarray


@dataclass(frozen=True)
class Function:
    """An elementwise function f(u, *parameters)."""

    evaluate: Callable[..., Array]
    minimum_at: float | None = None
    """Where it falls before and rises after; None for a function that only rises."""
    kinked: bool = False
    """It has points without a derivative."""

    def interval(self, lower: Array, upper: Array, *parameters: float) -> tuple[Array, Array]:
        """Bounds on f over [lower, upper]; both vectors, infinities allowed."""
        with np.errstate(all="ignore"):
            at_lower, at_upper = self.evaluate(lower, *parameters), self.evaluate(upper, *parameters)
            at_lower = np.where(np.isneginf(lower) & np.isnan(at_lower), 0.0, at_lower)
            at_upper = np.where(np.isneginf(upper) & np.isnan(at_upper), 0.0, at_upper)
            if self.minimum_at is None:
                return at_lower, at_upper
            bottom = self.evaluate(np.array([self.minimum_at]), *parameters)[0]
            inside = (lower < self.minimum_at) & (self.minimum_at < upper)
            return np.where(inside, bottom, np.minimum(at_lower, at_upper)), np.maximum(at_lower, at_upper)


def softplus(u: Array, beta: float, threshold: float) -> Array:
    """log(1 + exp(βu)) / β, and u where βu exceeds the threshold, as torch has it."""
    scaled = beta * u
    return np.where(scaled > threshold, u, np.logaddexp(0.0, scaled) / beta)


def gelu_tanh(u: Array) -> Array:
    return 0.5 * u * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u * u * u)))


def smooth_relu(u: Array, epsilon: float) -> Array:
    """(u + √(u² + ε²)) / 2, which lies above max(u, 0) by at most ε / 2."""
    return 0.5 * (u + np.hypot(u, epsilon))


def leaky_relu(u: Array, slope: float) -> Array:
    return np.where(u > 0, u, slope * u)


FUNCTIONS = {
    "exp": Function(np.exp),
    "log": Function(np.log),
    "sqrt": Function(np.sqrt),
    "tanh": Function(np.tanh),
    "sigmoid": Function(expit),
    "softplus": Function(softplus),
    "gelu": Function(lambda u: 0.5 * u * (1 + erf(u * math.sqrt(0.5))), minimum_at=-0.7517915246935645),
    "gelu_tanh": Function(gelu_tanh, minimum_at=-0.7524614220710162),
    "silu": Function(lambda u: u * expit(u), minimum_at=-1.2784645427610738),
    "elu": Function(lambda u, alpha: np.where(u > 0, u, alpha * np.expm1(np.minimum(u, 0.0))), kinked=True),
    "relu": Function(lambda u: np.maximum(u, 0.0), kinked=True),
    "leaky_relu": Function(leaky_relu, kinked=True),
    "clip": Function(lambda u, low, high: np.clip(u, low, high), kinked=True),
    "smooth_relu": Function(smooth_relu),
    "is_positive": Function(lambda u: (u > 0).astype(float), kinked=True),
}
