"""Sensitivities by differences alone: no formula for the derivative, so nothing in one that could be wrong."""

from __future__ import annotations

import numpy as np

from parity.cases.ocp import OptimalControlProblem
from parity.runtimes.differencing import difference, same_branch
from parity.runtimes.ocp import RobustSolver
from parity.runtimes.solution_map import Sensitivity, Solution, SolutionMap
from parity.runtimes.transcription import transcribe


class DifferencesMap(SolutionMap):
    """See `parity.runtimes.differencing`."""

    name = "finite-differences"

    def __init__(self, problem: OptimalControlProblem) -> None:
        super().__init__(problem)
        self.solver = RobustSolver(transcribe(problem))

    def solve(self, point: np.ndarray, start: Solution | None = None) -> Solution:
        return self.solver.system.solution(self.solver.solve(point, start.data if start else None))

    def sensitivity(self, solution: Solution) -> Sensitivity:
        found = difference(same_branch(self.solver.system, solution.data), solution.point).jacobian
        return Sensitivity(*self.split(found), found[-1])
