"""An optimal control problem as a nonlinear program, by direct multiple shooting, in CasADi expressions.

Variables w = (x_0, u_0, x_1, u_1, …, x_N). Constraints g, stage by stage: first the dynamics' gap of the stage, then
(in stage 0) the initial state, then the path constraints. That order is the one that Fatrop asks for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import casadi
import numpy as np

from parity.cases.ocp import Bounds, OptimalControlProblem


@dataclass(frozen=True, eq=False)
class NonlinearProgram:
    """min objective(w, θ) s.t. lower ≤ (w, g(w, θ)) ≤ upper. Expressions are `casadi.SX`, bounds float64."""

    problem: OptimalControlProblem
    variables: casadi.SX
    point: casadi.SX
    objective: casadi.SX
    constraints: casadi.SX
    lower: np.ndarray
    upper: np.ndarray
    """Bounds of the variables, then of the constraints, shape (nw + ng,)."""
    equations: np.ndarray
    """Which constraints are equations, shape (ng,), bool."""
    places: np.ndarray
    """Where the flat order (states, then controls) finds its elements in w."""

    @property
    def size(self) -> int:
        return int(self.variables.numel())

    @cached_property
    def guess(self) -> np.ndarray:
        """Where to start, for any point: `initial` fills in the initial state."""
        problem = self.problem
        controls = problem.control_guess if problem.control_guess is not None else np.zeros(problem.controls)
        stage = np.concatenate([np.zeros(problem.states), controls])
        return np.concatenate([*[stage] * problem.horizon, np.zeros(problem.states)])

    def initial(self, point: np.ndarray) -> np.ndarray:
        """A start for θ: every stage at the initial state."""
        guess = self.guess.copy()
        count = (self.problem.horizon + 1) * self.problem.states
        guess[self.places[:count]] = np.tile(point[: self.problem.states], self.problem.horizon + 1)
        return np.clip(guess, self.lower[: self.size], self.upper[: self.size])


def with_networks_converted(problem: OptimalControlProblem) -> OptimalControlProblem:
    """The same problem in plain expressions: a learned term is converted by the registry's torch→casadi reference."""
    learned = problem.learned
    if learned is None:
        return problem
    import torch

    from parity.converters.registry import find_converter

    model = learned.network().double()
    example = (torch.zeros(1, learned.inputs.numel(), dtype=torch.float64),)
    function = find_converter("torch", "casadi", "reference").function(model, example).expand()
    value = function(learned.inputs)

    def closed(expression: casadi.SX) -> casadi.SX:
        return casadi.substitute(expression, learned.output, value)

    return replace(
        problem,
        dynamics=closed(problem.dynamics),
        stage_cost=closed(problem.stage_cost),
        path=None if problem.path is None else closed(problem.path),
        learned=None,
    )


def transcribe(problem: OptimalControlProblem) -> NonlinearProgram:
    """Build the program. Learned terms are converted on the way."""
    problem = with_networks_converted(problem)
    symbols = [problem.state, problem.control, problem.parameter]
    path = casadi.SX(0, 1) if problem.path is None else problem.path
    stage = casadi.Function("stage", symbols, [problem.dynamics, problem.stage_cost, path])
    terminal = casadi.Function("terminal", [problem.state, problem.parameter], [problem.terminal_cost])

    horizon, states = problem.horizon, problem.states
    point = casadi.SX.sym("point", problem.points)
    initial, parameter = point[:states], point[states:]
    x = [casadi.SX.sym(f"x{k}", states) for k in range(horizon + 1)]
    u = [casadi.SX.sym(f"u{k}", problem.controls) for k in range(horizon)]
    free = _free(states)
    no_gap = (np.zeros(states), np.zeros(states))
    control_bounds = problem.control_bounds or _free(problem.controls)
    objective, variables, bounds = casadi.SX(0), [], []
    constraints, constraint_bounds, equations = [], [], []
    for k in range(horizon):
        following, cost, along = stage(x[k], u[k], parameter)
        objective += cost
        variables += [x[k], u[k]]
        bounds += [free if k == 0 else problem.state_bounds or free, control_bounds]
        constraints.append(x[k + 1] - following)
        constraint_bounds.append(no_gap)
        equations += [True] * states
        if k == 0:
            constraints.append(x[0] - initial)
            constraint_bounds.append(no_gap)
            equations += [True] * states
        if problem.path_bounds is not None:
            constraints.append(along)
            constraint_bounds.append(problem.path_bounds)
            equations += [False] * problem.paths
    objective += terminal(x[horizon], parameter)
    variables.append(x[horizon])
    bounds.append(problem.state_bounds or free)
    lower, upper = (np.concatenate([pair[side] for pair in (*bounds, *constraint_bounds)]) for side in (0, 1))
    return NonlinearProgram(
        problem, casadi.vertcat(*variables), point, objective, casadi.vertcat(*constraints), lower, upper,
        np.array(equations), _places(horizon, states, problem.controls),
    )  # fmt: skip


def _free(size: int) -> Bounds:
    return np.full(size, -np.inf), np.full(size, np.inf)


def _places(horizon: int, states: int, controls: int) -> np.ndarray:
    stage = np.arange(horizon + 1)[:, None] * (states + controls)
    of_states = stage + np.arange(states)
    of_controls = stage[:-1] + states + np.arange(controls)
    return np.concatenate([of_states.ravel(), of_controls.ravel()])
