"""Solves CasADi embeddings: by a conic solver where all is linear, else by a nonlinear one."""

from __future__ import annotations

from collections.abc import Mapping
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

    def maximise(self, weights: np.ndarray, fixed: np.ndarray | None = None, start: np.ndarray | None = None) -> Solution:
        embedding = self.embedding
        lower, upper = (side.copy() for side in embedding.bounds)
        inputs = len(embedding.lower)
        if fixed is not None:
            lower[:inputs] = upper[:inputs] = fixed
        middle = start if start is not None else fixed if fixed is not None else self._middle(lower, upper)[:inputs]
        begin = embedding.assign(middle, {}) if embedding.assign else middle
        clock = Clock()
        with quiet():
            solver = self._solver(weights)
            arguments = {"x0": begin, "lbx": lower, "ubx": upper}
            result = solver(**arguments, **self._row_arguments(weights))
        stats = solver.stats()
        status = str(stats.get("return_status", stats.get("unified_return_status", "")))
        point = np.asarray(result["x"].full()).ravel()
        outcome = _outcome(status, bool(stats.get("success")), embedding.local)
        if outcome in (INFEASIBLE, STUCK) or not np.isfinite(point).all():
            return Solution(outcome, status, clock.seconds)
        value = float(weights @ np.asarray(embedding.model(point)[1].full()).ravel())
        return Solution(outcome, status, clock.seconds, point[:inputs], value)

    def _middle(self, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        return np.clip(0.0, lower, upper) + 0.1 * (np.minimum(upper, 1.0) - np.maximum(lower, -1.0))

    def _row_arguments(self, weights: np.ndarray) -> dict[str, Any]:
        embedding = self.embedding
        if embedding.solver not in CONIC:
            return {"lbg": embedding.row_bounds[0], "ubg": embedding.row_bounds[1]}
        matrix, offset, gradient = self._linear_form(weights)
        rows = [side - offset for side in embedding.row_bounds]
        return {"a": matrix, "g": -gradient, "lba": rows[0], "uba": rows[1]}

    def _linear_form(self, weights: np.ndarray) -> tuple[casadi.DM, np.ndarray, casadi.DM]:
        jacobian, rows_at_zero, output = self._linear_parts
        return jacobian, rows_at_zero, output.T @ casadi.DM(weights)

    @cached_property
    def _linear_parts(self) -> tuple[casadi.DM, np.ndarray, casadi.DM]:
        symbol = casadi.MX.sym("variables", len(self.embedding.integer))
        rows, y = self.embedding.model(symbol)
        derivatives = casadi.Function("form", [symbol], [casadi.jacobian(rows, symbol), casadi.jacobian(y, symbol), rows])
        matrix, output, at_zero = derivatives(np.zeros(len(self.embedding.integer)))
        return matrix, np.asarray(at_zero.full()).ravel(), output

    def _solver(self, weights: np.ndarray) -> casadi.Function:
        embedding, count = self.embedding, len(self.embedding.integer)
        options: dict[str, Any] = {"error_on_fail": False}
        if embedding.integer.any():
            options["discrete"] = embedding.integer.tolist()
        if embedding.solver in CONIC:
            if embedding.sets:
                options["sos_groups"] = [list(each) for each in embedding.sets]
                options["sos_weights"] = [[1.0, 2.0] for _ in embedding.sets]
                options["sos_types"] = [1 for _ in embedding.sets]
            matrix = self._linear_parts[0]
            options[embedding.solver] = _conic_options(embedding)
            shape = {"h": casadi.Sparsity(count, count), "a": matrix.sparsity()}
            return casadi.conic("solver", embedding.solver, shape, options)
        symbol = casadi.MX.sym("variables", count)
        rows, y = embedding.model(symbol)
        options |= {"print_time": False, embedding.solver: _nonlinear_options(embedding)}
        problem = {"x": symbol, "f": -casadi.dot(casadi.DM(weights), y), "g": rows}
        return casadi.nlpsol("solver", embedding.solver, problem, options)


def _conic_options(embedding: CasadiEmbedding) -> dict[str, Any]:
    if embedding.solver == "cbc":
        return {"LogLevel": 0, "MaximumSeconds": embedding.time_limit, "PrimalTolerance": FEASIBILITY,
                "IntegerTolerance": FEASIBILITY, "AllowableGap": FEASIBILITY}  # fmt: skip
    return {
        "output_flag": False,
        "threads": 1,
        "time_limit": float(embedding.time_limit),
        "primal_feasibility_tolerance": FEASIBILITY,
        "dual_feasibility_tolerance": FEASIBILITY,
        "mip_feasibility_tolerance": FEASIBILITY,
        "mip_rel_gap": 0.0,
        "mip_abs_gap": FEASIBILITY,
    }


def _nonlinear_options(embedding: CasadiEmbedding) -> dict[str, Any]:
    if embedding.solver == "bonmin":
        return {"time_limit": embedding.time_limit, "integer_tolerance": FEASIBILITY, "tol": FEASIBILITY,
                "print_level": 0, "bonmin.bb_log_level": 0, "sb": "yes"}  # fmt: skip
    if embedding.solver != "ipopt":
        return {}
    return {
        "print_level": 0,
        "sb": "yes",
        "tol": FEASIBILITY,
        "constr_viol_tol": FEASIBILITY,
        "acceptable_iter": 0,
        "bound_relax_factor": 0.0,
        "max_wall_time": embedding.time_limit,
        "max_iter": 500,
    }


def _outcome(status: str, success: bool, local: bool) -> str:
    if "nfeasible" in status or "NFEASIBLE" in status:
        return INFEASIBLE
    if success:
        return LOCAL if local else OPTIMAL
    if any(word in status for word in ("ime", "TIME", "Cpu", "imit")) and "Iter" not in status:
        return LIMIT
    return STUCK
