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
    """What runtimes offer: all of them values, and the derivatives that their path's checks ask for.

    Inputs are arrays with the batch axis first; all arrays are float64. A value is a matrix (batch, outputs): every
    output tensor flattened in row-major order, one after the other (dictionaries by key). Jacobians and Hessians are of
    one sample (batch 1) by all inputs, flattened and joined likewise.
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

    def vjp(self, inputs: Arrays, cotangent: np.ndarray) -> np.ndarray:
        """Derivatives of `sum(cotangent * value)` by the inputs, shape (batch, inputs); `cotangent` as the value."""

    def structure(self) -> dict[str, int]:
        """How many numbers are `trainable`, and how many `other` it keeps: frozen parameters and statistics."""

    def trained_value(self, inputs: Arrays, cotangent: np.ndarray) -> np.ndarray:
        """The value after one step: every trainable parameter less its derivative of `sum(cotangent * value)`.

        The step is made in training mode, which may move statistics too; the runtime's own model stays as it is.
        """

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

    def activations(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The output of every operation by its name, shape (batch, elements); without names that occur twice."""

    def amplification(self, inputs: Arrays, projection: np.ndarray) -> float:
        """By how much errors of one unit in all intermediate values may add up in `projection @ outputs`."""

    def prefixes(self, inputs: Arrays) -> Iterator[tuple[str, Any]]:
        """The model up to each of its operations, shortest first, with the operation's name."""

    def remark(self, layer: str) -> str:
        """One sentence on what converters often get wrong about a layer of that name; empty if nothing is known."""


_RUNTIMES = {
    "torch.nn.modules.module.Module": ("torch", "parity.runtimes.torch", "TorchRuntime"),
    "onnx.onnx_ml_pb2.ModelProto": ("onnx", "parity.runtimes.onnx", "OnnxRuntime"),
    "parity.caffe_format.model.CaffeModel": ("caffe", "parity.runtimes.caffe", "runtime"),
    "keras.src.models.model.Model": ("keras", "parity.runtimes.keras", "KerasRuntime"),
    "parity.cases.ocp.OptimalControlProblem": ("ocp", "parity.runtimes.ocp", "OcpRuntime"),
    "parity.runtimes.solution_map.SolutionMap": ("solution-map", "parity.runtimes.solution_map", "SolutionMapRuntime"),
    "casadi.casadi.Function": ("casadi", "parity.runtimes.casadi", "CasadiRuntime"),
    "parity.embedding.CasadiEmbedding": (
        "optimization",
        "parity.runtimes.optimization.casadi",
        "CasadiOptimizationRuntime",
    ),
    "parity.embedding.PyomoEmbedding": (
        "optimization",
        "parity.runtimes.optimization.pyomo",
        "PyomoOptimizationRuntime",
    ),
    "parity.embedding.ScipEmbedding": ("optimization", "parity.runtimes.optimization.scip", "ScipOptimizationRuntime"),
    "parity.embedding.GurobiEmbedding": (
        "optimization",
        "parity.runtimes.optimization.gurobi",
        "GurobiOptimizationRuntime",
    ),
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
