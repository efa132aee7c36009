"""Plain central differences of an engine's own solves, over many steps: the curve that shows why the step matters.

The error falls with the square of the step, until the solver's own errors, divided by the step, take over. The best
step is judged; what the others give is shown.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from parity.checks.solution import TOLERANCE, compare_arrays
from parity.checks.verdict import Finding
from parity.records import FAIL, PASS
from parity.runtimes import Arrays
from parity.runtimes.solution_map import SolveFailure, central_differences

STEPS = tuple(10.0**-exponent for exponent in range(1, 11))
"""Relative to max(1, |θ|)."""


def check_steps(source: Any, target: Any, inputs: Arrays, dtype: str) -> Finding:
    """Warm-started at the solution. Errors are relative to max(1, max|derivative|); a step may leave no solution."""
    point = inputs[0][0]
    start = target.map.solve(point)
    truth = source.implicit(source.polished(point)).flat
    scale = max(1.0, float(np.abs(truth).max()))
    curve = {}
    for step in STEPS:
        try:
            found = central_differences(lambda there: target.map.solve(there, start).flat, point, step)
        except SolveFailure:
            continue
        curve[step] = compare_arrays(found / scale, truth / scale, TOLERANCE)
    if not curve:
        raise SolveFailure("no step leaves a problem that can be solved")
    best = min(curve.values(), key=lambda each: each.error_ratio)
    message = ", ".join(f"{each.max_abs:.1e} at step {step:.0e}" for step, each in curve.items())
    return Finding(PASS if best.passed else FAIL, best, f"off by {message}")
