"""torch→casadi: value, Jacobian and Hessian of every layer, of real networks and of random graphs."""

import pytest


@pytest.mark.parity(path="torch-casadi", families=("layer", "recipe", "pendulum", "dag"))
def test_case(parity, parity_case, parity_chain):
    parity.run(parity_case, parity_chain)


@pytest.mark.parity(path="torch-casadi", families=("network",))
def test_speed(parity, parity_case, parity_chain, benchmark):
    parity.run(parity_case, parity_chain, speed=True, benchmark=benchmark)


@pytest.mark.parity(path="torch-casadi")
def test_network_in_a_controller():
    """Plans obey torch's own network, and the real pendulum obeys the plans."""
    import numpy as np
    import torch
    from parity.suites.nmpc import LARGEST_TORQUE, Controller

    import parity
    from parity.cases.case import case_from_id

    case = case_from_id("pendulum-0-0")
    network = case.model().double()
    controller = Controller(parity.convert(network, "casadi", example=case.inputs()), angle=0.2)

    state = np.array([-0.5, 0.0])
    plan = controller.plan(state)
    with torch.no_grad():
        points = torch.from_numpy(np.column_stack([plan.states[:-1], plan.torques]))
        predicted = plan.states[:-1] + network(points).numpy()
    assert np.abs(predicted - plan.states[1:]).max() < 1e-8
    assert np.abs(plan.torques).max() <= LARGEST_TORQUE + 1e-6

    _assert_held(lambda state: controller.plan(state).torques[0])


@pytest.mark.parity(path="torch-casadi")
def test_network_in_a_controller_of_acados():
    """The same by acados, in a process of its own, with a network so small that its code compiles in a second."""
    import numpy as np
    import torch
    from parity.suites.nmpc import control_problem

    import parity
    from parity.cases.pendulum import train

    nn = torch.nn
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    train(network, "acados", epochs=3000)
    problem = control_problem(network)
    try:
        solver = parity.convert(problem, "solution-map", np.zeros((1, 3)), converter="acados-polished")
    except (parity.MissingPackage, parity.Unsupported) as reason:
        pytest.skip(str(reason))
    plans = [None]

    def torque(state):
        plans.append(solver.solve(np.append(state, 0.2), plans[-1]))
        return plans[-1].controls[0, 0]

    _assert_held(torque)
    solver.close()


def _assert_held(torque):
    """The real pendulum ends at 0.2 rad, at rest."""
    import numpy as np

    from parity.cases.pendulum import step

    state = np.array([-0.5, 0.0])
    for _ in range(40):
        state = step(state[None], np.array([torque(state)]))[0]
    assert abs(state[0] - 0.2) < 0.05
    assert abs(state[1]) < 0.1
