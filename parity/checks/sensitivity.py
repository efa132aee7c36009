"""Derivatives of an optimal solution against two truths: differences of tight solves, and the implicit functions'.

The first needs no formula and brings its own error estimate; the second is exact where its system is well conditioned.
Both must agree with an engine, each within its own tolerance. Where the derivative ends (a bound weakly active, LICQ
violated, no strict minimum) the verdict is `degenerate` and the message holds the margin: never a silent pass.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, combinations
from typing import Any

import numpy as np

from parity.checks.solution import OTHER_OPTIMUM, TOLERANCE, compare_arrays, distance
from parity.checks.tolerance import Comparison
from parity.checks.verdict import Finding
from parity.records import DEGENERATE, FAIL, PASS
from parity.runtimes import Arrays
from parity.runtimes.optimality import LARGEST_CONDITION, LEAST_CURVATURE, LEAST_INDEPENDENCE, WEAK, Margins, Polished
from parity.runtimes.solution_map import Solution, SolveFailure

IMPLICIT = 1e-8
"""Tolerance against the implicit derivative of a well-conditioned system. Right engines were off by up to 5e-10 over
400 random points (deep solves by acados), wrong ones by 1e-6 and more."""
ROUNDING = 1e-14
"""A right engine may lose this times the condition number: both sides solve a linear system of that condition."""
LARGEST_DIFFERENCING = 1e-6
"""Differences whose own estimate is worse than this judge nothing."""
ESTIMATES = 10.0
"""How many of its own error estimates a difference may be off."""
FLIPPED = 3
"""Up to so many weakly active bounds, every one-sided derivative is compared with."""


def check_sensitivity(source: Any, target: Any, inputs: Arrays, dtype: str) -> Finding:
    """Compare states', controls' and value's derivatives by all of θ at one point (the batch's first)."""
    point = inputs[0][0]
    found = target.map.solve(point)
    result = target.map.sensitivity(found).flat
    at, notes = _optimum(source, found)
    margins = source.margins(at)
    if reasons := _degenerate(margins):
        return _judge_degenerate(source, at, result, margins, [*notes, *reasons])
    implicit = source.implicit(at).flat
    limit = max(IMPLICIT, ROUNDING * margins.condition)
    by_formula = compare_arrays(result, implicit, limit)
    try:
        differences = source.differences(at)
    except SolveFailure as failure:
        return Finding(DEGENERATE, by_formula, "; ".join([*notes, str(failure), _describe(margins)]))
    scale = max(1.0, float(np.abs(differences.jacobian).max()))
    allowed = np.maximum(ESTIMATES * differences.error / scale, limit)
    if float(allowed.max()) > LARGEST_DIFFERENCING:
        notes.append(f"differences are uncertain by {allowed.max():.1e}")
        return Finding(DEGENERATE, by_formula, "; ".join([*notes, _describe(margins)]))
    by_differences = compare_arrays(result, differences.jacobian, allowed)
    worse = max(by_formula, by_differences, key=lambda each: (not each.error_ratio <= np.inf, each.error_ratio))
    message = (
        f"off by {_relative(by_differences, differences.jacobian):.1e} from differences "
        f"(their own estimate {differences.error.max() / scale:.0e}) and {_relative(by_formula, implicit):.1e} from "
        f"the implicit derivative; {_describe(margins)}"
    )
    passed = by_formula.passed and by_differences.passed
    if passed and notes:
        return Finding(DEGENERATE, worse, "; ".join([*notes, message]))
    return Finding(PASS if passed else FAIL, replace(worse, passed=passed), "; ".join([*notes, message]))


def _optimum(source: Any, found: Solution) -> tuple[Polished, list[str]]:
    """The reference's solution, or if the engine ended in another local optimum, that one, with a note."""
    at = source.polished(found.point)
    truth = source.system.solution(at)
    if distance(found.flat, truth.flat) <= OTHER_OPTIMUM:
        return at, []
    try:
        other = source.polished_from(found)
    except SolveFailure:
        return at, []
    nearest = source.system.solution(other)
    if distance(found.flat, nearest.flat) > TOLERANCE:
        return at, []
    return other, [f"another local optimum: value {found.value:.6g} instead of {truth.value:.6g}"]


def _degenerate(margins: Margins) -> list[str]:
    reasons = []
    if margins.complementarity < WEAK:
        reasons.append(f"{len(margins.weakest)} bounds are weakly active")
    if margins.independence < LEAST_INDEPENDENCE:
        reasons.append("active constraints' gradients are dependent (LICQ)")
    if margins.curvature < LEAST_CURVATURE:
        reasons.append("the reduced Hessian is not positive definite (second-order conditions)")
    if not margins.condition < LARGEST_CONDITION:
        reasons.append("the optimality system is ill-conditioned")
    return reasons


def _judge_degenerate(source: Any, at: Polished, result: np.ndarray, margins: Margins, notes: list[str]) -> Finding:
    """`degenerate`; but a result that lies beyond all one-sided derivatives is wrong whatever side is meant."""
    sides = []
    for inequalities in _subsets(margins.weakest):
        try:
            sides.append(source.implicit(source.system.flip(at, inequalities)).flat)
        except SolveFailure:  # this side has no unique solution
            continue
    if not sides:
        return Finding(DEGENERATE, compare_arrays(result, np.full_like(result, np.nan), 1.0), "; ".join(notes))
    nearest = min((compare_arrays(result, side, IMPLICIT) for side in sides), key=lambda each: each.max_abs)
    low, high = np.min(sides, axis=0), np.max(sides, axis=0)
    beyond = np.maximum(low - result, result - high).max() / max(1.0, float(np.abs(sides).max()))
    notes += [f"off by {nearest.max_abs:.1e} from the nearer one-sided derivative", _describe(margins)]
    comparable = margins.weakest and len(margins.weakest) <= FLIPPED and len(sides) == 2 ** len(margins.weakest)
    others = len(_degenerate(margins)) - (margins.complementarity < WEAK)
    allowed = max(np.sqrt(margins.complementarity), IMPLICIT)  # the solution itself may lie so far off the kink
    if comparable and not others and len(margins.weakest) == 1 and not beyond <= allowed:
        return Finding(FAIL, nearest, "; ".join([*notes, f"beyond both sides by {beyond:.1e}"]))
    return Finding(DEGENERATE, nearest, "; ".join(notes))


def _subsets(inequalities: tuple[int, ...]) -> list[tuple[int, ...]]:
    if len(inequalities) > FLIPPED:
        return [(), inequalities]
    return list(chain.from_iterable(combinations(inequalities, size) for size in range(len(inequalities) + 1)))


def _relative(comparison: Comparison, truth: np.ndarray) -> float:
    return comparison.max_abs / max(1.0, float(np.abs(truth).max()))


def _describe(margins: Margins) -> str:
    return (
        f"margins: complementarity {margins.complementarity:.1e}, LICQ {margins.independence:.1e}, "
        f"curvature {margins.curvature:.1e}, condition {margins.condition:.0e}"
    )
