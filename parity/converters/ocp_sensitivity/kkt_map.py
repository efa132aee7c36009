"""Our own engine: the optimality system, solved to rounding and differentiated. Works everywhere."""

from __future__ import annotations

import numpy as np

from parity.cases.ocp import OptimalControlProblem
from parity.runtimes.ocp import RobustSolver
from parity.runtimes.optimality import Margins
from parity.runtimes.solution_map import Adjoint, Sensitivity, Solution, SolutionMap
from parity.runtimes.transcription import transcribe


class KktMap(SolutionMap):
    """Its solutions' `data` is the polished point of `parity.runtimes.optimality`."""

    name = "kkt"

    def __init__(self, problem: OptimalControlProblem) -> None:
        super().__init__(problem)
        self.solver = RobustSolver(transcribe(problem))
        self.system = self.solver.system

    def solve(self, point: np.ndarray, start: Solution | None = None) -> Solution:
        return self.system.solution(self.solver.solve(point, start.data if start else None))

    def sensitivity(self, solution: Solution) -> Sensitivity:
        return self.system.differentiate(solution.data)

    def adjoint(self, solution: Solution, seed: Adjoint) -> np.ndarray:
        return self.system.adjoint(solution.data, seed)

    def margins(self, solution: Solution) -> Margins:
        """How far the solution is from where its derivative ends."""
        return self.system.margins(solution.data)
