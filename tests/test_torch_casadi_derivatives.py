"""torch→casadi: the derivative functions that take all directions at once, against CasADi's own."""

from __future__ import annotations

import casadi
import numpy as np
import pytest
import torch
from torch import nn
from torch_casadi import TOLERANCE, deviation

from parity.converters.torch_casadi import derivatives as derivatives_module
from parity.converters.torch_casadi import reference
from parity.converters.torch_casadi.derivatives import (
    Expressions,
    derivatives,
    pull_back,
    push_forward,
    read_graph,
    with_derivatives,
)
from parity.converters.torch_casadi.local_derivatives import NotDifferentiated
from parity.runtimes.casadi import CasadiRuntime


def graphs():
    """Every operation that has a rule, on vectors of 8 and 6 elements."""
    x, y = casadi.MX.sym("x", 8), casadi.MX.sym("y", 6)
    matrix, other = casadi.reshape(x, 4, 2), casadi.reshape(y, 2, 3)
    first, second = casadi.vertsplit(x, [0, 3, 8])
    left, right = casadi.horzsplit(casadi.sin(matrix), 1)
    written, added = casadi.MX(casadi.sin(x)), casadi.MX(casadi.sin(x))
    written[[5, 1, 2]] = y[[0, 3, 3]]
    written[3] = 0
    added[[0, 4, 4]] += y[:3]
    row = casadi.DM(np.arange(6.0) - 2).T
    lower = casadi.MX(casadi.Sparsity.lower(3), y)
    outputs = {
        "elementwise": x * casadi.sin(x) - casadi.if_else(x > 0.1, casadi.exp(x), x / (1 + x * x)) + casadi.fmax(x, 0),
        "scalar": x * y[2] + casadi.sin(y[1]) / (2 + x) - 3 * x,
        "product": casadi.vec(matrix @ other),
        "same": casadi.vec(matrix @ matrix.T),
        "constant left": casadi.vec(casadi.DM(np.arange(12.0).reshape(3, 4)) @ matrix),
        "constant right": casadi.vec(matrix @ casadi.DM(np.arange(6.0).reshape(2, 3))),
        "sparse": casadi.densify(casadi.DM([[1, 0, 2, 0], [0, 0, 0, 0], [0, 3, 0, 0]]) @ matrix)[:],
        "row": (row @ y) * y,
        "splits": casadi.vertcat(first * 2, casadi.sin(second), left * right),
        "joins": casadi.vec(casadi.horzcat(matrix, casadi.cos(matrix)).T),
        "diagonal": casadi.densify(casadi.diagcat(first, y[:2]))[:],
        "gather": casadi.sin(x)[[3, 3, 0, 7]] + x[2:6] + x[::2],
        "set": written * 2,
        "add": added * 2,
        "dot": casadi.dot(x, casadi.sin(x)) * y,
        "repeat": casadi.vec(casadi.repmat(x, 1, 3)) + casadi.sin(casadi.repmat(y, 4, 1)),
        "sum of repeats": casadi.repsum(casadi.reshape(casadi.sin(x), 2, 4), 1, 2)[:],
        "sparse matrix": casadi.densify(casadi.sin(lower))[:] + casadi.densify(lower.T)[:],
        "nothing": casadi.MX(casadi.DM.ones(3)),
        "unused": y,
    }
    return x, y, outputs


NAMES = tuple(graphs()[2])


@pytest.mark.parametrize("name", NAMES)
def test_operations(name):
    x, y, outputs = graphs()
    output = outputs[name]
    whole, size = casadi.vertcat(x, y), output.numel()
    graph = read_graph(casadi.Function("f", [x, y], [output]))
    expected = casadi.Function("f", [x, y], [casadi.jacobian(output, whole)])
    seeds = {0: casadi.MX(np.eye(14)[:, :8]), 1: casadi.MX(np.eye(14)[:, 8:])}
    pushed = push_forward(graph, seeds)[0]
    pulled = pull_back(graph, [casadi.MX(np.eye(size))])
    columns = [pulled.get(0, casadi.MX(size, 8)), pulled.get(1, casadi.MX(size, 6))]
    forward = casadi.Function("f", [x, y], [casadi.MX(14, size) if pushed is None else pushed])
    reverse = casadi.Function("f", [x, y], [casadi.horzcat(*columns)])
    rng = np.random.RandomState(0)
    for point in (rng.standard_normal(14), np.zeros(14)):
        dense = casadi.densify(expected(point[:8], point[8:])).full()
        assert deviation(casadi.densify(forward(point[:8], point[8:])).full().T, dense) <= TOLERANCE
        assert deviation(casadi.densify(reverse(point[:8], point[8:])).full(), dense) <= TOLERANCE


def test_an_operation_without_a_rule_is_left_to_casadi():
    x = casadi.MX.sym("x", 4)
    expressions = Expressions("f", [x], ["x"], [casadi.solve(casadi.diag(2 + casadi.sin(x)), x)], ["y"])
    with pytest.raises(NotDifferentiated):
        derivatives(expressions, fewest=1)
    function = with_derivatives(expressions)
    assert function.cache() == {}
    assert np.isfinite(CasadiRuntime(function).jacobian((np.ones((1, 4)),))).all()


def wide(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 5)).eval()


def test_they_are_the_ones_that_casadi_uses():
    """In the Jacobian and the Hessian of an expression that a user would write."""
    function = reference(wide(8), (torch.ones(1, 6),))
    z = casadi.MX.sym("z", 6)
    value = casadi.sin(function(2 * z))
    jacobian = casadi.Function("J", [z], [casadi.jacobian(value, z)])
    hessian = casadi.Function("H", [z], [casadi.hessian(casadi.sum1(value), z)[0]])

    def calls(made):
        kinds = range(made.n_instructions())
        return {
            made.instruction_MX(k).which_function().name() for k in kinds if made.instruction_id(k) == casadi.OP_CALL
        }

    assert calls(jacobian) == {"f", "fwd6_f"}
    assert "fwd6_adj1_f" in calls(hessian)
    assert set(function.cache()) >= {"fwd6_f", "adj1_f"}


def test_graphs_of_derivatives_do_not_grow_with_the_inputs():
    nodes = {}
    for inputs in (8, 64):
        model = nn.Sequential(nn.Linear(inputs, 80), nn.Tanh(), nn.Linear(80, 80)).eval()
        function = reference(model, (torch.ones(1, inputs),))
        nodes[inputs] = function.cache()[f"fwd{inputs}_f"].n_instructions()
    assert nodes[8] == nodes[64] < 40


def test_blas_keeps_the_numbers():
    """The same network with CasADi's own loops, where BLAS is used for value, Jacobian and gradient."""
    model, x = wide(160), (np.linspace(-1, 1, 6)[None],)
    example, weights = (torch.ones(1, 6),), np.arange(1.0, 6.0)
    fast, plain = (CasadiRuntime(reference(model, example, blas=blas)) for blas in (True, False))
    assert deviation(fast.value(x), plain.value(x)) <= TOLERANCE
    assert deviation(fast.jacobian(x), plain.jacobian(x)) <= TOLERANCE
    assert deviation(fast.hessian(x, weights), plain.hessian(x, weights)) <= TOLERANCE


def test_directions_too_large_are_left_to_casadi(monkeypatch):
    monkeypatch.setattr(derivatives_module, "LARGEST", 10)
    assert reference(wide(8), (torch.ones(1, 6),)).cache() == {}
