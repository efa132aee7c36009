"""What the tests of torch→casadi share: models made of functions, and the comparison with torch.func in float64."""

from __future__ import annotations

import copy
import math

import casadi
import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from parity.cases.weights import draw_inputs
from parity.converters.torch_casadi import reference
from parity.runtimes.casadi import CasadiRuntime
from parity.runtimes.torch import TorchRuntime

TOLERANCE = 1e-12
"""Of the largest element of what is compared, or of 1 where all are smaller."""


class Call(nn.Module):
    """A function as a module of one input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class CallTwo(Call):
    def forward(self, x, y):
        return self.function(x, y)


def deviation(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest error, relative to the largest element or 1. Infinite if anything is not finite."""
    assert got.shape == expected.shape
    if not np.isfinite(got).all():
        return math.inf
    return float(np.abs(got - expected).max(initial=0.0) / max(1.0, np.abs(expected).max(initial=0.0)))


def check(model: nn.Module, inputs: tuple[np.ndarray, ...], tolerance: float = TOLERANCE, **options) -> casadi.Function:
    """Value, Jacobian and Hessian are torch's."""
    function = reference(model, tuple(torch.from_numpy(array) for array in inputs), **options)
    compare(model, function, inputs, tolerance)
    return function


def outputs_of(model: nn.Module, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
    """All outputs in one row, whatever their first dimension is."""
    with torch.no_grad():
        outputs = copy.deepcopy(model).double()(*map(torch.from_numpy, inputs))
    return np.concatenate([leaf.numpy().ravel() for leaf in pytree.tree_leaves(outputs)])


def hessian_of(model: nn.Module, inputs: tuple[np.ndarray, ...], projection: np.ndarray) -> np.ndarray:
    """By torch.func; row by row where torch 2.13 cannot batch it (group_norm whose output's gradient is constant)."""
    try:
        return TorchRuntime(model, "float64").hessian(inputs, projection)
    except RuntimeError as error:
        if "doesn't match the broadcast shape" not in str(error) or len(inputs) > 1:
            raise
    double = copy.deepcopy(model).double().requires_grad_(False)
    x = torch.from_numpy(inputs[0])
    weights = torch.from_numpy(projection)
    rows = torch.autograd.functional.hessian(lambda x: double(x).flatten() @ weights, x)
    return rows.reshape(x.numel(), x.numel()).numpy()


def compare(model, function, inputs, tolerance=TOLERANCE, checks=("value", "jacobian", "hessian")):
    expected, got = TorchRuntime(model, "float64"), CasadiRuntime(function)
    value = outputs_of(model, inputs)
    results = function.call([casadi.DM(array.ravel()) for array in inputs])
    assert deviation(np.concatenate([np.asarray(result).ravel() for result in results]), value) <= tolerance, "value"
    projection = np.random.RandomState(0).standard_normal(value.size)
    if "jacobian" in checks:
        assert deviation(got.jacobian(inputs), expected.jacobian(inputs)) <= tolerance, "jacobian"
    if "hessian" in checks:
        hessian = hessian_of(model, inputs, projection)
        assert deviation(got.hessian(inputs, projection), hessian) <= tolerance, "hessian"


def draw(*shapes: tuple[int, ...], positive: bool = False) -> tuple[np.ndarray, ...]:
    arrays = tuple(array[0] for array in draw_inputs("functions", "normal", 1, shapes))
    return tuple(np.abs(array) / 4 + 0.1 for array in arrays) if positive else arrays
