"""Solves embeddings that are a `gurobipy.Model`. The licence of the pip package takes small models only."""

from __future__ import annotations

import numpy as np

from parity.embedding import FEASIBILITY, GurobiEmbedding
from parity.errors import Unsupported
from parity.runtimes.optimization import INFEASIBLE, LIMIT, OPTIMAL, STUCK, Clock, OptimizationRuntime, Solution

ENDS = {2: OPTIMAL, 3: INFEASIBLE, 4: INFEASIBLE, 9: LIMIT}
"""Gurobi's status codes."""


class GurobiOptimizationRuntime(OptimizationRuntime):
    """Only its solver judges it: the model does not say which variable is which neuron."""

    embedding: GurobiEmbedding

    def maximise(
        self, weights: np.ndarray, fixed: np.ndarray | None = None, start: np.ndarray | None = None
    ) -> Solution:
        import gurobipy

        embedding, model = self.embedding, self.embedding.model
        low, high = (embedding.lower, embedding.upper) if fixed is None else (fixed, fixed)
        for index, variable in enumerate(embedding.x):
            variable.LB, variable.UB = float(low[index]), float(high[index])
        model.Params.OutputFlag = 0
        model.Params.Threads = 1
        model.Params.FeasibilityTol = model.Params.IntFeasTol = max(FEASIBILITY, 1e-9)
        model.Params.MIPGap = 0.0
        model.Params.TimeLimit = embedding.time_limit
        terms = (float(weight) * y for weight, y in zip(weights, embedding.y, strict=True))
        model.setObjective(gurobipy.quicksum(terms), gurobipy.GRB.MAXIMIZE)
        clock = Clock()
        try:
            model.optimize()
        except gurobipy.GurobiError as error:
            if "size-limited" in str(error):
                raise Unsupported("the model is too large for the size-limited licence of gurobipy") from None
            raise
        outcome = ENDS.get(model.Status, STUCK)
        status = f"status {model.Status}"
        if outcome in (INFEASIBLE, STUCK) or not model.SolCount:
            return Solution(outcome, status, clock.seconds)
        x = np.array([float(variable.X) for variable in embedding.x])
        value = sum(float(weight) * float(y.X) for weight, y in zip(weights, embedding.y, strict=True))
        return Solution(outcome, status, clock.seconds, x, value)
