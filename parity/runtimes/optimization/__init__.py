"""Executes networks inside solvers' models: evaluates their expressions, and solves small problems over their inputs.

One module per kind of artifact of `parity.embedding`. Imports no framework and no solver.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from parity.embedding import Embedding, Label
from parity.errors import Unsupported
from parity.runtimes import Arrays

OPTIMAL, LOCAL, LIMIT, INFEASIBLE, STUCK = "optimal", "local", "limit", "infeasible", "stuck"
"""How a solve ended: with a proven optimum, at a local one, at the time limit, without any point, or with no result."""


@dataclass(frozen=True)
class Solution:
    """The end of one maximisation of weights @ y; `x` and `value` are None where the solver gave no point."""

    outcome: str
    status: str
    """The solver's own word."""
    seconds: float
    x: np.ndarray | None = None
    value: float | None = None


@dataclass(frozen=True)
class Violation:
    """The worst residual of a bound or a constraint, over its own scale."""

    label: Label
    residual: float
    amount: float


class OptimizationRuntime:
    """What the runtimes of all embeddings share. Values and derivatives come from expressions, without a solver."""

    representation = "optimization"
    dtype = "float64"

    def __init__(self, embedding: Embedding, dtype: str | None = None) -> None:
        self.embedding = embedding

    @property
    def artifact_bytes(self) -> int | None:
        return None

    @property
    def model_size(self) -> dict[str, int]:
        """The record's columns on the model's size."""
        size = self.embedding.size
        return {"variables": size.variables, "constraints": size.constraints, "binaries": size.binaries}

    def value(self, inputs: Arrays) -> np.ndarray:
        """Outputs by the model's expressions, shape (batch, outputs); raises Unsupported where it has none."""
        raise Unsupported(f"{self._name} gives no expression of its outputs: the checks with a solver judge it")

    def jacobian(self, inputs: Arrays) -> np.ndarray:
        raise Unsupported(f"{self._name} gives no derivatives: its solver takes them itself")

    def hessian(self, inputs: Arrays, projection: np.ndarray) -> np.ndarray:
        raise Unsupported(f"{self._name} gives no derivatives: its solver takes them itself")

    def violations(self, x: np.ndarray, activations: Mapping[str, np.ndarray]) -> list[Violation]:
        """Residuals of every bound and constraint at the network's own activations, worst first; no solver runs."""
        raise Unsupported(f"{self._name} does not say which variable is which neuron: only its solver can be judged")

    def maximise(
        self, weights: np.ndarray, fixed: np.ndarray | None = None, start: np.ndarray | None = None
    ) -> Solution:
        """Maximise weights @ y over the box, or with the inputs fixed; `start` is where a local solver begins."""
        raise NotImplementedError

    def caller(self, check: str, inputs: Arrays, projection: np.ndarray) -> Callable[[], object]:
        if check == "optimum":
            return lambda: self.maximise(projection)
        if check == "fixed":
            x = flat(inputs)[0]
            return lambda: self.maximise(projection, fixed=x)
        if check == "jacobian":
            return lambda: self.jacobian(inputs)
        if check == "hessian":
            return lambda: self.hessian(inputs, projection)
        return lambda: self.value(inputs)

    def caller_description(self, check: str) -> str:
        ways = {"optimum": "maximum over the box", "fixed": "maximum at a fixed input"}
        return f"{self.embedding.solver}, {ways[check]}" if check in ways else f"{check} by the model's expression"

    @property
    def _name(self) -> str:
        return f"this model for {self.embedding.solver}"


def flat(inputs: Arrays) -> np.ndarray:
    """One row per sample, all inputs joined."""
    return np.concatenate([array.reshape(len(array), -1) for array in inputs], axis=1)


def worst(
    values: np.ndarray, lower: np.ndarray, upper: np.ndarray, labels: Any, *, scale: np.ndarray | None = None
) -> Iterator[Violation]:
    """How far values lie outside their bounds: the worst of each label, relative to 1 + their size."""
    with np.errstate(invalid="ignore"):
        amount = np.maximum(np.maximum(lower - values, values - upper), 0.0)
    amount = np.where(np.isnan(values), np.inf, amount)
    relative = amount / (1.0 + (np.abs(values) if scale is None else scale))
    found: dict[Label, int] = {}
    for index, label in enumerate(labels):
        if label not in found or relative[index] > relative[found[label]]:
            found[label] = index
    for label, index in found.items():
        yield Violation(label, float(relative[index]), float(amount[index]))


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = perf_counter()

    @property
    def seconds(self) -> float:
        return perf_counter() - self._start


@contextmanager
def quiet() -> Iterator[None]:
    """Keep a solver's banner, which it writes past Python, and its warnings off the terminal: the status says it."""
    sys.stdout.flush()
    saved, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)
