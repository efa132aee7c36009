"""A newer acados, installed by the user (its own sources and `acados_template`), by its newest interface.

Written against its documentation, as the registry has no such version: parameters are `p_global`, the Hessian is exact,
`setup_qp_matrices_and_factorize` precedes every sensitivity (without it they are stale), and
`solution_sens_qp_t_lam_min` is small (its default, 1e-9, smooths active bounds by 1e-7 and more).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import casadi
import numpy as np

from parity.cases.ocp import OptimalControlProblem
from parity.converters.ocp_sensitivity.acados_map import INFINITY, describe
from parity.errors import MissingPackage
from parity.runtimes.solution_map import Adjoint, Batch, Sensitivity, Solution, SolutionMap, SolveFailure
from parity.runtimes.transcription import with_networks_converted

TOLERANCE = 1e-12
LEAST_MULTIPLIER = 1e-13


class OfficialMap(SolutionMap):
    """Its solutions' `data` are acados' iterate. The solver lives in this process, as its users run it."""

    name = "acados-official"

    def __init__(self, problem: OptimalControlProblem, *, openmp: bool = False) -> None:
        """`openmp` makes code for acados' batch solver, which a library built without OpenMP cannot run."""
        super().__init__(problem)
        if find_spec("acados_template") is None:
            raise MissingPackage(
                "acados-official needs an installation of acados 0.5 or newer with its acados_template: "
                "see https://docs.acados.org/installation"
            )
        import acados_template as template

        if not hasattr(template.AcadosOcpSolver, "setup_qp_matrices_and_factorize"):
            raise MissingPackage("acados-official needs acados 0.5 or newer: this acados_template is older")
        self._folder = tempfile.TemporaryDirectory(prefix="parity-acados-official-")
        description = describe(with_networks_converted(problem))
        ocp = _formulate(template, description)
        ocp.solver_options.with_batch_functionality = openmp
        generation = _generation(ocp)
        generation.code_export_directory = str(Path(self._folder.name) / "code")
        generation.json_file = str(Path(self._folder.name) / "ocp.json")
        self._named = {"json_file": generation.json_file} if generation is ocp else {}
        self._template, self._ocp = template, ocp
        self.solver = template.AcadosOcpSolver(ocp, verbose=False, **self._named)

    def solve(self, point: np.ndarray, start: Solution | None = None) -> Solution:
        self._prepare(self.solver, point, start)
        return self._found(self.solver, point, self.solver.solve())

    def batch(self, count: int) -> Batch:
        """acados' own batch solver, with `count` threads."""
        if count == 1:
            return super().batch(1)
        engine = OfficialMap(self.problem, openmp=True)
        solvers: dict[int, Any] = {}

        def solve(points: np.ndarray, starts: Sequence[Solution | None]) -> list[Solution]:
            size = len(points)
            if size not in solvers:
                solvers[size] = engine._template.AcadosOcpBatchSolver(
                    engine._ocp, size, num_threads_in_batch_solve=count, build=False, generate=False, verbose=False,
                    **engine._named,
                )  # fmt: skip
            solver = solvers[size]
            for one, point, start in zip(solver.ocp_solvers, points, starts, strict=True):
                self._prepare(one, point, start)
            solver.solve(size)
            each = zip(solver.ocp_solvers, points, solver.status, strict=True)
            return [self._found(one, point, int(status)) for one, point, status in each]

        return solve

    def _prepare(self, solver: Any, point: np.ndarray, start: Solution | None) -> None:
        problem = self.problem
        initial, parameter = point[: problem.states], point[problem.states :]
        if start is None:
            solver.reset()
            guess = np.zeros(problem.controls) if problem.control_guess is None else problem.control_guess
            for stage in range(problem.horizon + 1):
                solver.set(stage, "x", initial)
            for stage in range(problem.horizon):
                solver.set(stage, "u", guess)
        else:
            solver.load_iterate_from_flat_obj(start.data)
        solver.set_p_global_and_precompute_dependencies(parameter)
        for field in ("lbx", "ubx"):
            solver.constraints_set(0, field, initial)

    def _found(self, solver: Any, point: np.ndarray, status: int) -> Solution:
        problem = self.problem
        if status:
            raise SolveFailure(f"acados: status {status}")
        states = np.stack([solver.get(stage, "x") for stage in range(problem.horizon + 1)])
        controls = np.stack([solver.get(stage, "u") for stage in range(problem.horizon)])
        return Solution(point, states, controls, float(solver.get_cost()), solver.store_iterate_to_flat_obj())

    def sensitivity(self, solution: Solution) -> Sensitivity:
        problem = self.problem
        self._factorise(solution)
        stages = list(range(problem.horizon + 1))
        parts = []
        for what in ("initial_state", "p_global"):
            found = self.solver.eval_solution_sensitivity(stages, what, return_sens_x=True, return_sens_u=True)
            parts.append((np.stack(found["sens_x"]), np.stack(found["sens_u"][: problem.horizon])))
        states, controls = (np.concatenate([part[side] for part in parts], axis=-1) for side in (0, 1))
        return Sensitivity(states, controls, self._value_gradient())

    def adjoint(self, solution: Solution, seed: Adjoint) -> np.ndarray:
        """The parameters' part by `eval_adjoint_solution_sensitivity`, the initial state's by forward ones."""
        problem = self.problem
        self._factorise(solution)
        stages = list(range(problem.horizon + 1))
        by_parameter = self.solver.eval_adjoint_solution_sensitivity(
            seed_x=[(stage, seed.states[stage][:, None]) for stage in stages],
            seed_u=[(stage, seed.controls[stage][:, None]) for stage in stages[:-1]],
            sanity_checks=False,
        ).ravel()
        found = self.solver.eval_solution_sensitivity(stages, "initial_state", return_sens_x=True, return_sens_u=True)
        by_state = sum(seed.states[stage] @ found["sens_x"][stage] for stage in stages)
        by_state = by_state + sum(seed.controls[stage] @ found["sens_u"][stage] for stage in stages[:-1])
        return np.concatenate([by_state, by_parameter]) + seed.value * self._value_gradient()

    def _factorise(self, solution: Solution) -> None:
        self.solver.load_iterate_from_flat_obj(solution.data)
        status = self.solver.setup_qp_matrices_and_factorize()
        if status:
            raise SolveFailure(f"acados: its factorization at the solution failed with status {status}")

    def _value_gradient(self) -> np.ndarray:
        gradient = self.solver.eval_and_get_optimal_value_gradient
        return np.concatenate([gradient("initial_state").ravel(), gradient("p_global").ravel()])

    def close(self) -> None:
        self._folder.cleanup()


def _formulate(template: Any, description: dict[str, Any]) -> Any:
    ocp = template.AcadosOcp()
    model = ocp.model
    model.name = f"parity_{description['key']}"
    x, u = casadi.SX.sym("x", description["states"]), casadi.SX.sym("u", description["controls"])
    p = casadi.SX.sym("p_global", description["parameters"])
    following, cost, path = casadi.Function.deserialize(description["stage"])(x, u, p)
    model.x, model.u, model.p_global = x, u, p
    model.disc_dyn_expr = following
    model.cost_expr_ext_cost = cost
    model.cost_expr_ext_cost_e = casadi.Function.deserialize(description["terminal"])(x, p)
    ocp.cost.cost_type, ocp.cost.cost_type_e = "EXTERNAL", "EXTERNAL"
    ocp.p_global_values = np.zeros(description["parameters"])
    constraints = ocp.constraints
    constraints.x0 = np.zeros(description["states"])
    if len(description["control_index"]):
        constraints.idxbu = description["control_index"]
        constraints.lbu, constraints.ubu = description["control_bounds"]
    if len(description["state_index"]):
        constraints.idxbx = constraints.idxbx_e = description["state_index"]
        constraints.lbx, constraints.ubx = description["state_bounds"]
        constraints.lbx_e, constraints.ubx_e = description["state_bounds"]
    if path.numel():
        model.con_h_expr = model.con_h_expr_0 = path
        lower, upper = (np.clip(bound, -INFINITY, INFINITY) for bound in description["path_bounds"])
        constraints.lh, constraints.uh = constraints.lh_0, constraints.uh_0 = lower, upper
    options = ocp.solver_options
    options.N_horizon, options.tf = description["horizon"], float(description["horizon"])
    options.integrator_type, options.nlp_solver_type = "DISCRETE", "SQP"
    options.hessian_approx, options.regularize_method = "EXACT", "NO_REGULARIZE"
    options.qp_solver, options.qp_solver_ric_alg = "PARTIAL_CONDENSING_HPIPM", 0
    options.qp_solver_cond_N = description["horizon"]
    options.tol = TOLERANCE
    options.qp_tol = TOLERANCE / 10
    options.nlp_solver_max_iter = 100
    options.solution_sens_qp_t_lam_min = LEAST_MULTIPLIER
    generation = _generation(ocp)
    owner = generation if hasattr(generation, "with_solution_sens_wrt_params") else options
    owner.with_solution_sens_wrt_params = owner.with_value_sens_wrt_params = True
    return ocp


def _generation(ocp: Any) -> Any:
    """Who has the options of generated code: since 0.5.6 a part of the problem, before that the problem itself."""
    return getattr(ocp, "code_gen_options", ocp)
