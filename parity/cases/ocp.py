"""A parametric optimal control problem as data: CasADi expressions, bounds, and a parameter point.

    minimise    Σ_k stage_cost(x_k, u_k, p) + terminal_cost(x_N, p)              k = 0 … N-1
    subject to  x_0 = x̂,  x_{k+1} = dynamics(x_k, u_k, p)
                control_bounds on u_k,  state_bounds on x_1 … x_N,  path_bounds on path(x_k, u_k, p)

A solution map takes the *point* θ = (x̂, p) to the optimal states, controls and value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.errors import ParityError

if TYPE_CHECKING:
    import casadi

Bounds = tuple[np.ndarray, np.ndarray]
"""Lower and upper, float64, ±inf where there is none."""


@dataclass(frozen=True, eq=False)
class LearnedTerm:
    """A torch network inside the expressions: they use the symbols `output` for its value at `inputs`.

    A problem holds no converter: whoever solves it converts the network, through the registry, and substitutes.
    """

    network: Callable[[], Any]
    """Gives the `torch.nn.Module`, in eval mode, for inputs of shape (batch, n)."""
    inputs: casadi.SX
    """Expression in state, control and parameter, shape (n, 1)."""
    output: casadi.SX
    """Symbols, shape (m, 1)."""


@dataclass(frozen=True, eq=False)
class OptimalControlProblem:
    """See the module. All symbols and vector expressions are columns, the costs scalars; `casadi.SX` throughout."""

    name: str
    horizon: int
    state: casadi.SX
    control: casadi.SX
    parameter: casadi.SX
    dynamics: casadi.SX
    """The next state."""
    stage_cost: casadi.SX
    terminal_cost: casadi.SX
    """In state and parameter."""
    control_bounds: Bounds | None = None
    state_bounds: Bounds | None = None
    path: casadi.SX | None = None
    path_bounds: Bounds | None = None
    control_guess: np.ndarray | None = None
    """Where solvers start, all stages alike; zeros if None."""
    learned: LearnedTerm | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        sizes = {"dynamics": (self.dynamics, self.states), "stage_cost": (self.stage_cost, 1)}
        sizes["terminal_cost"] = (self.terminal_cost, 1)
        for name, (expression, size) in sizes.items():
            if expression.shape != (size, 1):
                raise ParityError(f"{name} of problem {self.name} has shape {expression.shape}, not {(size, 1)}")
        bounds = {
            "control_bounds": (self.control_bounds, self.controls),
            "state_bounds": (self.state_bounds, self.states),
            "path_bounds": (self.path_bounds, self.paths),
        }
        for name, (pair, size) in bounds.items():
            if pair is not None and any(np.shape(bound) != (size,) for bound in pair):
                raise ParityError(f"{name} of problem {self.name}: give a lower and an upper bound of shape ({size},)")
        if self.paths and self.path_bounds is None:
            raise ParityError(f"problem {self.name} has path constraints: give path_bounds")

    @property
    def states(self) -> int:
        return int(self.state.numel())

    @property
    def controls(self) -> int:
        return int(self.control.numel())

    @property
    def parameters(self) -> int:
        return int(self.parameter.numel())

    @property
    def paths(self) -> int:
        return 0 if self.path is None else int(self.path.numel())

    @property
    def points(self) -> int:
        """Length of θ."""
        return self.states + self.parameters

    def __repr__(self) -> str:
        sizes = f"nx={self.states} nu={self.controls} np={self.parameters} N={self.horizon}"
        return f"<OptimalControlProblem {self.name} {sizes}>"


def runge_kutta(derivative: casadi.SX, problem_symbols: tuple[casadi.SX, ...], step: float) -> casadi.SX:
    """The next state by one step of the classical Runge-Kutta method (RK4), the control constant meanwhile.

    `problem_symbols` are (state, control, parameter), in which `derivative` is written; `step` is in seconds.
    """
    import casadi

    state, *others = problem_symbols
    ode = casadi.Function("ode", list(problem_symbols), [derivative])
    k1 = ode(state, *others)
    k2 = ode(state + step / 2 * k1, *others)
    k3 = ode(state + step / 2 * k2, *others)
    k4 = ode(state + step * k3, *others)
    return state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
