"""Solution maps: the point θ = (x̂, p) of an optimal control problem to its optimal states, controls and value.

An engine is a subclass of `SolutionMap`. Arrays are float64; stages come first: states (N+1, nx), controls (N, nu).
The flat output is states, then controls, row by row, then the value, as a runtime's outputs are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from parity.cases.ocp import OptimalControlProblem
from parity.errors import ParityError
from parity.runtimes import Arrays

Answer = TypeVar("Answer")
Function = Callable[[np.ndarray], np.ndarray]
TIMED_STEP = 1e-5
"""Of the central differences whose time is taken; see `central_differences`."""
ENGINES = 2
"""How many share a batch whose time is taken."""
NEARBY = 0.99


class SolveFailure(ParityError):
    """The problem at this point is infeasible, or the solver did not converge; the message holds its own words."""


@dataclass(frozen=True, eq=False)
class Solution:
    """An optimal solution at `point`. `data` is what its engine needs to differentiate it or to start from it."""

    point: np.ndarray
    states: np.ndarray
    controls: np.ndarray
    value: float
    data: Any = None

    @property
    def flat(self) -> np.ndarray:
        return np.concatenate([self.states.ravel(), self.controls.ravel(), [self.value]])


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Derivatives by θ: states (N+1, nx, nθ), controls (N, nu, nθ), value (nθ,)."""

    states: np.ndarray
    controls: np.ndarray
    value: np.ndarray

    @property
    def flat(self) -> np.ndarray:
        """Shape ((N+1) nx + N nu + 1, nθ)."""
        columns = len(self.value)
        return np.concatenate([self.states.reshape(-1, columns), self.controls.reshape(-1, columns), self.value[None]])


@dataclass(frozen=True, eq=False)
class Adjoint:
    """A linear functional of states, controls and value: its coefficients, in their shapes."""

    states: np.ndarray
    controls: np.ndarray
    value: float = 0.0

    def of(self, sensitivity: Sensitivity) -> np.ndarray:
        """The functional's derivative by θ, shape (nθ,)."""
        by_states = np.tensordot(self.states, sensitivity.states, 2)
        by_controls = np.tensordot(self.controls, sensitivity.controls, 2)
        gradient: np.ndarray = by_states + by_controls + self.value * sensitivity.value
        return gradient


Batch = Callable[[np.ndarray, Sequence[Solution | None]], list[Solution]]
"""From points (batch, nθ) and solutions to start from. Raises `SolveFailure` for any."""


class SolutionMap(ABC):
    """What an engine makes of a problem."""

    name: str = ""
    last_only = False
    """Keeps the factorization of its last solve alone: derivatives of an earlier one cost another solve."""

    def __init__(self, problem: OptimalControlProblem) -> None:
        self.problem = problem

    @abstractmethod
    def solve(self, point: np.ndarray, start: Solution | None = None) -> Solution:
        """Solve at θ, shape (nθ,), from an earlier solution where given. Raises `SolveFailure`."""

    @abstractmethod
    def sensitivity(self, solution: Solution) -> Sensitivity:
        """Derivatives of the solution by all of θ. Raises `SolveFailure` where the engine's system is singular."""

    def adjoint(self, solution: Solution, seed: Adjoint) -> np.ndarray:
        """The functional's derivative by θ, shape (nθ,); engines that can save the full Jacobian override this."""
        return seed.of(self.sensitivity(solution))

    def split(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """States and controls out of the first axis of an array in the flat order."""
        problem, rest = self.problem, flat.shape[1:]
        cut = (problem.horizon + 1) * problem.states
        end = cut + problem.horizon * problem.controls
        return (
            flat[:cut].reshape(problem.horizon + 1, problem.states, *rest),
            flat[cut:end].reshape(problem.horizon, problem.controls, *rest),
        )

    def timing_calls(self, point: np.ndarray) -> tuple[Callable[[], object], Callable[[], object]]:
        """Two calls: all sensitivities at a solution; and the central differences that would give them, both warm."""
        solution = self.solve(point)

        def differences() -> np.ndarray:
            return central_differences(lambda there: self.solve(there, solution).flat, point, TIMED_STEP)

        return (lambda: self.sensitivity(solution)), differences

    def another(self) -> SolutionMap:
        """A second engine of the same kind, which may solve while this one does."""
        return type(self)(self.problem)

    def batch(self, count: int) -> Batch:
        """What solves a batch by `count` engines at once; engines with a batch solver of their own override this."""
        engines = [self, *(self.another() for _ in range(count - 1))]
        return lambda points, starts: each_row(
            engines, len(points), lambda engine, row: engine.solve(points[row], starts[row])
        )

    def close(self) -> None:  # noqa: B027  # most engines have none
        """Give back processes and temporary files."""


def central_differences(function: Function, point: np.ndarray, step: float) -> np.ndarray:
    """The Jacobian of a function of θ, shape (outputs, nθ), by one step relative to max(1, |θ|)."""
    columns = []
    for index in range(len(point)):
        width = np.zeros(len(point))
        width[index] = step * max(1.0, abs(point[index]))
        columns.append((function(point + width) - function(point - width)) / (2 * width[index]))
    return np.stack(columns, axis=1)


def each_row(engines: Sequence[SolutionMap], rows: int, work: Callable[[SolutionMap, int], Answer]) -> list[Answer]:
    """`work(engine, row)` for all rows, one thread per engine.

    Row i is always the business of engine i modulo the number of engines, so that warm starts stay with it.
    """
    count = len(engines)

    def share(number: int) -> list[Answer]:
        return [work(engines[number], row) for row in range(number, rows, count)]

    if count == 1:
        return share(0)
    with ThreadPoolExecutor(count) as pool:
        shares = list(pool.map(share, range(count)))
    return [shares[row % count][row // count] for row in range(rows)]


class SolutionMapRuntime:
    """A solution map as a runtime: inputs are points θ, shape (batch, nθ)."""

    representation = "solution-map"
    artifact_bytes = None

    def __init__(self, artifact: SolutionMap, dtype: str | None = None) -> None:
        self.map = artifact
        self.dtype = dtype or "float64"

    def value(self, inputs: Arrays) -> np.ndarray:
        return np.stack([self.map.solve(point).flat for point in inputs[0]])

    def jacobian(self, inputs: Arrays) -> np.ndarray:
        return self.map.sensitivity(self.map.solve(inputs[0][0])).flat

    def hessian(self, inputs: Arrays, projection: np.ndarray) -> np.ndarray:
        raise ParityError("second derivatives of a solution are not offered: check solution and sensitivity")

    def caller(self, check: str, inputs: Arrays, projection: np.ndarray) -> Callable[[], object]:
        if check == "sensitivity":
            return self.map.timing_calls(inputs[0][0])[0]
        return self._solves(inputs[0], ENGINES)

    def baseline(self, check: str, inputs: Arrays) -> Callable[[], object]:
        """What the speed of a check is compared with: the engine's own central differences, or its solves in turn."""
        return self.map.timing_calls(inputs[0][0])[1] if check == "sensitivity" else self._solves(inputs[0], 1)

    def _solves(self, points: np.ndarray, count: int) -> Callable[[], object]:
        """Solves of a batch by `count` engines at once, each from a solution 1 % away, as in a training loop."""
        starts = [self.map.solve(NEARBY * point) for point in points]
        batch = self.map.batch(count)
        return lambda: batch(points, starts)

    def caller_description(self, check: str) -> str:
        return "all sensitivities at a solution" if check == "sensitivity" else f"a batch by {ENGINES} engines at once"

    def baseline_description(self, check: str) -> str:
        return "central differences through the same engine" if check == "sensitivity" else "one by one"
