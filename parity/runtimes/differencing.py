"""Derivatives of a solution by differences, with an estimate of their error: the truth that needs no formula.

`scipy.differentiate.jacobian` (central, order 8, steps halved until its own error estimate no longer falls) over
solves that are warm-started and converged to rounding. Steps stay where the active set is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from parity.runtimes.optimality import OptimalitySystem, Polished
from parity.runtimes.solution_map import SolveFailure

LARGEST_STEP = 2e-2
"""Relative to max(1, |θ|). The order-8 formula has no truncation error to speak of there on smooth problems."""
SMALLEST_STEP = 1e-7
ROUNDING = 1e-13
"""A tight solve's own error, relative to the solution: by `ROUNDING`/step it is the floor of any estimate."""
STEP_FACTOR = 2.0
ORDER = 8

Evaluate = Callable[[np.ndarray], np.ndarray]
"""θ to the flat solution. Raises `SolveFailure` where the active set is another."""


@dataclass(frozen=True, eq=False)
class Differences:
    """The Jacobian of the flat solution, shape (outputs, nθ), with an error estimate per element."""

    jacobian: np.ndarray
    error: np.ndarray
    steps: np.ndarray
    """The largest step that was possible for each parameter."""


def same_branch(system: OptimalitySystem, at: Polished) -> Evaluate:
    """Solves near `at` with its active set. One factorization serves as long as it converges."""
    try:
        factors = system._factorise(at)
    except SolveFailure:
        factors = None

    def evaluate(point: np.ndarray) -> np.ndarray:
        there = system.newton(Polished(at.variables, at.multipliers, at.side, point), factors)
        if system.violation(there) is not None:
            raise SolveFailure("the active set changes within the step")
        return system.solution(there).flat

    return evaluate


def difference(evaluate: Evaluate, point: np.ndarray) -> Differences:
    """Differentiate by every element of θ. Raises `SolveFailure` where even the smallest step leaves the branch."""
    from scipy.differentiate import jacobian

    here = evaluate(point)
    steps = np.array([_possible_step(evaluate, point, index) for index in range(len(point))])

    def stacked(points: np.ndarray) -> np.ndarray:
        flat = points.reshape(len(point), -1)
        values = np.stack([evaluate(flat[:, column]) for column in range(flat.shape[1])], axis=1)
        return values.reshape(len(here), *points.shape[1:])

    scale = max(1.0, float(np.abs(here).max()))
    found = jacobian(
        stacked, point, initial_step=steps, order=ORDER, maxiter=6, step_factor=STEP_FACTOR,
        tolerances={"atol": 1e-13 * scale, "rtol": 1e-13},
    )  # fmt: skip
    # Elements end at different steps, the last one at worst: rounding is amplified by that step.
    last = steps / STEP_FACTOR ** np.maximum(found.nit.max(axis=0) - 1, 0)
    error = np.maximum(np.nan_to_num(found.error, nan=np.inf), ROUNDING * scale / last)
    return Differences(found.df, error, steps)


def _possible_step(evaluate: Evaluate, point: np.ndarray, index: int) -> float:
    step = LARGEST_STEP * max(1.0, abs(point[index]))
    smallest = SMALLEST_STEP * max(1.0, abs(point[index]))
    while step > smallest:
        try:
            for sign in (-1.0, 1.0):
                there = point.copy()
                there[index] += sign * step
                evaluate(there)
            return step
        except SolveFailure:
            step /= 4
    raise SolveFailure(f"the active set changes within {smallest:.0e} of parameter {index}")
