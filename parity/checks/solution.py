"""Solutions against the reference's: the same states, controls and value at every point of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from parity.checks.tolerance import LIMITS, Comparison
from parity.checks.verdict import Finding
from parity.records import DEGENERATE, FAIL, PASS
from parity.runtimes import Arrays

TOLERANCE = 1e-5
"""Of states and controls, relative to max(1, max|solution|): interior-point engines at their default tolerance of 1e-6
are off by up to their tolerance times the condition of the problem. Derivatives are judged far more closely."""
OTHER_OPTIMUM = 1e-3
"""A solution this far away, that satisfies the optimality conditions too, is another local optimum."""


def check_solution(source: Any, target: Any, inputs: Arrays, dtype: str) -> Finding:
    """Compare for a batch of points. Another local optimum is `degenerate`, with both values in the message."""
    elsewhere = []
    results, truths = [], []
    for point in inputs[0]:
        found = target.map.solve(point)
        truth = source.solution(point)
        if distance(found.flat, truth.flat) > OTHER_OPTIMUM:
            nearest = source.system.solution(source.polished_from(found))
            if distance(found.flat, nearest.flat) < TOLERANCE:
                elsewhere.append(f"value {found.value:.6g} instead of {truth.value:.6g}")
                truth = nearest
        results.append(found.flat)
        truths.append(truth.flat)
    comparison = compare_arrays(np.stack(results), np.stack(truths), TOLERANCE)
    if not comparison.passed:
        return Finding(FAIL, comparison, f"off by {comparison.max_abs:.1e}")
    if elsewhere:
        return Finding(DEGENERATE, comparison, f"another local optimum: {'; '.join(elsewhere)}")
    return Finding(PASS, comparison)


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Largest difference relative to max(1, max|second|)."""
    return float(np.abs(first - second).max()) / max(1.0, float(np.abs(second).max()))


def compare_arrays(result: np.ndarray, truth: np.ndarray, limit: float | np.ndarray) -> Comparison:
    """Errors of `result`, where an element may be off by `limit` times max(1, max|truth|).

    The error ratio is in the unit of the other checks: 10 (`LIMITS`) is the largest that passes. NaN fails.
    """
    scale = max(1.0, float(np.abs(truth).max()))
    error = np.abs(result - truth)
    ratio = float((error / (limit * scale)).max()) * LIMITS["float64"]
    with np.errstate(all="ignore"):
        relative = float(np.where(error == 0, 0.0, error / np.abs(truth)).max())
        units = float(np.where(error == 0, 0.0, error / np.spacing(np.abs(truth))).max())
    return Comparison(
        error_ratio=ratio,
        max_abs=float(error.max()),
        max_rel=relative,
        max_ulp=units,
        rtol_needed=relative,
        atol_needed=float(error.max()),
        passed=bool(ratio <= LIMITS["float64"]),
    )
