"""acados from the registry, in a process of its own; see `acados_worker`.

Its plain sensitivities are wrong in three ways, with status 0: SQP stops without solving a QP at its last iterate; the
interior-point method's factorization is that of its second to last iterate; and active bounds are smoothed by its
barrier. Two more QPs at the solution, to the last digit, cure all three (`polish`).
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import casadi
import numpy as np

from parity.cases.ocp import Bounds, OptimalControlProblem
from parity.converters.ocp_sensitivity import acados_installation
from parity.errors import ParityError
from parity.runtimes.ocp import RobustSolver
from parity.runtimes.solution_map import Sensitivity, Solution, SolutionMap, SolveFailure
from parity.runtimes.transcription import transcribe, with_networks_converted

STATUS = {1: "failure, NaN", 2: "too many iterations", 3: "step too small", 4: "QP solver failed"}
INFINITY = 1e9
PREFIX = "parity-acados-"


class AcadosMap(SolutionMap):
    """Its solutions' `data` are the number of the solve and the iterate with its multipliers."""

    name = "acados"
    last_only = True

    def __init__(
        self, problem: OptimalControlProblem, *, tolerance: float, polish: bool = False, exact_hessian: bool = True
    ) -> None:
        super().__init__(problem)
        self.tolerance, self.polish, self.exact_hessian = tolerance, polish, exact_hessian
        installation = acados_installation.find()
        self._plain = with_networks_converted(problem)
        description = describe(self._plain)
        folder = code_folder() / f"{description['key']}-{'exact' if exact_hessian else 'gauss-newton'}"
        self._process = Process(installation, folder)
        self._process("build", description, exact_hessian)
        self._solves = 0

    def solve(self, point: np.ndarray, start: Solution | None = None) -> Solution:
        if start is not None:
            found = self._solve(point, {"here": True} if start.data[0] == self._solves else start.data[1])
            if found is not None:
                return found
        problem = self.problem
        guess = np.zeros(problem.controls) if problem.control_guess is None else problem.control_guess
        cold = {
            "x": np.tile(point[: problem.states], (problem.horizon + 1, 1)),
            "u": np.tile(guess, (problem.horizon, 1)),
        }
        found = self._solve(point, cold)
        if found is None:  # a full step from far away may diverge: IPOPT finds the neighbourhood
            rough = self._robust.rough(point)["x"][self._robust.program.places]
            states, controls = self.split(rough)
            found = self._solve(point, {"x": states, "u": controls})
        if found is None:
            raise SolveFailure(f"acados: status {self._status} ({STATUS.get(self._status, 'unknown')})")
        return found

    def sensitivity(self, solution: Solution) -> Sensitivity:
        number, iterate = solution.data
        if number != self._solves and self._solve(solution.point, iterate) is None:
            raise SolveFailure(f"acados: status {self._status} when started again at its own solution")
        states, controls, value = self._process("sensitivity")
        if not (np.isfinite(states).all() and np.isfinite(controls).all()):
            raise SolveFailure("acados' sensitivities are not finite")
        return Sensitivity(states, controls, value)

    def timing_calls(self, point: np.ndarray) -> tuple[Callable[[], object], Callable[[], object]]:
        """Both in the worker, each one request: what is compared is acados, not the way to it.

        Polishing counts as a part of the sensitivities, and of each solve that is differenced.
        """
        self.solve(point)
        differences = (point, self.tolerance, self.polish)
        name = "polished_sensitivity" if self.polish else "sensitivity"
        return (lambda: self._process(name)), (lambda: self._process("differences", *differences))

    def another(self) -> AcadosMap:
        return AcadosMap(self.problem, tolerance=self.tolerance, polish=self.polish, exact_hessian=self.exact_hessian)

    def _solve(self, point: np.ndarray, start: dict[str, Any]) -> Solution | None:
        self._status, iterate, value = self._process("solve", point, start, self.tolerance, self.polish)
        self._solves += 1
        if self._status or not all(np.isfinite(iterate[name]).all() for name in ("x", "u")):
            return None
        states = iterate["x"][:, : self.problem.states]
        return Solution(point, states, iterate["u"], value, (self._solves, iterate))

    @cached_property
    def _robust(self) -> RobustSolver:
        return RobustSolver(transcribe(self._plain))

    def close(self) -> None:
        self._process.close()


@cache
def _code_folder(process: int) -> tempfile.TemporaryDirectory[str]:
    """One per process that uses acados; removed when it ends, and by the next one if it was killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner = left.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"{PREFIX}{process}-", ignore_cleanup_errors=True)


def code_folder() -> Path:
    """Where generated code lies, one subfolder per problem, so that each is compiled once. Raises ParityError."""
    try:
        return Path(_code_folder(os.getpid()).name)
    except OSError as error:
        raise ParityError(f"acados needs a folder for its generated code: {error}; set TMPDIR") from error


class Process:
    """A worker in a folder of generated code, called like a function."""

    def __init__(self, installation: Path, folder: Path) -> None:
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise ParityError(f"acados needs a folder for its generated code: {error}; set TMPDIR") from error
        module = "parity.converters.ocp_sensitivity.acados_worker"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(installation), str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        self._finalizer = weakref.finalize(self, _end, self._process)

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Raises ParityError with the worker's message, or with how it died."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            pickle.dump((name, arguments), self._process.stdin)
            self._process.stdin.flush()
            kind, result = pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            code = self._process.wait()
            raise ParityError(f"acados' process ended with code {code} in {name}{self._output()}") from error
        if kind == "error":
            raise ParityError(f"acados, {name}: {result}{self._output()}")
        return result

    def _output(self) -> str:
        """The last thing that acados or its compiler said."""
        try:
            lines = (self.folder / "output.txt").read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return ""
        told = [line.strip() for line in lines if "error" in line.lower()] or [line for line in lines if line.strip()]
        return f"; its output ends: {told[-1][:200]}" if told else ""

    def close(self) -> None:
        self._finalizer()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()


def describe(problem: OptimalControlProblem) -> dict[str, Any]:
    """The problem in what can be sent to another process: CasADi functions as text, numbers."""
    symbols = [problem.state, problem.control, problem.parameter]
    path = casadi.SX(0, 1) if problem.path is None else problem.path
    stage = casadi.Function("stage", symbols, [problem.dynamics, problem.stage_cost, path])
    terminal = casadi.Function("terminal", [problem.state, problem.parameter], [problem.terminal_cost])
    control_index, control_bounds = _finite(problem.control_bounds)
    state_index, state_bounds = _finite(problem.state_bounds)
    description = {
        "horizon": problem.horizon,
        "states": problem.states,
        "controls": problem.controls,
        "parameters": problem.parameters,
        "stage": stage.serialize(),
        "terminal": terminal.serialize(),
        "control_index": control_index,
        "control_bounds": control_bounds,
        "state_index": state_index,
        "state_bounds": state_bounds,
        "path_bounds": problem.path_bounds
        and tuple(np.clip(bound, -INFINITY, INFINITY) for bound in problem.path_bounds),
    }
    description["key"] = hashlib.sha256(pickle.dumps(description)).hexdigest()[:12]
    return description


def _finite(bounds: Bounds | None) -> tuple[np.ndarray, Bounds]:
    """The elements that have a bound, and the bounds of these: acados has no infinite ones."""
    if bounds is None:
        return np.zeros(0, int), (np.zeros(0), np.zeros(0))
    index = np.flatnonzero(np.isfinite(bounds[0]) | np.isfinite(bounds[1]))
    lower, upper = (np.clip(bound[index], -INFINITY, INFINITY) for bound in bounds)
    return index, (lower, upper)
