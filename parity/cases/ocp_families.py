"""Random families of optimal control problems, rebuilt from ids such as `cartpole-0-4`. Listing imports no CasADi."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.cases.ocp import LearnedTerm, OptimalControlProblem, runge_kutta
from parity.cases.weights import random_state

if TYPE_CHECKING:
    import casadi

    Symbols = tuple[casadi.SX, casadi.SX, casadi.SX]

State = np.random.RandomState


@dataclass(frozen=True)
class Drawn:
    """A problem with the middle and the half-width of the box that its points θ = (x̂, p) are drawn from."""

    problem: OptimalControlProblem
    middle: np.ndarray
    spread: np.ndarray


@dataclass(frozen=True)
class OcpFamily:
    """Problems of one kind. `draw(rng, number)` gives one; `number` also walks through the family's variants."""

    name: str
    count: int
    make: Callable[[State, int], Drawn]
    random: bool = True
    linear: bool = False
    """Linear dynamics and quadratic cost with parameters in the linear terms only: every Hessian is exact."""


@dataclass(frozen=True)
class OcpCase:
    """One problem with its points; the counterpart of `parity.cases.case.Case`."""

    id: str
    family: str
    seed: int
    number: int
    source: str = "ocp"

    @cached_property
    def drawn(self) -> Drawn:
        return OCP_FAMILIES[self.family].make(random_state(self.id), self.number)

    @property
    def layers(self) -> str:
        problem = self.drawn.problem
        return f"nx={problem.states} nu={problem.controls} np={problem.parameters} N={problem.horizon}"

    def model(self) -> OptimalControlProblem:
        return self.drawn.problem

    def inputs(self, regime: str = "normal", batch: int = 1) -> tuple[np.ndarray]:
        """Points θ, shape (batch, nx + np), float64. `regime` names the stream that they are drawn from."""
        middle, spread = self.drawn.middle, self.drawn.spread
        return (middle + spread * random_state(self.id, regime, batch).uniform(-1, 1, (batch, len(middle))),)


def _symbols(states: int, controls: int, parameters: int) -> Symbols:
    import casadi

    return tuple(casadi.SX.sym(*each) for each in (("x", states), ("u", controls), ("p", parameters)))  # type: ignore


def _box(size: int, bound: float) -> tuple[np.ndarray, np.ndarray]:
    return np.full(size, -bound), np.full(size, bound)


def _lqr(rng: State, number: int) -> Drawn:
    """min Σ ½(x-r)ᵀQ(x-r) + ½uᵀRu, x⁺ = Ax + Bu: the reference r is the parameter. Solved by Riccati's recursion."""
    import casadi

    states, controls = 2 + number % 3, 1 + number % 2
    x, u, r = symbols = _symbols(states, controls, states)
    a = np.eye(states) + 0.3 * rng.standard_normal((states, states))
    b = rng.standard_normal((states, controls))
    q = np.diag(rng.uniform(0.5, 2.0, states))
    weight = np.diag(rng.uniform(0.2, 1.0, controls))
    cost = casadi.mtimes([(x - r).T, q, x - r]) / 2
    del symbols
    problem = OptimalControlProblem(
        "lqr", rng.randint(8, 16), x, u, r, casadi.mtimes(a, x) + casadi.mtimes(b, u),
        cost + casadi.mtimes([u.T, weight, u]) / 2, 3 * cost,
    )  # fmt: skip
    return Drawn(problem, np.zeros(2 * states), np.ones(2 * states))


def _integrator(rng: State, number: int) -> Drawn:
    """A double integrator with bounds on the control and a limit p₃ on u + ½ velocity; p = (target, weight, limit)."""
    x, u, p = _symbols(2, 1, 3)
    step = float(rng.uniform(0.15, 0.25))
    dynamics = _column(x[0] + step * x[1] + step**2 / 2 * u, x[1] + step * u)
    cost = (x[0] - p[0]) ** 2 + 0.1 * x[1] ** 2
    problem = OptimalControlProblem(
        "integrator", rng.randint(12, 20), x, u, p, dynamics, cost + p[1] * u**2, 10 * cost,
        control_bounds=_box(1, 1.0), state_bounds=_box(2, 5.0),
        path=p[2] - u - 0.5 * x[1], path_bounds=(np.zeros(1), np.full(1, 100.0)),
    )  # fmt: skip
    return Drawn(problem, np.array([-1.0, 0.0, 0.3, 0.2, 0.8]), np.array([0.8, 0.4, 0.2, 0.1, 0.15]))


def _pendulum(rng: State, number: int) -> Drawn:
    """θ'' = g/l sin θ + u/(ml²) about the upright position; p = (length, weight of the torque)."""
    import casadi

    x, u, p = symbols = _symbols(2, 1, 2)
    ode = _column(x[1], 9.81 / p[0] * casadi.sin(x[0]) - 0.1 * x[1] + u / p[0] ** 2)
    cost = 2 * x[0] ** 2 + 0.2 * x[1] ** 2
    problem = OptimalControlProblem(
        "pendulum", rng.randint(12, 20), x, u, p, runge_kutta(ode, symbols, 0.08), cost + p[1] * u**2, 10 * cost,
        control_bounds=_box(1, float(rng.uniform(4.0, 7.0))),
    )  # fmt: skip
    return Drawn(problem, np.array([0.3, 0.0, 1.0, 0.1]), np.array([0.25, 0.4, 0.15, 0.05]))


def _cartpole(rng: State, number: int) -> Drawn:
    """Cart and pole about the upright position; p = (pole's mass, weight of the force).

    The bounds on the force are far, some of them are active, or all controls lie at one (a weak motor).
    """
    import casadi

    x, u, p = symbols = _symbols(4, 1, 2)
    length, cart, gravity = 0.8, 1.0, 9.81
    sine, cosine = casadi.sin(x[1]), casadi.cos(x[1])
    mass = cart + p[0] * sine**2
    acceleration = (u + p[0] * sine * (length * x[3] ** 2 - gravity * cosine)) / mass
    turn = (gravity * sine - acceleration * cosine) / length
    cost = 1.0 * x[0] ** 2 + 10 * x[1] ** 2 + 0.1 * x[2] ** 2 + 0.1 * x[3] ** 2
    bound = (80.0, float(rng.uniform(5.0, 9.0)), 0.4)[number % 3]
    problem = OptimalControlProblem(
        "cartpole", rng.randint(12, 20), x, u, p, runge_kutta(_column(x[2], x[3], acceleration, turn), symbols, 0.05),
        cost + p[1] * u**2, 10 * cost, control_bounds=_box(1, bound),
    )  # fmt: skip
    angle = 0.35 if number % 3 == 2 else 0.25
    return Drawn(problem, np.array([0.0, angle, 0.0, 0.0, 0.2, 0.02]), np.array([0.3, 0.12, 0.3, 0.3, 0.05, 0.01]))


def _van_der_pol(rng: State, number: int) -> Drawn:
    """x₁' = (1 - x₂²)x₁μ - x₂ + u, x₂' = x₁; p = (μ, weight of the control)."""
    x, u, p = symbols = _symbols(2, 1, 2)
    ode = _column(p[0] * (1 - x[1] ** 2) * x[0] - x[1] + u, x[0])
    cost = x[0] ** 2 + x[1] ** 2
    problem = OptimalControlProblem(
        "vanderpol", rng.randint(15, 25), x, u, p, runge_kutta(ode, symbols, 0.2), cost + p[1] * u**2, 5 * cost,
        control_bounds=(np.array([-0.75]), np.array([1.0])), state_bounds=(np.array([-0.6, -10.0]), np.full(2, 10.0)),
    )  # fmt: skip
    return Drawn(problem, np.array([0.2, 0.9, 1.0, 0.5]), np.array([0.2, 0.3, 0.2, 0.3]))


def _chain(rng: State, number: int) -> Drawn:
    """2 to 5 masses in a plane, the first one's spring at the origin, the last one moved by the control (its velocity).

    p = (stiffness, rest length). The springs' forces grow with (1 - rest length / length), so the problem is not
    convex. Positions and velocities step by the semi-implicit Euler method.
    """
    import casadi

    free = (1, 3, 2, 4)[number % 4]  # masses between the anchor and the driven end
    x, u, p = _symbols(4 * free + 2, 2, 2)
    positions = [casadi.SX.zeros(2), *(x[2 * i : 2 * i + 2] for i in range(free + 1))]
    velocities = [x[2 * (free + 1) + 2 * i :][:2] for i in range(free)]
    step, next_positions, next_velocities = 0.15, [], []

    def pull(start: casadi.SX, end: casadi.SX) -> casadi.SX:
        way = end - start
        return p[0] * (1 - p[1] / casadi.sqrt(casadi.sumsqr(way) + 1e-4)) * way

    for i in range(free):
        before, here, after = positions[i : i + 3]
        force = pull(here, after) - pull(before, here) - casadi.SX([0.0, 0.5]) - 0.1 * velocities[i]
        next_velocities.append(velocities[i] + step * force)
        next_positions.append(here + step * next_velocities[-1])
    next_positions.append(positions[-1] + step * u)
    end = np.array([0.5 * (free + 1), 0.0])
    cost = 5 * casadi.sumsqr(positions[-1] - end) + sum(0.5 * casadi.sumsqr(velocity) for velocity in velocities)
    problem = OptimalControlProblem(
        "chain", rng.randint(6, 10), x, u, p, _column(*next_positions, *next_velocities),
        cost + 0.5 * casadi.sumsqr(u), cost, control_bounds=_box(2, float(rng.uniform(0.3, 0.8))),
    )  # fmt: skip
    rest = np.concatenate([*(np.array([0.5 * (i + 1), -0.1]) for i in range(free + 1)), np.zeros(2 * free)])
    spread = np.concatenate([np.full(2 * (free + 1), 0.1), np.full(2 * free, 0.2)])
    return Drawn(problem, np.concatenate([rest, [4.0, 0.35]]), np.concatenate([spread, [1.0, 0.05]]))


def _quadrotor(rng: State, number: int) -> Drawn:
    """A quadrotor in a vertical plane with two thrusts; p = (mass, arm, target's x and height)."""
    import casadi

    x, u, p = symbols = _symbols(6, 2, 4)
    thrust = (u[0] + u[1]) / p[0]
    ode = _column(
        x[3], x[4], x[5], -thrust * casadi.sin(x[2]), thrust * casadi.cos(x[2]) - 9.81,
        p[1] * (u[1] - u[0]) / 0.05,
    )  # fmt: skip
    cost = 2 * (x[0] - p[2]) ** 2 + 2 * (x[1] - p[3]) ** 2 + x[2] ** 2 + 0.2 * casadi.sumsqr(x[3:])
    hover = 9.81 * 0.6 / 2
    problem = OptimalControlProblem(
        "quadrotor", rng.randint(10, 16), x, u, p, runge_kutta(ode, symbols, 0.08),
        cost + 0.05 * casadi.sumsqr(u - hover), 5 * cost,
        control_bounds=(np.zeros(2), np.full(2, float(rng.uniform(4.0, 6.5)))), control_guess=np.full(2, hover),
    )  # fmt: skip
    middle = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.6, 0.2, 0.4, 0.3])
    return Drawn(problem, middle, np.array([0.3, 0.3, 0.2, 0.3, 0.3, 0.3, 0.05, 0.02, 0.3, 0.3]))


def _learned(rng: State, number: int) -> Drawn:
    """x⁺ = x + step · (x₂, p₁ · network(x, u) + u): a torch network of random weights within the dynamics."""
    import casadi

    x, u, p = _symbols(2, 1, 2)
    output, seed = casadi.SX.sym("y", 1), f"learned/{rng.randint(1 << 30)}"

    def network() -> Any:
        import torch

        from parity.cases.weights import fill

        model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        fill(model, seed)
        return model.eval()

    cost = 2 * x[0] ** 2 + 0.3 * x[1] ** 2
    problem = OptimalControlProblem(
        "learned", rng.randint(10, 16), x, u, p, x + 0.15 * _column(x[1], p[0] * output + u),
        cost + p[1] * u**2, 5 * cost, control_bounds=_box(1, 1.5),
        learned=LearnedTerm(network, casadi.vertcat(x, u), output),
    )  # fmt: skip
    return Drawn(problem, np.array([0.6, 0.0, 1.0, 0.3]), np.array([0.5, 0.5, 0.3, 0.1]))


def _scaling(rng: State, number: int) -> Drawn:
    """Two coupled oscillators, nx = 4, with 1, 2, 6, 12 or 24 parameters: what sensitivities cost by number."""
    import casadi

    parameters = (1, 2, 6, 12, 24)[number % 5]
    x, u, p = symbols = _symbols(4, 2, parameters)
    ode = _column(
        x[2], x[3], -casadi.sin(x[0]) + 0.4 * (x[1] - x[0]) + u[0], -casadi.sin(x[1]) - 0.4 * (x[1] - x[0]) + u[1]
    )
    terms = casadi.vertcat(x, u)
    weights = rng.uniform(-1.0, 1.0, (parameters, 6))
    shift = sum(p[i] * casadi.sin(casadi.mtimes(weights[i : i + 1], terms)) for i in range(parameters))
    cost = casadi.sumsqr(x)
    problem = OptimalControlProblem(
        "scaling", 20, x, u, p, runge_kutta(ode, symbols, 0.1), cost + 0.5 * casadi.sumsqr(u) + 0.3 * shift, 2 * cost,
        control_bounds=_box(2, 2.0),
    )  # fmt: skip
    return Drawn(problem, np.zeros(4 + parameters), np.concatenate([np.full(4, 0.6), np.full(parameters, 0.3)]))


def _steps(rng: State, number: int) -> Drawn:
    """What the error of differences against their step is shown on: no bound active, and some."""
    return (_pendulum, _cartpole)[number](rng, number)


def _column(*parts: Any) -> casadi.SX:
    import casadi

    return casadi.vertcat(*parts)


OCP_FAMILIES = {
    family.name: family
    for family in (
        OcpFamily("lqr", 2, _lqr, linear=True),
        OcpFamily("integrator", 2, _integrator),
        OcpFamily("pendulum", 2, _pendulum),
        OcpFamily("cartpole", 3, _cartpole),
        OcpFamily("vanderpol", 2, _van_der_pol),
        OcpFamily("chain", 2, _chain),
        OcpFamily("quadrotor", 1, _quadrotor),
        OcpFamily("learned", 1, _learned),
        OcpFamily("scaling", 5, _scaling, random=False),
        OcpFamily("steps", 2, _steps, random=False),
        OcpFamily("batch", 1, _pendulum, random=False),
    )
}
