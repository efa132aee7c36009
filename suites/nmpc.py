"""A network in a controller: nonlinear model predictive control of a pendulum, its model learnt by a torch network.

What a converted model is for. The network is trained by the case `pendulum-0-0` on one time step of the pendulum, the
reference converter makes it a `casadi.Function`, and Ipopt (`Controller`) or acados (`control_problem`) plans with it,
using its exact derivatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import casadi
    import torch

    from parity.cases.ocp import OptimalControlProblem

HORIZON = 20
LARGEST_TORQUE = 3.0


@dataclass(frozen=True)
class Plan:
    """What the controller intends: states (HORIZON + 1, 2) in rad and rad/s, torques (HORIZON,)."""

    states: np.ndarray
    torques: np.ndarray


class Controller:
    """Holds the pendulum at `angle` (rad) by planning HORIZON steps ahead with the model `change`.

    `change` maps (θ, θ', torque) to the change of (θ, θ') in one time step.
    """

    def __init__(self, change: casadi.Function, angle: float) -> None:
        import casadi

        opti = casadi.Opti()
        self.states, self.torques = opti.variable(2, HORIZON + 1), opti.variable(1, HORIZON)
        self.start = opti.parameter(2)
        before, after = self.states[:, :-1], self.states[:, 1:]
        opti.subject_to(after == before + change(casadi.vertcat(before, self.torques)))
        opti.subject_to(self.states[:, 0] == self.start)
        opti.subject_to(opti.bounded(-LARGEST_TORQUE, self.torques, LARGEST_TORQUE))
        off = self.states[0, :] - angle
        opti.minimize(
            10 * casadi.sumsqr(off) + 0.1 * casadi.sumsqr(self.states[1, :]) + 1e-3 * casadi.sumsqr(self.torques)
        )
        opti.solver("ipopt", {"print_time": False, "ipopt.print_level": 0, "ipopt.sb": "yes", "ipopt.tol": 1e-10})
        self.opti = opti

    def plan(self, state: np.ndarray) -> Plan:
        """Solve from `state` (2,), starting at the last plan. Raises RuntimeError where Ipopt does not converge."""
        self.opti.set_value(self.start, state)
        solution = self.opti.solve()
        self.opti.set_initial(solution.value_variables())
        return Plan(solution.value(self.states).T, solution.value(self.torques).ravel())


def control_problem(network: torch.nn.Module) -> OptimalControlProblem:
    """The controller's problem for any engine, such as `acados-polished`; its parameter is the angle to hold."""
    import casadi

    from parity.cases.ocp import LearnedTerm, OptimalControlProblem

    state, torque, angle = (casadi.SX.sym(*each) for each in (("state", 2), ("torque",), ("angle",)))
    change = casadi.SX.sym("change", 2)
    cost = 10 * (state[0] - angle) ** 2 + 0.1 * state[1] ** 2
    bound = np.array([LARGEST_TORQUE])
    return OptimalControlProblem(
        "held pendulum", HORIZON, state, torque, angle, state + change, cost + 1e-3 * torque**2, cost,
        control_bounds=(-bound, bound), learned=LearnedTerm(lambda: network, casadi.vertcat(state, torque), change),
    )  # fmt: skip
