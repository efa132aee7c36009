"""What Keras computes on its TensorFlow backend for a case, and what a torch module computes: for the keras tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

import numpy as np
import torch

from parity.cases.generate import generate, generate_layer
from parity.cases.keras_layers import KERAS, build
from parity.cases.keras_modules import fill
from parity.cases.spec import ModelSpec
from parity.cases.weights import draw_inputs, random_state
from parity.converters.keras_torch import reference
from parity.runtimes.keras import KerasRuntime, in_precision

TYPES = {"float32": torch.float32, "float64": torch.float64}
TOLERANCE = {"float64": 1e-12, "float32": 2e-5}
"""Of a value, in units of the largest element (at least 1)."""


@dataclass(frozen=True)
class Oracle:
    """One model in one precision with its inputs and results."""

    spec: ModelSpec
    dtype: str
    model: Any
    inputs: tuple[np.ndarray, ...]
    projection: np.ndarray
    value: np.ndarray
    gradient: np.ndarray

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.dtype]


def layer_spec(name: str, number: int) -> ModelSpec:
    return generate_layer(Random(f"{name}-0-{number}"), KERAS, KERAS[name], 0, number)


def graph_spec(number: int) -> ModelSpec:
    return generate(Random(f"keras-dag-0-{number}"), KERAS)


def oracle_of(spec: ModelSpec, seed: str, dtype: str, batch: int = 3) -> Oracle:
    model = build(spec)
    fill(model, seed)
    if dtype == "float64":
        model = in_precision(model, "float64")
    runtime = KerasRuntime(model)
    inputs = draw_inputs(seed, "normal", batch, spec.input_shapes)
    value = runtime.value(inputs)
    projection = random_state(seed, "projection").standard_normal(value.shape)
    return Oracle(spec, dtype, model, inputs, projection, value, runtime.vjp(inputs, projection))


@cache
def layer_oracle(name: str, number: int, dtype: str) -> Oracle:
    return oracle_of(layer_spec(name, number), f"{name}-0-{number}", dtype)


def run(module: torch.nn.Module, oracle: Oracle) -> tuple[np.ndarray, np.ndarray]:
    """Value and gradient of a torch module, as `KerasRuntime` shapes them."""
    tensors = [torch.tensor(array, dtype=TYPES[oracle.dtype], requires_grad=True) for array in oracle.inputs]
    flat = torch.cat([output.flatten(1) for output in outputs_of(module(*tensors))], dim=1)
    gradients: Any = [None] * len(tensors)
    if flat.requires_grad:
        scalar = (flat * torch.tensor(oracle.projection, dtype=flat.dtype)).sum()
        gradients = torch.autograd.grad(scalar, tensors, allow_unused=True)
    parts = [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, tensors, strict=True)]
    return flat.detach().double().numpy(), np.concatenate([part.flatten(1).double().numpy() for part in parts], axis=1)


def outputs_of(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [result[key] for key in sorted(result)] if isinstance(result, dict) else list(result)


def error(result: np.ndarray, expected: np.ndarray) -> float:
    """The largest error in units of the largest element, or of 1; infinite where there is a NaN."""
    if result.shape != expected.shape:
        return np.inf
    worst = np.max(np.abs(result - expected)) / max(1.0, np.max(np.abs(expected)))
    return float(worst) if np.isfinite(worst) else np.inf


def errors(oracle: Oracle, convert: Callable[..., torch.nn.Module] = reference) -> tuple[float, float]:
    """Of value and gradient, each over its tolerance: at most 1 is right."""
    value, gradient = run(convert(oracle.model).eval(), oracle)
    return error(value, oracle.value) / oracle.tolerance, error(gradient, oracle.gradient) / (10 * oracle.tolerance)
