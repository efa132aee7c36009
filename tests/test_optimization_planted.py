"""Planted errors in solvers' models: each must be caught by the check that is there for it, where it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_optimization import convert, rectifier, verdicts
from torch import nn

from parity.converters.torch_optimization import BigM, layers
from parity.records import FAIL, PASS, Record
from parity.runtimes import runtime_for

X = np.random.RandomState(0).uniform(-1, 1, (64, 2))


def check(model: nn.Module, artifact: Any, *checks: str) -> dict[str, Record]:
    return verdicts(model, artifact, X, *checks)


def test_an_honest_model_passes() -> None:
    model = rectifier()
    found = check(model, convert(model, "casadi-big-m"), "value", "trace", "fixed", "optimum")
    assert {record.verdict for record in found.values()} == {PASS}


def test_a_too_small_big_m_is_caught_without_a_solver() -> None:
    model = rectifier()
    record = check(model, convert(model, "casadi-big-m", config={"3": BigM(0.5)}), "trace")["trace"]
    assert (record.verdict, record.blame_layer) == (FAIL, "3")


def test_a_big_m_that_only_the_optimum_meets() -> None:
    """Two solvers agree on the optimum of such a model: they agree on the model, not on the network."""
    model = rectifier()
    right = runtime_for(convert(model, "casadi-big-m"))
    optimum = right.maximise(np.ones(1))
    activations = runtime_for(model, "float64").activations((optimum.x[None],))
    largest = max(np.abs(activations[name]).max() for name in ("0", "2"))
    small = BigM(0.97 * float(largest))
    wrong = [runtime_for(convert(model, name, config={nn.ReLU: small})) for name in ("casadi-big-m", "pyomo-big-m")]
    values = [runtime.maximise(np.ones(1)).value for runtime in wrong]
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    assert values[0] < optimum.value - 1e-3
    found = verdicts(model, wrong[0].embedding, optimum.x[None], "trace", "optimum")
    assert {record.verdict for record in found.values()} == {FAIL}


def test_a_too_large_big_m_leaks_at_the_optimum_or_is_solved_right() -> None:
    """With 1e8, an integrality tolerance lets neurons give what they like: no permitted error may hide that."""
    model = rectifier()
    loose = convert(model, "casadi-big-m", config={nn.ReLU: BigM(1e8)})
    truth = runtime_for(convert(model, "casadi-big-m")).maximise(np.ones(1)).value
    solution = runtime_for(loose).maximise(np.ones(1))
    off = solution.value is None or abs(solution.value - truth) > 1e-5
    assert (check(model, loose, "optimum")["optimum"].verdict == FAIL) == off


@pytest.mark.parametrize("target", ["casadi-big-m", "casadi-full-space"])
def test_a_wrong_bound_on_a_neuron_is_caught_and_named(target: str) -> None:
    model = rectifier()
    embedding = convert(model, target)
    lower, upper = (side.copy() for side in embedding.bounds)
    place = next(index for index, label in enumerate(embedding.labels) if label.layer == "2")
    values = [embedding.assign(x, {})[place] for x in X]
    upper[place] = 0.5 * (min(values) + max(values))
    wrong = replace(embedding, bounds=(lower, upper))
    record = check(model, wrong, "trace")["trace"]
    assert (record.verdict, record.blame_layer) == (FAIL, "2")
    above = X[int(np.argmax(values))][None]
    assert verdicts(model, wrong, above, "fixed")["fixed"].verdict == FAIL


def test_the_tanh_form_of_gelu_in_the_place_of_erf(monkeypatch: pytest.MonkeyPatch) -> None:
    from parity.converters import registry

    model = nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 1)).double().eval()
    monkeypatch.setitem(
        registry._LOWERINGS, ("optimization", nn.GELU), lambda layer, x: layers.gelu(nn.GELU("tanh"), x)
    )
    for form in ("casadi-full-space", "casadi-reduced-space"):
        found = check(model, convert(model, form), "value", "jacobian", "fixed")
        assert {record.verdict for record in found.values()} == {FAIL}
    record = check(model, convert(model, "casadi-full-space"), "trace")["trace"]
    assert (record.verdict, record.blame_layer) == (FAIL, "1")


def test_weights_rounded_to_float32() -> None:
    model = rectifier(scale=1.3)
    rounded = rectifier(scale=1.3)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.add(parameter.data / 3e7).float().double()
    found = check(model, convert(rounded, "casadi-big-m"), "value", "trace", "fixed")
    assert {name: record.verdict for name, record in found.items()} == {"value": FAIL, "trace": FAIL, "fixed": FAIL}
    assert found["trace"].blame_layer == "0"


@pytest.mark.parametrize("wrong", ["softplus without beta", "max-pool padded by zero", "batch norm without epsilon"])
def test_peers_mistakes(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each was found in a published converter."""
    model: nn.Module
    shape: tuple[int, ...] = (2,)
    mistaken: nn.Module
    if wrong.startswith("softplus"):
        model, mistaken = nn.Sequential(nn.Linear(2, 2), nn.Softplus(beta=3)), nn.Softplus()
    elif wrong.startswith("max-pool"):
        shape = (1, 2, 2)
        model = nn.Sequential(nn.MaxPool2d(2, padding=1))
        mistaken = nn.Sequential(nn.ConstantPad2d(1, 0.0), nn.MaxPool2d(2))
    else:
        model, mistaken = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, eps=1e-3)), nn.BatchNorm1d(2, eps=1e-12)
    other = nn.Sequential(*list(model)[:-1], mistaken).double().eval()
    model = model.double().eval()
    if "pool" in wrong:
        from parity.converters import registry
        from parity.converters.torch_optimization.layers import affine_layer

        monkeypatch.setitem(registry._LOWERINGS, ("optimization", nn.ConstantPad2d), affine_layer)
    x = np.random.RandomState(5).uniform(-1, -0.1, (4, *shape))
    found = verdicts(model, convert(other, "casadi-full-space", shape), x, "value", "fixed")
    assert {record.verdict for record in found.values()} == {FAIL}
