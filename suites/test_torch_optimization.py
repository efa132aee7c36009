"""torch→optimization: networks inside solvers' models, by their expressions, their constraints and their optima."""

import pytest

LAYERS = (
    "Linear", "Conv1d", "Conv2d", "AvgPool1d", "AvgPool2d", "AdaptiveAvgPool2d", "MaxPool1d", "MaxPool2d", "ZeroPad2d",
    "Flatten", "LayerNorm", "BatchNorm1d", "BatchNorm2d", "Dropout", "ReLU", "ReLU6", "LeakyReLU", "Hardtanh", "ELU",
    "GELU", "SiLU", "Sigmoid", "Softmax", "Softplus", "Tanh", "Add", "Multiply", "Concatenate"
)  # fmt: skip
WITHOUT_SOLVER = ("value", "trace", "jacobian", "hessian")
KINKED = ("ReLU", "ReLU6", "LeakyReLU", "Hardtanh", "ELU", "MaxPool2d")
FORMS = ("casadi-full-space", "casadi-reduced-space", "pyomo-full-space", "pyomo-reduced-space")
FORMULATIONS = ("casadi-big-m", "casadi-complementarity", "casadi-sos1", "pyomo-big-m", "pyomo-complementarity",
                "pyomo-sos1")  # fmt: skip
"""They differ from the forms in layers with kinks only."""
BY_SOLVER = ("casadi-gray-box", "gurobi-ml", "omlt-complementarity", "omlt-full-space", "omlt-reduced-space",
             "pyscipopt-ml")  # fmt: skip
"""They have no constraints of a single layer to look into: whole networks, solved, judge them."""


@pytest.mark.parity(path="torch-optimization", families=LAYERS, without=(*FORMULATIONS, *BY_SOLVER))
def test_layer(parity, parity_case, parity_chain):
    parity.run(parity_case, parity_chain, checks=WITHOUT_SOLVER)


@pytest.mark.parity(path="torch-optimization", families=KINKED, without=(*FORMS, *BY_SOLVER))
def test_kinked_layer(parity, parity_case, parity_chain):
    parity.run(parity_case, parity_chain, checks=WITHOUT_SOLVER)


@pytest.mark.parity(path="torch-optimization", families=("sequential",), cases=100, without=(*FORMULATIONS, *BY_SOLVER))
def test_random_network(parity, parity_case, parity_chain):
    parity.run(parity_case, parity_chain, checks=("value", "trace"))


@pytest.mark.parity(path="torch-optimization", families=("sequential",))
def test_network(parity, parity_case, parity_chain):
    parity.run(parity_case, parity_chain, checks=(*WITHOUT_SOLVER, "fixed"))


@pytest.mark.parity(path="torch-optimization", families=("perceptron", "steep", "image", "rectifier", "digits"))
def test_optimum(parity, parity_case, parity_chain):
    parity.run(parity_case, parity_chain)


@pytest.mark.parity(path="torch-optimization", families=("surrogate",))
def test_speed(parity, parity_case, parity_chain):
    parity.run(parity_case, parity_chain, checks=("optimum",), speed=True)


@pytest.mark.parity(path="torch-optimization")
def test_adversarial_margin(parity):
    """How much an image's class still wins under the worst perturbation: two exact formulations must agree."""
    import numpy as np

    from parity.cases.case import case_from_id
    from parity.runtimes import runtime_for

    case = case_from_id("digits-0-0")
    model, x = case.model(), case.inputs("unit")
    margins = []
    for name in ("casadi-big-m", "casadi-sos1"):
        embedding = parity.convert(model, "optimization", x, converter=name)
        parity.check(model, embedding, x, checks=("trace", "fixed", "optimum"))
        runtime = runtime_for(embedding)
        margins.append(min(-runtime.maximise(-rival).value for rival in np.eye(embedding.outputs)))
    assert margins[0] == pytest.approx(margins[1], abs=1e-6)
