"""ocp→solution-map: optimal solutions and their derivatives by parameters, from every engine."""

import pytest
from parity.suites.deviations_ocp import KNOWN_WRONG

FAMILIES = ("lqr", "integrator", "pendulum", "cartpole", "vanderpol", "chain", "quadrotor", "learned")


@pytest.mark.parity(path="ocp-sensitivity", families=FAMILIES)
def test_case(parity, parity_case, parity_chain):
    parity.run(parity_case, parity_chain, deviations=KNOWN_WRONG)


@pytest.mark.parity(path="ocp-sensitivity", families=("scaling",))
def test_speed(parity, parity_case, parity_chain):
    parity.run(
        parity_case, parity_chain, checks=("sensitivity",), regimes=("normal",), deviations=KNOWN_WRONG, speed=True
    )
