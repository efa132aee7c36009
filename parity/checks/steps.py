"""What plain central differences would give at a fixed step: the curve that shows why the step matters.

It falls with the square of the step, until the solver's own errors, divided by the step, take over. It is shown and not
judged: `sensitivity` judges.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from parity.checks.solution import compare_arrays
from parity.checks.verdict import Finding
from parity.records import PASS
from parity.runtimes import Arrays

STEPS = tuple(10.0**-exponent for exponent in range(1, 11))
"""Relative to max(1, |θ|)."""


def name_of(step: float) -> str:
    """The name of the check: `step 1e-03`."""
    return f"step {step:.0e}"


def check_step(source: Any, target: Any, inputs: Arrays, dtype: str, step: float) -> Finding:
    """Central differences of the engine's own warm-started solves. Errors are relative to max(1, max|derivative|)."""
    point = inputs[0][0]
    start = target.map.solve(point)
    columns = []
    for index in range(len(point)):
        width = np.zeros(len(point))
        width[index] = step * max(1.0, abs(point[index]))
        above, below = (target.map.solve(point + sign * width, start).flat for sign in (1, -1))
        columns.append((above - below) / (2 * width[index]))
    truth = source.implicit(source.polished(point)).flat
    scale = max(1.0, float(np.abs(truth).max()))
    comparison = compare_arrays(np.stack(columns, axis=1) / scale, truth / scale, np.inf)
    return Finding(PASS, comparison, f"shown, not judged: off by {comparison.max_abs:.1e}")


STEP_CHECKS: dict[str, Callable[..., Finding]] = {name_of(step): partial(check_step, step=step) for step in STEPS}
