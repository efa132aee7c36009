"""ocp→solution-map: optimal solutions and their derivatives by parameters, from every engine."""

import pytest

SMOOTH = ("lqr", "integrator", "pendulum", "cartpole", "vanderpol", "chain", "quadrotor", "learned")


@pytest.mark.parity(path="ocp-sensitivity", families=SMOOTH)
def test_case(parity, parity_case, parity_chain):
    parity.run(parity_case, parity_chain)


@pytest.mark.parity(path="ocp-sensitivity", families=("scaling",))
def test_speed(parity, parity_case, parity_chain):
    parity.run(parity_case, parity_chain, speed=True)
