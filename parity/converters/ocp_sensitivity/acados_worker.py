"""The process that acados runs in: `python -m parity.converters.ocp_sensitivity.acados_worker INSTALLATION FOLDER`.

It takes pickled requests from its standard input and answers on its standard output; a crash in here costs its caller
one answer. Generated code and everything that acados prints stay in FOLDER, which the caller removes.

Parameters are states that do not change (p⁺ = p), so that `eval_param_sens`, which differentiates by the initial
state, gives all sensitivities.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import casadi
import numpy as np

from parity.converters.ocp_sensitivity.acados_installation import LIBRARIES, library_folder
from parity.runtimes.solution_map import TIMED_STEP, central_differences

INFINITY = 1e9
"""acados has no infinite bounds."""
DEEP_ITERATIONS = 2
DEEP_QP_ITERATIONS = 25
ITERATIONS = 100
QP_ITERATIONS = 100


def load(installation: Path) -> Any:
    """Import the wheel's `acados_template`, its libraries first, after the real CasADi."""
    root = installation / "acados"
    os.environ["ACADOS_SOURCE_DIR"] = str(root / "install")
    os.environ["TERA_PATH"] = str(root / "install" / "bin" / "t_renderer")
    os.environ["ACADOS_PYTHON_INTERFACE_PATH"] = str(root / "acados_template")
    for name in LIBRARIES:
        ctypes.CDLL(str(library_folder(installation) / name), mode=ctypes.RTLD_GLOBAL)
    sys.path.append(str(installation))
    from acados import acados_template

    return acados_template


class Solver:
    """One compiled problem. `description` is what `acados_map.describe` makes of it."""

    def __init__(self, template: Any, description: dict[str, Any], exact_hessian: bool) -> None:
        self.description = description
        self.size = description["states"] + description["parameters"]
        self.horizon, self.controls = description["horizon"], description["controls"]
        ocp = _formulate(template, description, exact_hessian)
        compiled = (Path(ocp.code_export_directory) / f"libacados_ocp_solver_{ocp.model.name}.so").is_file()
        self.solver = template.AcadosOcpSolver(
            ocp, json_file=ocp.json_file, build=not compiled, generate=not compiled, verbose=True
        )
        self.library = library = self.solver.shared_lib
        pointer, text, integer = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
        library.ocp_nlp_solver_opts_set.argtypes = [pointer, pointer, text, pointer]
        library.ocp_nlp_eval_param_sens.argtypes = [pointer, text, integer, integer, pointer]
        library.ocp_nlp_eval_param_sens.restype = None
        library.ocp_nlp_out_get.argtypes = [pointer, pointer, pointer, integer, text, pointer]

    def solve(
        self, point: np.ndarray, start: dict[str, Any], tolerance: float, polish: bool
    ) -> tuple[int, dict[str, Any], float]:
        """acados' status, the iterate and the cost."""
        solver = self.solver
        if start.get("here") is None:
            self._set(point, start)
        for field in ("lbx", "ubx"):
            solver.set(0, field, point)
        self._options(tolerance, ITERATIONS, QP_ITERATIONS)
        status = int(solver.solve())
        if status == 0 and polish:
            self._polish()
        return status, self._iterate(), float(solver.get_cost())

    def _polish(self) -> None:
        self._options(1e-30, DEEP_ITERATIONS, DEEP_QP_ITERATIONS)
        self.solver.solve()  # its status is 2: no tolerance of 1e-30 is ever met

    def polished_sensitivity(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self._polish()
        return self.sensitivity()

    def sensitivity(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the last solve: states (N+1, nx, nθ), controls (N, nu, nθ), value (nθ,)."""
        states = np.zeros((self.size, self.horizon + 1, self.size))
        controls = np.zeros((self.size, self.horizon, self.controls))
        solver, library = self.solver, self.library
        handles = (solver.nlp_config, solver.nlp_dims, solver.sens_out)
        for index in range(self.size):
            library.ocp_nlp_eval_param_sens(solver.nlp_solver, b"ex", 0, index, solver.sens_out)
            for stage in range(self.horizon + 1):
                library.ocp_nlp_out_get(*handles, stage, b"x", states[index, stage].ctypes.data)
            for stage in range(self.horizon):
                library.ocp_nlp_out_get(*handles, stage, b"u", controls[index, stage].ctypes.data)
        multipliers = solver.get(0, "lam")
        first = len(self.description["control_index"])
        lower = multipliers[first : first + self.size]
        half = len(multipliers) // 2
        upper = multipliers[half + first : half + first + self.size]
        nx = self.description["states"]
        return np.moveaxis(states, 0, -1)[:, :nx], np.moveaxis(controls, 0, -1), lower - upper

    def differences(self, point: np.ndarray, tolerance: float, polish: bool) -> None:
        """The solves of central differences by all of θ, each warm-started from the solution; their cost is timed."""
        base = self._iterate()

        def solve(there: np.ndarray) -> np.ndarray:
            controls: np.ndarray = self.solve(there, {"here": True}, tolerance, polish)[1]["u"]
            return controls

        central_differences(solve, point, TIMED_STEP)
        self._set(point, base)

    def _set(self, point: np.ndarray, start: dict[str, Any]) -> None:
        solver, nx = self.solver, self.description["states"]
        solver.reset()
        for stage in range(self.horizon + 1):
            solver.set(stage, "x", np.concatenate([start["x"][stage][:nx], point[nx:]]))
            if "lam" in start:
                solver.set(stage, "lam", start["lam"][stage])
        for stage in range(self.horizon):
            solver.set(stage, "u", start["u"][stage])
            if "pi" in start:
                solver.set(stage, "pi", start["pi"][stage])

    def _iterate(self) -> dict[str, Any]:
        solver, stages = self.solver, range(self.horizon + 1)
        return {
            "x": np.stack([solver.get(stage, "x") for stage in stages]),
            "u": np.stack([solver.get(stage, "u") for stage in stages[:-1]]),
            "pi": [solver.get(stage, "pi") for stage in stages[:-1]],
            "lam": [solver.get(stage, "lam") for stage in stages],
        }

    def _options(self, tolerance: float, iterations: int, qp_iterations: int) -> None:
        for name in ("stat", "eq", "ineq", "comp"):
            self._option(f"tol_{name}", ctypes.c_double(tolerance))
            self._option(f"qp_tol_{name}", ctypes.c_double(tolerance))
        self._option("max_iter", ctypes.c_int(iterations))
        self._option("qp_iter_max", ctypes.c_int(qp_iterations))

    def _option(self, name: str, value: Any) -> None:
        solver = self.solver
        self.library.ocp_nlp_solver_opts_set(solver.nlp_config, solver.nlp_opts, name.encode(), ctypes.byref(value))


def _formulate(template: Any, description: dict[str, Any], exact_hessian: bool) -> Any:
    ocp = template.AcadosOcp()
    model = template.AcadosModel()
    model.name = f"parity_{description['key']}_{'exact' if exact_hessian else 'gauss_newton'}"
    nx, parameters, size = description["states"], description["parameters"], description["states"]
    size += parameters
    state, control = casadi.SX.sym("z", size), casadi.SX.sym("u", description["controls"])
    x, p = state[:nx], state[nx:]
    stage = casadi.Function.deserialize(description["stage"])
    following, cost, path = stage(x, control, p)
    model.x, model.u = state, control
    model.disc_dyn_expr = casadi.vertcat(following, p)
    model.cost_expr_ext_cost = cost
    model.cost_expr_ext_cost_e = casadi.Function.deserialize(description["terminal"])(x, p)
    ocp.model = model
    ocp.cost.cost_type, ocp.cost.cost_type_e = "EXTERNAL", "EXTERNAL"
    ocp.dims.N = description["horizon"]

    constraints = ocp.constraints
    constraints.x0 = np.zeros(size)
    index = description["control_index"]
    if len(index):
        lower, upper = description["control_bounds"]
        constraints.idxbu, constraints.lbu, constraints.ubu = index, lower, upper
    index = description["state_index"]
    if len(index):
        lower, upper = description["state_bounds"]
        constraints.idxbx, constraints.lbx, constraints.ubx = index, lower, upper
        constraints.idxbx_e, constraints.lbx_e, constraints.ubx_e = index, lower, upper
    if path.numel():
        model.con_h_expr = path
        constraints.lh, constraints.uh = description["path_bounds"]

    options = ocp.solver_options
    options.tf = float(description["horizon"])  # stage costs are multiplied by the time step: let it be one
    options.integrator_type = "DISCRETE"
    options.nlp_solver_type = "SQP"
    options.hessian_approx = "EXACT" if exact_hessian else "GAUSS_NEWTON"
    options.qp_solver = "PARTIAL_CONDENSING_HPIPM"
    options.qp_solver_cond_N = description["horizon"]  # condensed further, sensitivities are silently wrong
    options.qp_solver_ric_alg = 0  # with 1, too, where the full Hessian is indefinite
    options.qp_solver_iter_max = QP_ITERATIONS
    options.nlp_solver_max_iter = ITERATIONS
    options.ext_fun_compile_flags = "-O1"
    ocp.code_export_directory = str(Path.cwd() / model.name)
    ocp.json_file = str(Path.cwd() / f"{model.name}.json")
    return ocp


def serve(installation: Path) -> None:
    """Answer ("ok", result) or ("error", text) to each (function, arguments), until the input ends."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    log = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    template = solver = None
    while True:
        try:
            name, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            if name == "build":
                template = template or load(installation)
                solver, result = Solver(template, *arguments), None
            else:
                result = getattr(solver, name)(*arguments)
            answer = ("ok", result)
        except Exception as error:
            answer = ("error", f"{type(error).__name__}: {error}")
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    os.chdir(sys.argv[2])
    serve(Path(sys.argv[1]))
