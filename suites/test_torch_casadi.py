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
    from parity.cases.pendulum import step

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

    for _ in range(40):
        torque = controller.plan(state).torques[0]
        state = step(state[None], np.array([torque]))[0]
    assert abs(state[0] - 0.2) < 0.05
    assert abs(state[1]) < 0.1
