"""Runtimes execute one representation: inputs to outputs, and where they can, derivatives. Imports no framework."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from parity.errors import ParityError

Arrays = tuple[np.ndarray, ...]


class Runtime(Protocol):
    """What every runtime offers. Inputs are arrays with the batch axis first; all arrays are float64.

    A value is a matrix (batch, outputs): every output tensor flattened in row-major order, one after the other.
    Derivatives are of one sample (batch 1) by all inputs, flattened and joined likewise.
    """

    representation: str
    dtype: str
    """The precision it computes in: `float64` or `float32`."""
    artifact_bytes: int | None
    """Size of what it executes, as it would be stored."""

    def value(self, inputs: Arrays) -> np.ndarray:
        """Outputs, shape (batch, outputs)."""

    def jacobian(self, inputs: Arrays) -> np.ndarray:
        """Derivatives of the outputs by the inputs, shape (outputs, inputs)."""

    def hessian(self, inputs: Arrays, projection: np.ndarray) -> np.ndarray:
        """Second derivatives of `projection @ outputs` by the inputs, shape (inputs, inputs)."""

    def caller(self, check: str, inputs: Arrays, projection: np.ndarray) -> Callable[[], object]:
        """A ready-made call without arguments of what `check` compares, for timing: nothing is prepared inside."""

    def caller_description(self, check: str) -> str:
        """What that call is, in a few words for the report."""


class SourceRuntime(Runtime, Protocol):
    """A runtime that can also be the reference: it knows the rounding of its own operators."""

    model: Any
    """The source itself, in this runtime's precision and in inference mode."""

    def rounding(self, dtype: str, seed: int) -> AbstractContextManager[float]:
        """Within it, every operator rounds at random as `dtype` would, more coarsely by the factor that it gives."""

    def validate(self, inputs: Arrays) -> None:
        """Raise `ParityError` for what no comparison can judge: NaN weights, inputs that the model does not take."""

    def example(self, inputs: Arrays) -> tuple[Any, ...]:
        """The inputs as tensors of the source's own framework, in this runtime's precision."""

    def prefixes(self, inputs: Arrays) -> Iterator[tuple[str, Any]]:
        """The model up to each of its operations, shortest first, with the operation's name."""


_RUNTIMES = {
    "torch.nn.modules.module.Module": ("torch", "parity.runtimes.torch", "TorchRuntime"),
    "parity.cases.ocp.OptimalControlProblem": ("ocp", "parity.runtimes.ocp", "OcpRuntime"),
    "parity.runtimes.solution_map.SolutionMap": ("solution-map", "parity.runtimes.solution_map", "SolutionMapRuntime"),
    "casadi.casadi.Function": ("casadi", "parity.runtimes.casadi", "CasadiRuntime"),
}


def _entry(artifact: object) -> tuple[str, str, str] | None:
    for base in type(artifact).__mro__:
        if found := _RUNTIMES.get(f"{base.__module__}.{base.__qualname__}"):
            return found
    return None


def representation_of(artifact: object) -> str | None:
    """Name of the representation that an object is in (`torch`, `casadi`, …), or None if it is none of them."""
    found = _entry(artifact)
    return found and found[0]


def runtime_for(artifact: Any, dtype: str | None = None) -> Any:
    """The runtime that executes `artifact`, by its type, in `dtype` where the representation leaves the choice.

    Raises ParityError for an object that no runtime knows.
    """
    found = _entry(artifact)
    if found is None:
        known = ", ".join(sorted(_RUNTIMES))
        raise ParityError(f"no runtime executes a {type(artifact).__module__}.{type(artifact).__qualname__}: {known}")
    _, module, name = found
    return getattr(importlib.import_module(module), name)(artifact, dtype)
