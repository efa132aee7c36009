"""The generator driven by Hypothesis: the same models, with Hypothesis' own shrinking."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from torch import nn

import parity.converters.torch_casadi.lowering  # noqa: F401 (registers the lowering that is broken below)
from parity.cases.case import Case
from parity.cases.generate import generate
from parity.cases.spec import ModelSpec
from parity.cases.torch_layers import TORCH
from parity.converters import registry
from parity.converters.registry import find_chain, find_lowering
from parity.paths import path
from parity.pipeline import Point, examine
from parity.records import FAIL, PASS

SPECS = st.randoms(use_true_random=False).map(lambda rng: generate(rng, TORCH, size=5))
FAST = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def verdict(spec: ModelSpec, check: str = "value") -> str:
    case = Case("fuzz", "fuzz", 0, lambda: spec)
    (record,) = examine(case, find_chain(path("torch-casadi"), "reference"), [Point(check)])
    return record.verdict


@given(SPECS)
@FAST
def test_reference_converts_whatever_hypothesis_draws(spec: ModelSpec) -> None:
    assert verdict(spec) == PASS


def test_hypothesis_shrinks_a_failure_to_the_layer_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    right = find_lowering(nn.Tanh, "casadi")
    assert right is not None

    def wrong(layer: nn.Module, x: Any) -> Any:
        return right(layer, x) * 1.001

    monkeypatch.setitem(registry._LOWERINGS, ("casadi", nn.Tanh), wrong)
    smallest = find(SPECS, lambda spec: "Tanh" in spec.layers and verdict(spec) == FAIL,
                    settings=settings(FAST, max_examples=300), random=Random(0))  # fmt: skip
    assert "Tanh" in smallest.layers
    assert len(smallest.layers) <= 2
