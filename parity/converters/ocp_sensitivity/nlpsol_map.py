"""CasADi's own derivatives of `nlpsol`: the solver's final iterate, its multipliers' active set, implicit functions.

Which bounds are active is read off the multipliers, so it matters what a solver leaves in those of inactive bounds:
an interior-point method's 1e-11 counts as active, and so does what qrqp leaves now and then. The option `min_lam` is
CasADi's remedy. It has a gap: an equation whose multiplier is zero (a state that no later cost depends on) then counts
as inactive, the system is singular, and the derivative is silently zero. So the multipliers are cleaned here instead,
before CasADi differentiates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import casadi
import numpy as np

from parity.cases.ocp import OptimalControlProblem
from parity.runtimes.ocp import RobustSolver
from parity.runtimes.solution_map import Adjoint, Sensitivity, Solution, SolutionMap, SolveFailure
from parity.runtimes.transcription import transcribe

OPTIMAL = 1e-10


@dataclass(frozen=True)
class Plugin:
    """A solver of `casadi.nlpsol` with its options."""

    name: str
    options: Mapping[str, Any]
    clean: bool = False
    """Set multipliers of inactive bounds to zero before differentiating."""
    local: bool = False
    """It may get stuck on its way from far away: then it is started at the solution."""
    structured: bool = False
    """Wants the options that say which constraints are equations, and the problem's stages."""


_IPOPT = {"print_time": False, "ipopt.print_level": 0, "ipopt.sb": "yes"}
IPOPT_PLAIN = Plugin("ipopt", _IPOPT)
_TIGHT = {
    **_IPOPT, "ipopt.tol": 1e-13, "ipopt.constr_viol_tol": 1e-13, "ipopt.dual_inf_tol": 1e-9,
    "ipopt.compl_inf_tol": 1e-12, "ipopt.bound_relax_factor": 0.0, "ipopt.acceptable_tol": 1e-10,
}  # fmt: skip
IPOPT = Plugin("ipopt", _TIGHT, clean=True)
IPOPT_MIN_LAM = Plugin("ipopt", {**_TIGHT, "min_lam": 1e-7})
SQPMETHOD = Plugin("sqpmethod", {
    "print_time": False, "print_header": False, "print_iteration": False, "print_status": False, "qpsol": "qrqp",
    "qpsol_options": {"print_iter": False, "print_header": False, "print_info": False, "error_on_fail": False},
    "tol_pr": 1e-11, "tol_du": 1e-11, "min_iter": 2, "max_iter": 100, "error_on_fail": False,
    # Started at the solution it would stop before its first QP, with multipliers that are not yet those of a solution.
}, clean=True, local=True)  # fmt: skip
FATROP = Plugin("fatrop", {
    "print_time": False, "fatrop.print_level": 0, "fatrop.tol": 1e-10, "error_on_fail": False,
}, clean=True, structured=True)  # fmt: skip


class NlpsolMap(SolutionMap):
    """Its solutions' `data` are the solver's arguments and results, from which CasADi differentiates."""

    def __init__(self, problem: OptimalControlProblem, plugin: Plugin) -> None:
        super().__init__(problem)
        self.plugin, self.name = plugin, plugin.name
        self.program = program = transcribe(problem)
        options = dict(plugin.options)
        if plugin.structured:
            horizon, states, controls = problem.horizon, problem.states, problem.controls
            options |= {
                "structure_detection": "manual", "equality": program.equations.tolist(), "N": horizon,
                "nx": [states] * (horizon + 1), "nu": [controls] * horizon + [0],
                "ng": [states + problem.paths] + [problem.paths] * (horizon - 1) + [0],
            }  # fmt: skip
        nlp = {"x": program.variables, "p": program.point, "f": program.objective, "g": program.constraints}
        self.solver = casadi.nlpsol("solver", plugin.name, nlp, options)

    def solve(self, point: np.ndarray, start: Solution | None = None) -> Solution:
        # From a warm start, a line search can get stuck a hair's breadth from the solution.
        found = None if start is None else self._solve(point, start.data[1])
        found = found or self._solve(point, {"x": self.program.initial(point)})
        if found is None and self.plugin.local:
            at, size = self._robust.solve(point), self.program.size
            start_there = {"x": at.variables, "lam_x": at.multipliers[:size], "lam_g": at.multipliers[size:]}
            found = self._solve(point, start_there)
        if found is None:
            stats = self.solver.stats()
            raise SolveFailure(f"{self.name}: {stats.get('return_status') or stats.get('unified_return_status')}")
        return found

    def _solve(self, point: np.ndarray, start: dict[str, Any]) -> Solution | None:
        program, size = self.program, self.program.size
        arguments = {
            "x0": start["x"], "p": point, "lbx": program.lower[:size], "ubx": program.upper[:size],
            "lbg": program.lower[size:], "ubg": program.upper[size:],
            **{f"{name}0": start[name] for name in ("lam_x", "lam_g") if name in start},
        }  # fmt: skip
        results = self.solver(**arguments)
        if not self.solver.stats()["success"] and not self._optimal(point, results):
            return None
        flat = results["x"].full().ravel()[program.places]
        if self.plugin.clean:
            results = self._cleaned(results)
        return Solution(point, *self.split(flat), float(results["f"]), (arguments, results))

    @cached_property
    def _robust(self) -> RobustSolver:
        return RobustSolver(self.program)

    def _optimal(self, point: np.ndarray, results: dict[str, Any]) -> bool:
        """Whether a solver that gave up (its steps got too small for its tight tolerance) was there all the same."""
        gradient, gap = self._residual(results["x"], results["lam_x"], results["lam_g"], point)
        scale = max(1.0, float(casadi.norm_inf(results["lam_g"])), float(casadi.norm_inf(results["x"])))
        return bool(float(gradient) < OPTIMAL * scale and float(gap) < OPTIMAL * scale)

    @cached_property
    def _residual(self) -> casadi.Function:
        """The Lagrangian's gradient and the violated constraints' gap, in the maximum norm."""
        program, size = self.program, self.program.size
        w, g = program.variables, program.constraints
        of_bounds, of_constraints = casadi.SX.sym("lam_x", size), casadi.SX.sym("lam_g", g.numel())
        gradient = casadi.gradient(program.objective + casadi.dot(of_constraints, g), w) + of_bounds
        r = casadi.vertcat(w, g)
        gap = casadi.fmax(casadi.fmax(program.lower - r, r - program.upper), 0)
        arguments = [w, of_bounds, of_constraints, program.point]
        return casadi.Function("residual", arguments, [casadi.norm_inf(gradient), casadi.norm_inf(gap)])

    def _cleaned(self, results: dict[str, Any]) -> dict[str, Any]:
        """Multipliers of bounds whose slack outweighs them are zero, those of equations are not."""
        program, size = self.program, self.program.size
        r = np.concatenate([results["x"].full().ravel(), results["g"].full().ravel()])
        multipliers = np.concatenate([results["lam_x"].full().ravel(), results["lam_g"].full().ravel()])
        slack = np.minimum(r - program.lower, program.upper - r)
        equations = np.concatenate([np.zeros(size, bool), program.equations])
        multipliers = np.where(equations | (np.abs(multipliers) > slack), multipliers, 0.0)
        multipliers = np.where(equations & (multipliers == 0), np.finfo(float).tiny, multipliers)
        return {**results, "lam_x": casadi.DM(multipliers[:size]), "lam_g": casadi.DM(multipliers[size:])}

    def sensitivity(self, solution: Solution) -> Sensitivity:
        columns = len(solution.point)
        found = self._forward(**_nominal(solution), fwd_p=np.eye(columns))
        flat = found["fwd_x"].full()[self.program.places]
        return Sensitivity(*self.split(_finite(flat)), found["fwd_f"].full().ravel())

    def another(self) -> NlpsolMap:
        return NlpsolMap(self.problem, self.plugin)

    def adjoint(self, solution: Solution, seed: Adjoint) -> np.ndarray:
        variables = np.empty(self.program.size)
        variables[self.program.places] = np.concatenate([seed.states.ravel(), seed.controls.ravel()])
        found = self._reverse(**_nominal(solution), adj_x=variables, adj_f=seed.value)
        return _finite(found["adj_p"].full().ravel())

    @cached_property
    def _forward(self) -> casadi.Function:
        return self.solver.forward(self.problem.points)

    @cached_property
    def _reverse(self) -> casadi.Function:
        return self.solver.reverse(1)


def _nominal(solution: Solution) -> dict[str, Any]:
    arguments, results = solution.data
    return {**arguments, **{f"out_{name}": value for name, value in results.items()}}


def _finite(array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise SolveFailure("casadi's sensitivities are not finite: its system is singular")
    return array
