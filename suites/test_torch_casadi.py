"""torch→casadi: value, Jacobian and Hessian of every layer, of real networks and of random graphs."""

import pytest


@pytest.mark.parity(path="torch-casadi", families=("layer", "recipe", "pendulum", "dag"))
def test_case(parity, parity_case, parity_chain):
    parity.run(parity_case, parity_chain)


@pytest.mark.parity(path="torch-casadi", families=("network",))
def test_speed(parity, parity_case, parity_chain, benchmark):
    parity.run(parity_case, parity_chain, speed=True, benchmark=benchmark)
