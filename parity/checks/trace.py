"""The network's own activations through every bound and constraint of a solver's model, without a solver.

What a solver says of its own model proves nothing about the network: two solvers agree on the wrong optimum of a model
whose big-M is too small. The true activations know: they must be feasible, and if not, the row names the layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from parity.checks.tolerance import LIMITS, Comparison
from parity.checks.verdict import Finding
from parity.errors import ParityError
from parity.records import FAIL, PASS
from parity.runtimes import Arrays

TOLERANCE = 1e-9
"""Largest relative residual that passes: far above rounding, far below what a solver's tolerance would hide."""


def check_trace(source: Any, target: Any, inputs: Arrays, dtype: str) -> Finding:
    """The worst residual over all samples; the finding blames the layer of the first broken row, in model order."""
    require_inside(target, inputs)
    activations = source.activations(inputs)
    worst, blamed = None, None
    for number in range(len(inputs[0])):
        x = np.concatenate([array[number].ravel() for array in inputs])
        violations = target.violations(x, {name: values[number] for name, values in activations.items()})
        if violations and (worst is None or violations[0].residual > worst.residual):
            worst, blamed = violations[0], violations[0].label
    if worst is None:
        return Finding(PASS, _comparison(0.0, 0.0, dtype), "no bound or constraint but those on the inputs")
    passed = bool(worst.residual <= TOLERANCE)
    message = f"residual {worst.residual:.3g} of {blamed}"
    layer = "" if passed or blamed is None else blamed.layer
    return Finding(PASS if passed else FAIL, _comparison(worst.residual, worst.amount, dtype), message, layer)


def require_inside(target: Any, inputs: Arrays) -> None:
    """Raise ParityError for inputs outside the box that the model holds in."""
    x = np.concatenate([array.reshape(len(array), -1) for array in inputs], axis=1)
    lower, upper = target.embedding.lower, target.embedding.upper
    if x.shape[1] != len(lower):
        raise ParityError(f"the model takes {len(lower)} inputs, not {x.shape[1]}")
    if ((x < lower) | (x > upper)).any():
        raise ParityError("an input lies outside the box that the model was made for: convert with box=(lower, upper)")


def _comparison(residual: float, amount: float, dtype: str) -> Comparison:
    ratio = residual / TOLERANCE * LIMITS[dtype]
    ulp = amount / float(np.finfo(np.float64).eps)
    return Comparison(ratio, amount, residual, ulp, residual, amount, residual <= TOLERANCE)
