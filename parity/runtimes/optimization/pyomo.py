"""Solves Pyomo embeddings: HiGHS and SCIP by their Python packages, Ipopt and Bonmin through an .nl file by CasADi."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyomo.environ as pyo
from pyomo.core.expr.visitor import StreamBasedExpressionVisitor

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
from parity.runtimes.optimization.casadi import Problem, solve

PLUGINS = {"scip": "scip_direct", "highs": "highs", "gurobi": "gurobi_direct_minlp"}
"""Pyomo's name of an interface that needs no executable."""
ENDS = {
    "convergenceCriteriaSatisfied": OPTIMAL,
    "maxTimeLimit": LIMIT,
    "provenInfeasible": INFEASIBLE,
    "locallyInfeasible": INFEASIBLE,
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
            results.append(_evaluate(embedding.y))
        return np.array(results)

    def violations(self, x: np.ndarray, activations: Mapping[str, np.ndarray]) -> list[Violation]:
        embedding = self.embedding
        if embedding.assign is None:
            return super().violations(x, activations)
        values = embedding.assign(x, activations)
        _assign(embedding.variables, values)
        rows = np.array(_evaluate([row.body for row in embedding.rows]))
        found = [
            *worst(values, *_limits(embedding.variables), embedding.labels),
            *worst(
                rows, *_limits(embedding.rows), embedding.row_labels, scale=np.full(len(rows), np.abs(values).max())
            ),
        ]
        return sorted(found, key=lambda violation: -violation.residual)

    def maximise(
        self, weights: np.ndarray, fixed: np.ndarray | None = None, start: np.ndarray | None = None
    ) -> Solution:
        embedding = self.embedding
        model = embedding.model
        inputs = (
            start if start is not None else fixed if fixed is not None else 0.5 * (embedding.lower + embedding.upper)
        )
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
            value = float(weights @ np.array(_evaluate(self.embedding.y)))
        except ValueError:  # stopped before any point was found
            return Solution(outcome, status, clock.seconds)
        return Solution(outcome, status, clock.seconds, x, value)


def _by_pyomo(embedding: PyomoEmbedding) -> tuple[str, str]:
    from pyomo.contrib.solver.common.factory import SolverFactory

    if embedding.solver == "highs" and "casadi" in sys.modules:
        raise Unsupported(
            "highspy and CasADi each bring a HiGHS, and one process holds only one of them (highspy is not "
            'importable, or the process crashes at its end): take solver="casadi:highs"'
        )
    solver = SolverFactory(PLUGINS.get(embedding.solver, embedding.solver))
    if solver is None or not solver.available():
        raise Unsupported(f"solver {embedding.solver!r} is not installed here, or Pyomo does not find it")
    results = solver.solve(
        embedding.model,
        load_solutions=False,
        raise_exception_on_nonoptimal_result=False,
        time_limit=embedding.time_limit,
        solver_options={**_options(embedding), **embedding.solver_options},
    )
    status = results.termination_condition.name
    outcome = ENDS.get(status, STUCK)
    if results.solution_status.name in ("optimal", "feasible"):
        results.solution_loader.load_vars()
    return (LOCAL if outcome == OPTIMAL and embedding.local else outcome), status


def _options(embedding: PyomoEmbedding) -> dict[str, Any]:
    if embedding.solver == "highs":
        return {"primal_feasibility_tolerance": FEASIBILITY, "mip_feasibility_tolerance": FEASIBILITY, "threads": 1,
                "dual_feasibility_tolerance": FEASIBILITY, "mip_rel_gap": 0.0, "mip_abs_gap": FEASIBILITY}  # fmt: skip
    if embedding.solver == "scip":
        return {"numerics/feastol": FEASIBILITY, "numerics/dualfeastol": FEASIBILITY, "limits/gap": 0.0,
                "constraints/SOS1/autocutsfromsos1": False}  # they cut the optimum off (SCIP 10.0)  # fmt: skip
    if embedding.solver == "gurobi":
        return {"FeasibilityTol": FEASIBILITY, "IntFeasTol": FEASIBILITY, "MIPGap": 0.0, "Threads": 1}
    return {}


def _by_casadi(embedding: PyomoEmbedding, solver: str) -> tuple[str, str]:
    """Through AMPL's file format, which CasADi reads: its Ipopt, Bonmin and HiGHS need no executable."""
    import casadi

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.nl"
        variables = _write(embedding.model, file)
        reader = casadi.NlpBuilder()
        reader.import_nl(str(file))
    problem = Problem(
        x=casadi.vertcat(*reader.x),
        cost=reader.f,
        rows=casadi.vertcat(*reader.g),
        start=np.array(reader.x_init),
        bounds=(np.array(reader.x_lb), np.array(reader.x_ub)),
        row_bounds=(np.array(reader.g_lb), np.array(reader.g_ub)),
        integer=np.array(reader.discrete, dtype=bool),
    )
    end = solve(problem, solver, embedding.time_limit)
    for variable, value in zip(variables, end.point, strict=True):
        variable.set_value(float(value), skip_validation=True)
    return end.outcome, end.status


def write_nl(embedding: PyomoEmbedding, file: Path) -> None:
    """In AMPL's format, with the outputs as variables `y`; the variables' names are in a file STEM.col beside it."""
    model, outputs = embedding.model, range(len(embedding.y))
    model.y = pyo.Var(outputs)
    model.y_equation = pyo.Constraint(outputs, rule=lambda whole, index: whole.y[index] == embedding.y[index])
    try:
        names = [variable.name for variable in _write(model, file)]
        file.with_suffix(".col").write_text("\n".join(names) + "\n", encoding="utf-8")
    finally:
        model.del_component("y_equation")
        model.del_component("y")


def _write(model: Any, file: Path) -> list[Any]:
    """Write without comments, which CasADi cannot read; gives the variables in the file's order."""
    from pyomo.repn.plugins.nl_writer import NLWriter

    with file.open("w", encoding="utf-8", newline="\n") as stream:
        return list(NLWriter().write(model, stream, linear_presolve=False, scale_model=False).variables)


class _Evaluator(StreamBasedExpressionVisitor):
    """Pyomo's arithmetic, each named expression once: `pyo.value` walks through it again wherever it is used."""

    def __init__(self) -> None:
        self.known: dict[int, float] = {}
        super().__init__()

    def initializeWalker(self, expression: Any) -> tuple[bool, Any]:
        return self.beforeChild(None, expression, 0)

    def beforeChild(self, node: Any, child: Any, index: int) -> tuple[bool, Any]:
        if isinstance(child, int | float):
            return False, child
        if not child.is_expression_type():
            return False, pyo.value(child)
        return id(child) not in self.known, self.known.get(id(child))

    def exitNode(self, node: Any, values: list[Any]) -> Any:
        result = node._apply_operation(values)
        if node.is_named_expression_type():
            self.known[id(node)] = result
        return result


def _evaluate(expressions: Any) -> list[float]:
    """Their values at those of the variables; raises ValueError where one has none."""
    evaluator = _Evaluator()
    return [float(evaluator.walk_expression(each)) for each in expressions]


def _assign(variables: Any, values: np.ndarray) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.set_value(float(value), skip_validation=True)


def _limits(items: Any) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds of variables or constraints."""
    lower = [-np.inf if (low := pyo.value(item.lower)) is None else low for item in items]
    upper = [np.inf if (high := pyo.value(item.upper)) is None else high for item in items]
    return np.array(lower, float), np.array(upper, float)
