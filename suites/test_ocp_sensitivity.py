"""ocp→solution-map: optimal solutions and their derivatives by parameters, from every engine."""

import pytest
from parity.suites.deviations_ocp import KNOWN_WRONG

FAMILIES = ("lqr", "integrator", "pendulum", "cartpole", "vanderpol", "chain", "quadrotor", "learned")


@pytest.mark.parity(path="ocp-sensitivity", families=FAMILIES)
def test_case(parity, parity_case, parity_chain):
    parity.run(parity_case, parity_chain, deviations=KNOWN_WRONG)


RIGHT = ("kkt", "casadi-nlpsol", "casadi-nlpsol-sqpmethod", "acados-polished")
WRONG = (
    "acados-1e-8", "acados-1e-10", "acados-gauss-newton", "casadi-nlpsol-fatrop", "casadi-nlpsol-ipopt-plain",
    "casadi-nlpsol-ipopt-min-lam",
)  # fmt: skip
ABSENT = ("acados-official",)


@pytest.mark.parity(path="ocp-sensitivity", families=("scaling",), without=("acados", "finite-differences", *WRONG))
def test_speed(parity, parity_case, parity_chain):
    parity.run(parity_case, parity_chain, checks=("sensitivity",), regimes=("normal",), speed=True)


@pytest.mark.parity(path="ocp-sensitivity", families=("batch",), without=("acados", "finite-differences", *WRONG))
def test_batch(parity, parity_case, parity_chain):
    """Two engines share a batch, each in its own thread (acados' are processes), against one that solves it all."""
    parity.run(parity_case, parity_chain, speed=True)


@pytest.mark.parity(path="ocp-sensitivity", families=("steps",), without=(*RIGHT, *WRONG, *ABSENT))
def test_steps(parity, parity_case, parity_chain):
    """How far off central differences are by their step: of tight solves, and of loose ones, which have a floor."""
    parity.run(parity_case, parity_chain)
