"""Executes optimal control problems: solved by IPOPT, then to the last digit; their derivatives by differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import casadi
import numpy as np

from parity.cases.ocp import OptimalControlProblem
from parity.errors import ParityError
from parity.runtimes import Arrays
from parity.runtimes.differencing import Differences, difference, same_branch
from parity.runtimes.optimality import Margins, OptimalitySystem, Polished
from parity.runtimes.solution_map import Sensitivity, Solution, SolveFailure
from parity.runtimes.transcription import NonlinearProgram, transcribe

NEAR = 1e-3
"""How far, relatively, an engine's solution may be from the optimality system's that it is taken for."""
QUIET = {"print_time": False, "ipopt.print_level": 0, "ipopt.sb": "yes"}


class RobustSolver:
    """IPOPT from a cold start, then Newton's method on the active set: the way to a solution from nothing."""

    def __init__(self, program: NonlinearProgram) -> None:
        self.program = program
        self.system = OptimalitySystem(program)
        nlp = {"x": program.variables, "p": program.point, "f": program.objective, "g": program.constraints}
        options: dict[str, Any] = {
            **QUIET,
            "ipopt.tol": 1e-10,
            "ipopt.max_iter": 500,
            "ipopt.fixed_variable_treatment": "make_constraint",
        }
        self._solver = casadi.nlpsol("robust", "ipopt", nlp, options)

    def rough(self, point: np.ndarray, start: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """IPOPT's solution: `x` and multipliers `lam_x`, `lam_g`. Raises `SolveFailure` with IPOPT's status."""
        program, size = self.program, self.program.size
        found = self._solver(
            x0=program.initial(point) if start is None else start, p=point, lbx=program.lower[:size],
            ubx=program.upper[:size], lbg=program.lower[size:], ubg=program.upper[size:],
        )  # fmt: skip
        status = self._solver.stats()["return_status"]
        if status not in ("Solve_Succeeded", "Solved_To_Acceptable_Level"):
            raise SolveFailure(f"ipopt: {status}")
        return {name: value.full().ravel() for name, value in found.items()}

    def solve(self, point: np.ndarray, start: Polished | None = None) -> Polished:
        """The solution to rounding. Raises `SolveFailure`."""
        if start is not None:
            try:
                return self.system.polish(Polished(start.variables, start.multipliers, start.side, point))
            except SolveFailure:
                pass
        rough = self.rough(point)
        multipliers = np.concatenate([rough["lam_x"], rough["lam_g"]])
        return self.system.polish(self.system.start(rough["x"], multipliers, point))


class _Known:
    """What has been found out about a problem, for all the engines that are compared on it."""

    def __init__(self, problem: OptimalControlProblem) -> None:
        # The problem itself holds this by weak key: so it must not hold the problem in turn.
        self._symbols = replace(problem)
        self.solved: dict[bytes, Polished] = {}
        self.differenced: dict[bytes, Differences] = {}

    @cached_property
    def robust(self) -> RobustSolver:
        return RobustSolver(transcribe(self._symbols))


_KNOWN: WeakKeyDictionary[OptimalControlProblem, _Known] = WeakKeyDictionary()


class OcpRuntime:
    """The reference of the path ocp→solution-map. Inputs are points θ = (x̂, p), shape (batch, nx + np).

    Its value is the polished solution; its Jacobian the differences' one.
    """

    representation = "ocp"
    artifact_bytes = None

    def __init__(self, artifact: OptimalControlProblem, dtype: str | None = None) -> None:
        self.model = artifact
        self.dtype = dtype or "float64"
        self._known = _KNOWN.setdefault(artifact, _Known(artifact))

    @property
    def robust(self) -> RobustSolver:
        return self._known.robust

    @property
    def system(self) -> OptimalitySystem:
        return self.robust.system

    def value(self, inputs: Arrays) -> np.ndarray:
        return np.stack([self.solution(point).flat for point in inputs[0]])

    def jacobian(self, inputs: Arrays) -> np.ndarray:
        return self.differences(self.polished(inputs[0][0])).jacobian

    def hessian(self, inputs: Arrays, projection: np.ndarray) -> np.ndarray:
        raise ParityError("second derivatives of a solution are not offered: check solution and sensitivity")

    def polished(self, point: np.ndarray) -> Polished:
        key = point.tobytes()
        if key not in self._known.solved:
            self._known.solved[key] = self.robust.solve(point)
        return self._known.solved[key]

    def polished_from(self, solution: Solution) -> Polished:
        """The solution of the optimality system that is nearest to another engine's. Raises `SolveFailure`."""
        system = self.system
        variables = system.pack(solution.states, solution.controls)
        with suppress(SolveFailure):  # a saddle point too, from which IPOPT would walk away
            there = system.polish(system.near(variables, solution.point))
            if np.abs(there.variables - variables).max() < NEAR * max(1.0, np.abs(variables).max()):
                return there
        rough = self.robust.rough(solution.point, variables)
        return system.polish(system.start(rough["x"], np.concatenate([rough["lam_x"], rough["lam_g"]]), solution.point))

    def solution(self, point: np.ndarray) -> Solution:
        return self.system.solution(self.polished(point))

    def differences(self, at: Polished) -> Differences:
        key = at.point.tobytes() + at.variables.tobytes()
        if key not in self._known.differenced:
            self._known.differenced[key] = difference(same_branch(self.system, at), at.point)
        return self._known.differenced[key]

    def implicit(self, at: Polished) -> Sensitivity:
        return self.system.differentiate(at)

    def margins(self, at: Polished) -> Margins:
        return self.system.margins(at)

    def caller(self, check: str, inputs: Arrays, projection: np.ndarray) -> Callable[[], object]:
        raise ParityError("an optimal control problem is not timed: its engines are")

    def caller_description(self, check: str) -> str:
        return "no call"

    @contextmanager
    def rounding(self, dtype: str, seed: int) -> Iterator[float]:
        """Its results are exact to rounding; checks take their yardstick from the problem's condition instead."""
        yield 1.0

    def validate(self, inputs: Arrays) -> None:
        """Raise `ParityError` for points of the wrong length or that are not finite."""
        for array in inputs:
            if array.shape[1:] != (self.model.points,) or not np.isfinite(array).all():
                raise ParityError(f"points of {self.model!r} are finite, of shape (batch, {self.model.points})")

    def example(self, inputs: Arrays) -> tuple[Any, ...]:
        return inputs

    def remark(self, layer: str) -> str:
        return ""

    def prefixes(self, inputs: Arrays) -> Iterator[tuple[str, Any]]:
        return iter(())
