"""Solves CasADi embeddings: by a conic solver where all is linear, else by a nonlinear one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import casadi
import numpy as np

from parity.embedding import FEASIBILITY, CasadiEmbedding
from parity.errors import Unsupported
from parity.runtimes import Arrays
from parity.runtimes.casadi import CasadiRuntime
from parity.runtimes.optimization import (
    INFEASIBLE,
    LIMIT,
    LOCAL,
    OPTIMAL,
    STUCK,
    Clock,
    OptimizationRuntime,
    Solution,
    Violation,
    flat,
    quiet,
    worst,
)

CONIC = ("highs", "cbc")
BOUNDS = FEASIBILITY / 10
"""How far Ipopt may leave bounds. Its own 1e-8 shows in the output; with 0 it gets stuck where bounds meet."""


class CasadiOptimizationRuntime(OptimizationRuntime):
    """Values and derivatives are those of the embedding's expression, by CasADi's algorithmic differentiation."""

    embedding: CasadiEmbedding

    @cached_property
    def _expression(self) -> CasadiRuntime:
        return CasadiRuntime(self.embedding.function)

    @property
    def artifact_bytes(self) -> int | None:
        try:
            return len(self.embedding.model.serialize())
        except RuntimeError:  # an external function cannot be stored
            return None

    def value(self, inputs: Arrays) -> np.ndarray:
        return self._expression.value((flat(inputs),))

    def jacobian(self, inputs: Arrays) -> np.ndarray:
        return self._expression.jacobian((flat(inputs),))

    def hessian(self, inputs: Arrays, projection: np.ndarray) -> np.ndarray:
        return self._expression.hessian((flat(inputs),), projection)

    def violations(self, x: np.ndarray, activations: Mapping[str, np.ndarray]) -> list[Violation]:
        embedding = self.embedding
        if embedding.assign is None:
            raise Unsupported("an external function has no constraints to look into")
        values = embedding.assign(x, activations)
        rows = np.asarray(embedding.model(values)[0].full()).ravel()
        found = [
            *worst(values, *embedding.bounds, embedding.labels),
            *worst(rows, *embedding.row_bounds, embedding.row_labels, scale=np.full(len(rows), np.abs(values).max())),
        ]
        return sorted(found, key=lambda violation: -violation.residual)

    def maximise(
        self, weights: np.ndarray, fixed: np.ndarray | None = None, start: np.ndarray | None = None
    ) -> Solution:
        embedding = self.embedding
        lower, upper = (side.copy() for side in embedding.bounds)
        inputs = len(embedding.lower)
        if fixed is not None:
            lower[:inputs] = upper[:inputs] = fixed
        begin = start if start is not None else fixed if fixed is not None else 0.5 * (lower + upper)[:inputs]
        symbol = casadi.MX.sym("variables", len(embedding.integer))
        rows, y = embedding.model(symbol)
        clock = Clock()
        problem = Problem(
            x=symbol,
            cost=-casadi.dot(casadi.DM(weights), y),
            rows=rows,
            start=embedding.assign(begin, {}) if embedding.assign else begin,
            bounds=(lower, upper),
            row_bounds=embedding.row_bounds,
            integer=embedding.integer,
            sets=embedding.sets,
        )
        with quiet():
            end = solve(problem, embedding.solver, embedding.time_limit)
        if end.outcome in (INFEASIBLE, STUCK) or not np.isfinite(end.point).all():
            return Solution(end.outcome, end.status, clock.seconds)
        value = float(weights @ np.asarray(embedding.model(end.point)[1].full()).ravel())
        return Solution(end.outcome, end.status, clock.seconds, end.point[:inputs], value)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Minimise `cost` over `x`, both `casadi.MX`, with bounds on x and on rows."""

    x: Any
    cost: Any
    rows: Any
    start: np.ndarray
    bounds: tuple[np.ndarray, np.ndarray]
    row_bounds: tuple[np.ndarray, np.ndarray]
    integer: np.ndarray
    sets: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class End:
    """How a solve ended, and where."""

    outcome: str
    status: str
    point: np.ndarray


def solve(problem: Problem, solver: str, time_limit: float) -> End:
    """Solve by one of CasADi's plug-ins: a conic one, where all must be linear, or a nonlinear one."""
    options: dict[str, Any] = {"error_on_fail": False}
    if problem.integer.any():
        options["discrete"] = problem.integer.tolist()
    bounds = {"x0": problem.start, "lbx": problem.bounds[0], "ubx": problem.bounds[1]}
    if solver in CONIC:
        function, result = _solve_conic(problem, solver, options, bounds, time_limit)
    else:
        options |= {"print_time": False, solver: _nonlinear_options(solver, time_limit)}
        terms = {"x": problem.x, "f": problem.cost, "g": problem.rows}
        function = casadi.nlpsol("solver", solver, terms, options)
        result = function(**bounds, lbg=problem.row_bounds[0], ubg=problem.row_bounds[1])
    stats = function.stats()
    status = str(stats.get("return_status", stats.get("unified_return_status", "")))
    outcome = _outcome(status, bool(stats.get("success")), local=solver not in CONIC)
    return End(outcome, status, np.asarray(result["x"].full()).ravel())


def _solve_conic(problem: Problem, solver: str, options: dict[str, Any], bounds: Any, time_limit: float) -> Any:
    form = casadi.Function(
        "form",
        [problem.x],
        [casadi.jacobian(problem.rows, problem.x), casadi.gradient(problem.cost, problem.x), problem.rows],
    )
    count = problem.x.numel()
    matrix, cost, rows_at_zero = form(np.zeros(count))
    offset = np.asarray(rows_at_zero.full()).ravel()
    if problem.sets:
        options["sos_groups"] = [list(each) for each in problem.sets]
        options["sos_weights"] = [[float(place) for place in range(1, len(each) + 1)] for each in problem.sets]
        options["sos_types"] = [1 for _ in problem.sets]
    options[solver] = _conic_options(solver, time_limit)
    shape = {"h": casadi.Sparsity(count, count), "a": matrix.sparsity()}
    function = casadi.conic("solver", solver, shape, options)
    sides = [side - offset for side in problem.row_bounds]
    return function, function(**bounds, a=matrix, g=cost, lba=sides[0], uba=sides[1])


def _conic_options(solver: str, time_limit: float) -> dict[str, Any]:
    if solver == "cbc":
        return {
            "LogLevel": 0,
            "MaximumSeconds": time_limit,
            "PrimalTolerance": FEASIBILITY,
            "IntegerTolerance": FEASIBILITY,
            "AllowableGap": FEASIBILITY,
            "preprocess": "off",  # it forgets special ordered sets, and then calls a wrong point optimal (2.10.12)
        }
    return {
        "output_flag": False,
        "threads": 1,
        "time_limit": float(time_limit),
        "primal_feasibility_tolerance": FEASIBILITY,
        "dual_feasibility_tolerance": FEASIBILITY,
        "mip_feasibility_tolerance": FEASIBILITY,
        "mip_rel_gap": 0.0,
        "mip_abs_gap": FEASIBILITY,
    }


def _nonlinear_options(solver: str, time_limit: float) -> dict[str, Any]:
    common = {
        "print_level": 0,
        "sb": "yes",
        "tol": FEASIBILITY,
        "constr_viol_tol": FEASIBILITY,
        "bound_relax_factor": BOUNDS,
    }
    if solver == "bonmin":
        return {**common, "time_limit": time_limit, "integer_tolerance": FEASIBILITY, "bb_log_level": 0}
    if solver == "ipopt":
        return {**common, "acceptable_iter": 0, "max_wall_time": time_limit, "max_iter": 200}
    return {}


def _outcome(status: str, success: bool, local: bool) -> str:
    if "nfeasible" in status or "NFEASIBLE" in status:
        return INFEASIBLE
    if success:
        return LOCAL if local else OPTIMAL
    if any(word in status for word in ("ime", "TIME", "Cpu", "imit")) and "Iter" not in status:
        return LIMIT
    return STUCK
