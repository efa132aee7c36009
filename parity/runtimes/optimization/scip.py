"""Solves embeddings that are a `pyscipopt.Model`."""

from __future__ import annotations

import numpy as np

from parity.embedding import FEASIBILITY, ScipEmbedding
from parity.runtimes.optimization import INFEASIBLE, LIMIT, OPTIMAL, STUCK, Clock, OptimizationRuntime, Solution

ENDS = {"optimal": OPTIMAL, "timelimit": LIMIT, "infeasible": INFEASIBLE, "inforunbd": INFEASIBLE}


class ScipOptimizationRuntime(OptimizationRuntime):
    """Only its solver judges it: the model does not say which variable is which neuron."""

    embedding: ScipEmbedding

    def maximise(
        self, weights: np.ndarray, fixed: np.ndarray | None = None, start: np.ndarray | None = None
    ) -> Solution:
        embedding, model = self.embedding, self.embedding.model
        model.freeTransform()
        for index, variable in enumerate(embedding.x):
            low, high = (embedding.lower, embedding.upper) if fixed is None else (fixed, fixed)
            model.chgVarLb(variable, float(low[index]))
            model.chgVarUb(variable, float(high[index]))
        model.hideOutput()
        model.setParam("numerics/feastol", FEASIBILITY)
        model.setParam("limits/time", embedding.time_limit)
        terms = (float(weight) * y for weight, y in zip(weights, embedding.y, strict=True))
        model.setObjective(sum(terms), "maximize")
        clock = Clock()
        model.optimize()
        status = str(model.getStatus())
        outcome = ENDS.get(status, STUCK)
        if outcome in (INFEASIBLE, STUCK) or not model.getNSols():
            return Solution(outcome, status, clock.seconds)
        x = np.array([float(model.getVal(variable)) for variable in embedding.x])
        value = sum(float(weight) * float(model.getVal(y)) for weight, y in zip(weights, embedding.y, strict=True))
        return Solution(outcome, status, clock.seconds, x, value)
