"""Linear forms of expressions, and bounds by linear programs over the part of the model that is linear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import scipy.optimize
import scipy.sparse as sp

from parity.converters.torch_optimization import expressions as ex
from parity.converters.torch_optimization.expressions import Expression, Variable

if TYPE_CHECKING:
    from parity.converters.torch_optimization.program import Constraint

SAFETY = 1e-7
"""How much a bound is loosened against the tolerance of the linear program that it comes from."""
SECONDS = 10.0
"""Time for one bound."""

Form = tuple[sp.csr_array, np.ndarray]


class Coefficients:
    """A language in which an expression is a matrix and an offset over all variables, or None: not linear."""

    def affine(self, matrix: sp.csr_array, operand: Form | None, offset: np.ndarray) -> Form | None:
        return None if operand is None else (sp.csr_array(matrix @ operand[0]), matrix @ operand[1] + offset)

    def combination(self, kind: str, parts: list[Form | None]) -> Form | None:
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or kind not in ("sum", "stack"):
            return None
        if kind == "sum":
            return sp.csr_array(sum(part[0] for part in known)), np.sum([part[1] for part in known], axis=0)
        return sp.csr_array(sp.vstack([part[0] for part in known])), np.concatenate([part[1] for part in known])

    def apply(self, function: str, operand: Form | None, parameters: tuple[float, ...], bounds: Expression) -> None:
        return None

    def softmax(self, operand: Form | None, groups: tuple[tuple[int, ...], ...]) -> None:
        return None


def linear_forms(parts: Sequence[Expression], variables: Sequence[Variable]) -> list[Form | None]:
    """The expressions as matrix @ variables + offset, or None."""
    total = sum(variable.size for variable in variables)
    known: dict[Expression, Form | None] = {}
    start = 0
    for variable in variables:
        columns = np.arange(start, start + variable.size)
        ones = (np.ones(variable.size), (np.arange(variable.size), columns))
        known[variable] = (sp.csr_array(ones, shape=(variable.size, total)), np.zeros(variable.size))
        start += variable.size
    return [ex.write(part, Coefficients(), known) for part in parts]


def tightened(
    u: Expression, variables: Sequence[Variable], constraints: Sequence[Constraint], *, integer: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds on u by minimising and maximising each element whose sign the intervals leave open.

    Over the relaxation of the model so far: its linear constraints, binaries relaxed unless `integer`. Each bound is
    the solver's proven one, so it holds also when time runs out.
    """
    lower, upper = u.lower.copy(), u.upper.copy()
    form, *rows = linear_forms([u, *(constraint.expression for constraint in constraints)], variables)
    if form is None:
        return lower, upper
    known = [(row, each) for row, each in zip(rows, constraints, strict=True) if row is not None]
    limits = [scipy.optimize.LinearConstraint(row[0], each.lower - row[1], each.upper - row[1]) for row, each in known]
    bounds = scipy.optimize.Bounds(
        np.concatenate([variable.lower for variable in variables]),
        np.concatenate([variable.upper for variable in variables]),
    )
    whole = np.concatenate([np.full(variable.size, float(variable.integer and integer)) for variable in variables])
    for index in np.flatnonzero((lower < 0) & (upper > 0)):
        cost = form[0][[index], :].toarray().ravel()
        for sign, side in ((1.0, lower), (-1.0, upper)):
            result = scipy.optimize.milp(
                sign * cost, integrality=whole, bounds=bounds, constraints=limits, options={"time_limit": SECONDS}
            )
            proven = result.get("mip_dual_bound") if integer else result.fun if result.status == 0 else None
            if proven is None or not np.isfinite(proven):
                continue
            value = sign * proven + form[1][index]
            loosened = value - sign * SAFETY * (1 + abs(value))
            side[index] = max(side[index], loosened) if sign > 0 else min(side[index], loosened)
    return lower, upper
