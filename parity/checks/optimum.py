"""What a solver makes of the model: the network's value at a fixed input, and its largest value over a box.

A residual that the solver allows in every constraint reaches the output amplified by the network. So the permitted
error is `embedding.error` (the solver's tolerance, and what the formulation makes of it), times the network's
amplification Σ |∂y/∂v| (1 + |v|) over all intermediate values v, in the neighbourhood of the point: computed, per case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from parity.checks.derivatives import projection
from parity.checks.tolerance import LIMITS, Comparison
from parity.checks.trace import require_inside
from parity.checks.verdict import Finding
from parity.records import DEGENERATE, ERROR, FAIL, PASS, TIMEOUT
from parity.runtimes import Arrays
from parity.runtimes.optimization import flat

NEIGHBOURS = 12
RADIUS = 1e-4
"""Of the neighbourhood, in parts of the box: a derivative that jumps at the point itself is met on both sides."""
ROUNDING = 1e-12
"""Relative error that is permitted beside the solver's."""
SAMPLES, ROUNDS, KEPT, SHRINK = 2048, 48, 8, 0.62
"""Of the search: random points, rounds around the best, how many of these, and how their neighbourhood shrinks."""

SOLVED = ("optimal", "local", "limit")


def check_fixed(source: Any, target: Any, inputs: Arrays, dtype: str) -> Finding:
    """With the inputs fixed, both the largest and the smallest output that the model allows are the network's.

    Their distance shows a leak: a model that lets the output go elsewhere. One random projection of the outputs.
    """
    require_inside(target, inputs)
    weights = projection(source.value(inputs).shape[1])
    x = flat(inputs)[0]
    solutions = [target.maximise(sign * weights, fixed=x) for sign in (1.0, -1.0)]
    words = _words(target, solutions)
    if trouble := _trouble(target, solutions, words):
        return trouble
    truth = float(weights @ source.value(_shaped(x, inputs))[0])
    high, low = solutions[0].value, -solutions[1].value
    allowed = _allowed(source, target, x, inputs, weights)
    return _judge(max(abs(high - truth), abs(low - truth)), truth, allowed, dtype, f"width {high - low:.3g}; {words}")


def check_optimum(source: Any, target: Any, inputs: Arrays, dtype: str) -> Finding:
    """The largest and the smallest projected output over the box, where the solver says they are.

    At the solver's x the network itself must give the claimed value, and where the solver claims a proven optimum, no
    input found by a search with the network alone may do better. The distance of a local solver to it, and of one that
    ran out of time, is told, not judged.
    """
    weights = projection(source.value(inputs).shape[1])
    solutions = [target.maximise(sign * weights) for sign in (1.0, -1.0)]
    words = _words(target, solutions)
    if trouble := _trouble(target, solutions, words):
        return trouble
    span = f"from {-solutions[1].value:.9g} to {solutions[0].value:.9g}"
    findings = []
    for sign, solution in zip((1.0, -1.0), solutions, strict=True):
        signed = sign * weights
        x = np.clip(solution.x, target.embedding.lower, target.embedding.upper)
        truth = float(signed @ source.value(_shaped(x, inputs))[0])
        allowed = _allowed(source, target, x, inputs, signed)
        gap = abs(solution.value - truth)
        best = search(source, target.embedding.lower, target.embedding.upper, inputs, signed)
        missed = best - solution.value
        note = f"{span}, claim off by {gap:.3g}"
        if solution.outcome == "optimal":
            gap = max(gap, missed)
            note += f", {missed:.3g} below the best found by search" if missed > allowed else ""
        elif missed > allowed:
            note += f", not global: the network reaches {missed:.3g} more"
        findings.append(_judge(gap, truth, allowed, dtype, f"{note}; {words}"))
    worst = max(findings, key=lambda finding: finding.comparison.error_ratio if finding.comparison else 0.0)
    return replace(worst, cut_short=any(solution.outcome == "limit" for solution in solutions))


def search(source: Any, lower: np.ndarray, upper: np.ndarray, inputs: Arrays, weights: np.ndarray) -> float:
    """The largest weights @ y that random points of the box reach, then points ever closer around the best of them.

    A lower bound of the maximum, exact to rounding where few inputs are searched; always the same for a model.
    """
    rng = np.random.RandomState(len(lower))

    def values(points: np.ndarray) -> np.ndarray:
        return np.asarray(source.value(_shaped(points, inputs)) @ weights)

    points = rng.uniform(lower, upper, (SAMPLES, len(lower)))
    corners = rng.uniform(size=(SAMPLES // 4, len(lower))) < 0.5
    points = np.concatenate([points, np.where(corners, lower, upper)])
    reached = values(points)
    radius = 0.5 * (upper - lower)
    for _ in range(ROUNDS):
        best = np.argsort(-reached)[:KEPT]
        steps = rng.uniform(-1, 1, (KEPT, 24, len(lower))) * radius
        steps[:, ::2] *= rng.uniform(size=(KEPT, 12, len(lower))) < max(0.3, 1 / len(lower))  # along few axes too
        near = np.clip((points[best][:, None, :] + steps).reshape(-1, len(lower)), lower, upper)
        points = np.concatenate([points[best], near])
        reached = np.concatenate([reached[best], values(near)])
        radius = radius * SHRINK
    return float(reached.max())


def search_call(source: Any, target: Any, inputs: Arrays, weights: np.ndarray) -> Callable[[], object]:
    """The search as what a solver's time is compared with: the same question, put to the network alone."""
    return lambda: search(source, target.embedding.lower, target.embedding.upper, inputs, weights)


def _allowed(source: Any, target: Any, x: np.ndarray, inputs: Arrays, weights: np.ndarray) -> float:
    lower, upper = target.embedding.lower, target.embedding.upper
    rng = np.random.RandomState(0)
    steps = rng.uniform(-RADIUS, RADIUS, (NEIGHBOURS, len(x))) * np.minimum(upper - lower, 1e6)
    points = np.vstack([x, np.clip(x + steps, lower, upper)])
    amplification = source.amplification(_shaped(points, inputs), weights)
    value = np.abs(weights) @ np.abs(source.value(_shaped(x, inputs))[0])
    return float(target.embedding.error * amplification + ROUNDING * (1 + value))


def _judge(error: float, truth: float, allowed: float, dtype: str, message: str) -> Finding:
    passed = bool(error <= allowed)
    eps = float(np.finfo(np.float64).eps)
    comparison = Comparison(
        error_ratio=float(error / allowed * LIMITS[dtype]),
        max_abs=float(error),
        max_rel=float(error / max(abs(truth), eps)),
        max_ulp=float(error / (eps * max(abs(truth), eps))),
        rtol_needed=float(error / max(abs(truth), eps)),
        atol_needed=float(error),
        passed=passed,
    )
    return Finding(PASS if passed else FAIL, comparison, f"{message}; permitted {allowed:.3g}")


def _trouble(target: Any, solutions: list[Any], words: str) -> Finding | None:
    """A finding where the solver gave no point to judge, or ran out of time."""
    outcomes = {solution.outcome for solution in solutions}
    if "infeasible" in outcomes:
        return Finding(FAIL, None, f"infeasible, where the network has a value: a bound or row is wrong; {words}")
    if (outcomes & {"stuck", "limit"}) and target.embedding.kinks and target.embedding.local:
        return Finding(DEGENERATE, None, f"a solver of smooth problems at a kink; {words}")
    if any(solution.outcome == "limit" and solution.value is None for solution in solutions):
        return Finding(TIMEOUT, None, words)
    if not all(solution.outcome in SOLVED and solution.value is not None for solution in solutions):
        return Finding(ERROR, None, words)
    return None


def _words(target: Any, solutions: list[Any]) -> str:
    status = ", ".join(dict.fromkeys(solution.status for solution in solutions))
    seconds = sum(solution.seconds for solution in solutions)
    limited = any(solution.outcome == "limit" for solution in solutions)
    local = ", local only" if target.embedding.local else ", time limit: not proven" if limited else ""
    size = target.embedding.size
    return (f"{target.embedding.solver}: {status}{local}, {seconds:.2g} s; {size.variables} variables, "
            f"{size.constraints} constraints, {size.binaries} binaries")  # fmt: skip


def _shaped(points: np.ndarray, inputs: Arrays) -> Arrays:
    """Points of the box, one a row or a single one, as arrays of the inputs' shapes."""
    rows = np.atleast_2d(points)
    ends = np.cumsum([array[0].size for array in inputs])
    parts = np.split(rows, ends[:-1], axis=1)
    return tuple(part.reshape(len(rows), *array.shape[1:]) for part, array in zip(parts, inputs, strict=True))
