"""keras→torch: value and vector-Jacobian product of every layer, of real networks and of random graphs."""

import pytest


@pytest.mark.parity(path="keras-torch", families=("layer", "digits", "application", "dag"), cases=25)
def test_case(parity, parity_case, parity_chain):
    parity.run(parity_case, parity_chain)


@pytest.mark.parity(path="keras-torch", families=("network",))
def test_speed(parity, parity_case, parity_chain, benchmark):
    parity.run(parity_case, parity_chain, speed=True, benchmark=benchmark)
