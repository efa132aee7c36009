"""Cases: valid by construction, the same on every machine, and every option of every layer met."""

from __future__ import annotations

import hashlib
import json
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.cases.case import case_from_id, case_ids
from parity.cases.families import families, layer_families
from parity.cases.generate import LARGEST_VALUE, generate
from parity.cases.pendulum import step, train
from parity.cases.spec import ModelSpec
from parity.cases.torch_layers import TORCH, build, make_layer
from parity.cases.weights import REGIMES
from parity.errors import ParityError

DIGEST = "1e41c777aebb794f"
"""Of specs, weights and inputs of the cases below. A change changes published cases: say so in CHANGELOG.md."""


def digest(ids: list[str]) -> str:
    found = hashlib.sha256()
    for case_id in ids:
        case = case_from_id(case_id)
        found.update(case.spec.to_json().encode())
        for name, tensor in sorted(case.model().state_dict().items()):
            found.update(name.encode() + tensor.numpy().tobytes())
        for regime in REGIMES:
            for array in case.inputs(regime, batch=2):
                found.update(array.tobytes())
    return found.hexdigest()[:16]


def test_cases_rebuild_bit_for_bit() -> None:
    ids = [*case_ids(["dag"], seed=0, count=10), *case_ids(["layer"], seed=3), *case_ids(["network", "recipe"])]
    case_from_id.cache_clear()
    assert digest(ids) == DIGEST


def test_a_run_has_many_cases() -> None:
    ids = case_ids()
    assert len(ids) == len(set(ids)) >= 150
    assert sum(case_id.startswith("dag-") for case_id in ids) >= 40
    for layer in layer_families():
        assert sum(case_id.startswith(f"{layer}-") for case_id in ids) >= 2


@pytest.mark.parametrize("layer", layer_families())
def test_layer_case_holds_its_layer(layer: str) -> None:
    for case_id in case_ids([layer]):
        assert layer in case_from_id(case_id).spec.layers


@given(st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_generated_spec_is_a_model_of_the_stated_shapes(rng: Random) -> None:
    spec = generate(rng, TORCH)
    assert ModelSpec.from_json(spec.to_json()) == ModelSpec.from_json(json.dumps(json.loads(spec.to_json())))
    values = [torch.randn(2, *shape) for shape in spec.input_shapes]
    for node in spec.nodes:
        layer = make_layer(node.layer, node.arguments).eval()
        values.append(layer(*(values[value] for value in node.inputs)))
        assert tuple(values[-1].shape[1:]) == node.shape
        assert values[-1][0].numel() <= LARGEST_VALUE or node.layer == "Concatenate"  # the join of all branches
    assert tuple(build(spec)(*values[: len(spec.input_shapes)]).shape[1:]) == spec.output_shape


@pytest.mark.parametrize("layer", layer_families())
@pytest.mark.parametrize("seed", [0, 7])
def test_a_few_cases_meet_every_option(layer: str, seed: int) -> None:
    """The three cases of a layer that a run takes are spread over the values of each of its arguments."""
    met: dict[str, set[str]] = {}
    for case_id in case_ids([layer], seed, count=3):
        for node in case_from_id(case_id).spec.nodes:
            if node.layer == layer:
                for name, value in node.arguments.items():
                    met.setdefault(name, set()).add(repr(value))
    for name in ("approximate", "count_include_pad", "ceil_mode", "align_corners", "track_running_stats"):
        if name in met:
            assert len(met[name]) == 2, f"{layer} is never met with another {name} than {met[name]}"


def test_weights_are_trained_like() -> None:
    for case_id in case_ids(["BatchNorm2d"]):
        state = case_from_id(case_id).model().state_dict()
        mean = next(tensor for name, tensor in state.items() if name.endswith("running_mean"))
        assert mean.abs().min() > 1e-3


def test_inputs_of_regimes() -> None:
    case = case_from_id("network-0-1")
    sizes = {regime: np.abs(case.inputs(regime, 8)[0]) for regime in REGIMES}
    assert 100 < sizes["large"].mean() < 10_000
    assert sizes["tiny"].max() < 1e-5
    assert 0.3 < (sizes["zeros"] == 0).mean() < 0.7
    assert sizes["saturating"].min() >= 20
    assert all(np.array_equal(size, size.astype(np.float32)) for size in sizes.values())


def test_pendulum_learns_the_dynamics() -> None:
    model = build(case_from_id("pendulum-0-0").spec)
    error = train(model, "pendulum-0-0", epochs=400)
    state = np.array([[0.3, -1.0]])
    change = step(state, np.array([0.5])) - state
    assert error < 5e-3
    predicted = model(torch.tensor([[0.3, -1.0, 0.5]])).detach().numpy()
    assert np.abs(predicted - change).max() < 0.2


@pytest.mark.parametrize("case_id", ["dag", "dag-0", "dag-x-1", "nothing-0-1", "recipe-0-9", "", "dag-0-1-2"])
def test_unknown_ids_are_refused(case_id: str) -> None:
    with pytest.raises(ParityError, match="no case"):
        case_from_id(case_id)


def test_unknown_family_is_refused() -> None:
    with pytest.raises(ParityError, match="unknown family 'Conv9d'"):
        case_ids(["Conv9d"])


def test_count_is_for_random_families() -> None:
    assert len(case_ids(["dag"], count=7)) == 7
    assert len(case_ids(["recipe"], count=7)) == families()["recipe"].count
    assert len(case_ids(["Conv2d"], count=7)) == 7
