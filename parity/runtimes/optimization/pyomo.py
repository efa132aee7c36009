"""Solves Pyomo embeddings: HiGHS and SCIP by their Python packages, Ipopt and Bonmin through an .nl file by CasADi."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyomo.environ as pyo

from parity.embedding import FEASIBILITY, PyomoEmbedding
from parity.errors import Unsupported
from parity.runtimes import Arrays
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

PLUGINS = {"scip": "scip_direct", "highs": "highs", "gurobi": "gurobi_direct_minlp"}
"""Pyomo's name of an interface that needs no executable."""
ENDS = {
    "optimal": OPTIMAL,
    "globallyOptimal": OPTIMAL,
    "locallyOptimal": LOCAL,
    "maxTimeLimit": LIMIT,
    "infeasible": INFEASIBLE,
    "infeasibleOrUnbounded": INFEASIBLE,
}


class PyomoOptimizationRuntime(OptimizationRuntime):
    """Values are evaluated by Pyomo itself, where the outputs are expressions of the inputs alone."""

    embedding: PyomoEmbedding

    def value(self, inputs: Arrays) -> np.ndarray:
        embedding = self.embedding
        results = []
        for sample in flat(inputs):
            if embedding.explicit:
                _assign(embedding.x, sample)
            elif embedding.assign is not None:
                _assign(embedding.variables, embedding.assign(sample, {}))
            else:
                return super().value(inputs)
            results.append([float(pyo.value(each)) for each in embedding.y])
        return np.array(results)

    def violations(self, x: np.ndarray, activations: Mapping[str, np.ndarray]) -> list[Violation]:
        embedding = self.embedding
        if embedding.assign is None:
            return super().violations(x, activations)
        values = embedding.assign(x, activations)
        _assign(embedding.variables, values)
        rows = np.array([float(pyo.value(row.body)) for row in embedding.rows])
        found = [
            *worst(values, *_limits(embedding.variables), embedding.labels),
            *worst(rows, *_limits(embedding.rows), embedding.row_labels, scale=np.full(len(rows), np.abs(values).max())),
        ]
        return sorted(found, key=lambda violation: -violation.residual)

    def maximise(self, weights: np.ndarray, fixed: np.ndarray | None = None, start: np.ndarray | None = None) -> Solution:
        embedding = self.embedding
        model = embedding.model
        inputs = start if start is not None else fixed if fixed is not None else 0.5 * (embedding.lower + embedding.upper)
        if embedding.assign is not None:
            _assign(embedding.variables, embedding.assign(inputs, {}))
        else:
            _assign(embedding.x, inputs)
        if fixed is not None:
            model.parity_fixed = pyo.ConstraintList()
            for variable, value in zip(embedding.x, fixed, strict=True):
                model.parity_fixed.add(variable == float(value))
        terms = (float(weight) * y for weight, y in zip(weights, embedding.y, strict=True))
        model.parity_objective = pyo.Objective(expr=sum(terms), sense=pyo.maximize)
        try:
            with quiet():
                return self._solve(weights)
        finally:
            model.del_component("parity_objective")
            if fixed is not None:
                model.del_component("parity_fixed")
                model.del_component("parity_fixed_index")

    def _solve(self, weights: np.ndarray) -> Solution:
        clock = Clock()
        solver = self.embedding.solver
        if solver.startswith("casadi:"):
            outcome, status = _by_casadi(self.embedding, solver.removeprefix("casadi:"))
        else:
            outcome, status = _by_pyomo(self.embedding)
        if outcome in (INFEASIBLE, STUCK):
            return Solution(outcome, status, clock.seconds)
        try:
            x = np.array([float(pyo.value(variable)) for variable in self.embedding.x])
            value = sum(w * float(pyo.value(y)) for w, y in zip(weights, self.embedding.y, strict=True))
        except ValueError:  # stopped before any point was found
            return Solution(outcome, status, clock.seconds)
        return Solution(outcome, status, clock.seconds, x, float(value))


def _by_pyomo(embedding: PyomoEmbedding) -> tuple[str, str]:
    solver = pyo.SolverFactory(PLUGINS.get(embedding.solver, embedding.solver))
    if not solver.available(exception_flag=False):
        raise Unsupported(f"solver {embedding.solver!r} is not installed here, or Pyomo does not find it")
    options = dict(embedding.solver_options)
    if embedding.solver == "highs":
        options |= {"primal_feasibility_tolerance": FEASIBILITY, "mip_feasibility_tolerance": FEASIBILITY,
                    "dual_feasibility_tolerance": FEASIBILITY, "mip_rel_gap": 0.0, "mip_abs_gap": FEASIBILITY,
                    "threads": 1}  # fmt: skip
    elif embedding.solver == "scip":
        options |= {"numerics/feastol": FEASIBILITY, "limits/gap": 0.0, "limits/time": embedding.time_limit}
    arguments: dict[str, Any] = {"tee": False, "load_solutions": False}
    solver.options.update(options)
    results = solver.solve(embedding.model, timelimit=embedding.time_limit, **arguments)
    status = str(results.solver.termination_condition)
    outcome = ENDS.get(status, STUCK)
    if outcome in (OPTIMAL, LOCAL, LIMIT) and len(results.solution):
        embedding.model.solutions.load_from(results)
    if outcome == OPTIMAL and embedding.local:
        outcome = LOCAL
    return outcome, status


def _by_casadi(embedding: PyomoEmbedding, solver: str) -> tuple[str, str]:
    """Through AMPL's file format, which CasADi reads: Ipopt and Bonmin come with CasADi, executables with neither."""
    import casadi

    from parity.runtimes.optimization.casadi import _nonlinear_options, _outcome

    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "model.nl")
        _, names = embedding.model.write(file, format="nl", io_options={"symbolic_solver_labels": True})
        columns = Path(file).with_suffix(".col").read_text().split()
        reader = casadi.NlpBuilder()
        reader.import_nl(file)
    x = casadi.vertcat(*reader.x)
    options: dict[str, Any] = {"print_time": False, "error_on_fail": False}
    options[solver] = _nonlinear_options(_Limits(solver, embedding.time_limit))  # type: ignore[arg-type]
    if any(reader.discrete):
        options["discrete"] = list(reader.discrete)
    function = casadi.nlpsol("solver", solver, {"x": x, "f": reader.f, "g": casadi.vertcat(*reader.g)}, options)
    result = function(x0=reader.x_init, lbx=reader.x_lb, ubx=reader.x_ub, lbg=reader.g_lb, ubg=reader.g_ub)
    stats = function.stats()
    values = dict(zip(columns, np.asarray(result["x"].full()).ravel(), strict=True))
    for variable in embedding.model.component_data_objects(pyo.Var):
        if variable.name in values:
            variable.set_value(float(values[variable.name]), skip_validation=True)
    status = str(stats["return_status"])
    return _outcome(status, bool(stats["success"]), local=True), status


class _Limits:
    """What the options of a nonlinear solver are made from."""

    def __init__(self, solver: str, time_limit: float) -> None:
        self.solver, self.time_limit = solver, time_limit


def _assign(variables: Any, values: np.ndarray) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.set_value(float(value), skip_validation=True)


def _limits(items: Any) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds of variables or constraints."""
    lower = [-np.inf if (low := pyo.value(item.lower)) is None else low for item in items]
    upper = [np.inf if (high := pyo.value(item.upper)) is None else high for item in items]
    return np.array(lower, float), np.array(upper, float)
