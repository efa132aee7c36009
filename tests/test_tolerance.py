"""The tolerance policy, proved: correct conversions pass, seeded bugs do not, in float64 and in float32."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import MUTATIONS, ChannelsLastFlatten
from torch import nn

from parity.cases.case import Case, case_from_id, case_ids
from parity.checks.tolerance import CLOSER_RUNS, DEFAULTS, LIMITS, RUNS, Yardstick, assess, compare
from parity.checks.value import check_value
from parity.records import FAIL, PASS
from parity.runtimes.torch import TorchRuntime

DTYPES = tuple(LIMITS)


def yardstick(reference: np.ndarray, dtype: str = "float64") -> Yardstick:
    unit = np.finfo(dtype).eps / 2
    return Yardstick(reference, np.abs(reference) * unit, dtype)


def mutated(case: Case, kind: type[nn.Module], change: object) -> nn.Module | None:
    model = copy.deepcopy(case.model())
    layers = [layer for layer in model.modules() if type(layer) is kind]
    for layer in layers:
        change(layer)
    return model if layers else None


@pytest.mark.parametrize("dtype", DTYPES)
def test_correct_conversions_pass(dtype: str) -> None:
    """The same model computed in the precision that ships, at every kind of input: no false alarm."""
    for case_id in [*case_ids(["dag"], seed=11, count=40), *case_ids(["layer"], seed=11)]:
        case = case_from_id(case_id)
        model = case.model()
        for regime, batch in (("normal", 4), ("large", 1), ("tiny", 1), ("zeros", 1), ("saturating", 1)):
            inputs = case.inputs(regime, batch)
            finding = check_value(TorchRuntime(model, "float64"), TorchRuntime(model, dtype), inputs, dtype)
            assert finding.verdict == PASS, (case_id, regime, finding.comparison)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_outputs_are_no_false_alarm(dtype: str) -> None:
    """Among 67,712 elements some have a spread that four runs miss by luck."""
    model = nn.Conv2d(3, 32, 3, padding=1)
    for seed in range(3):
        inputs = (np.random.RandomState(seed).standard_normal((1, 3, 46, 46)).astype(np.float32).astype(np.float64),)
        target = TorchRuntime(model, dtype)
        finding = check_value(TorchRuntime(model, "float64"), target, inputs, dtype)
        assert finding.verdict == PASS, finding.comparison
        one_weight = copy.deepcopy(model)
        with torch.no_grad():
            one_weight.weight[0, 0, 0, 0] *= 1 + 1e-4
        wrong = check_value(TorchRuntime(model, "float64"), TorchRuntime(one_weight, dtype), inputs, dtype)
        assert wrong.verdict == FAIL


class Unlucky:
    """A source whose first runs happen to spread thirty times less than the others."""

    def __init__(self, unit: float) -> None:
        self.unit, self.runs, self.noise = unit, 0, 0.0

    @contextmanager
    def rounding(self, dtype: str, seed: int) -> Iterator[float]:
        self.runs, self.noise = self.runs + 1, self.unit * (1 if seed < RUNS else 30)
        yield 1.0
        self.noise = 0.0

    def value(self) -> np.ndarray:
        return np.full(8, 1.0 + self.noise)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_doubtful_failure_is_judged_by_more_runs(dtype: str) -> None:
    unit = float(np.finfo(dtype).eps) / 2
    source = Unlucky(unit)
    for units, runs, passed in ((1, RUNS, True), (4 * LIMITS[dtype], RUNS + CLOSER_RUNS, True),
                                (400 * LIMITS[dtype], RUNS, False)):  # fmt: skip
        source.runs = 0
        comparison, _ = assess(np.full(8, 1.0 + units * unit), source, dtype, source.value)
        assert (source.runs, comparison.passed) == (runs, passed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_planted_bugs_fail(mutation: str, dtype: str) -> None:
    """Each is visible in at least one of the three cases that a run has of its layer; in float64, in most of them."""
    kind, change = MUTATIONS[mutation]
    caught = tried = 0
    for case_id in case_ids([kind.__name__]):
        case = case_from_id(case_id)
        wrong = mutated(case, kind, change)
        if wrong is not None:
            source, target, inputs = TorchRuntime(case.model(), "float64"), TorchRuntime(wrong, dtype), case.inputs()
            try:
                caught += check_value(source, target, inputs, dtype).verdict == FAIL
            except IndexError:  # an axis that the input does not have
                caught += 1
            tried += 1
    assert tried == 3
    assert caught >= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_flatten_in_the_wrong_order_fails(dtype: str) -> None:
    for case_id in case_ids(["Flatten"]):
        case = case_from_id(case_id)
        if case.spec.input_shapes[0][0] > 1:
            target = TorchRuntime(ChannelsLastFlatten(), dtype)
            finding = check_value(TorchRuntime(case.model(), "float64"), target, case.inputs(), dtype)
            assert finding.verdict == FAIL


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_fail_unless_the_source_has_them(dtype: str) -> None:
    truth = np.array([1.0, -2.0, np.inf, np.nan])
    assert compare(truth.copy(), yardstick(truth, dtype)).passed
    for place, value in [(0, np.nan), (1, np.inf), (2, -np.inf), (2, 1.0), (3, 1.0)]:
        wrong = truth.copy()
        wrong[place] = value
        assert not compare(wrong, yardstick(truth, dtype)).passed


@given(
    st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=20),
    st.lists(st.floats(-1e-3, 1e-3), min_size=20, max_size=20),
    st.sampled_from(DTYPES),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_needed_tolerances_are_the_smallest_that_torch_accepts(
    values: list[float], errors: list[float], dtype: str
) -> None:
    truth = np.array(values)
    result = truth * (1 + np.array(errors[: len(values)])) + np.array(errors[: len(values)])
    found = compare(result, yardstick(truth, dtype))
    rtol, atol = DEFAULTS[dtype]

    def accepted(rtol: float, atol: float) -> bool:
        return bool((np.abs(result - truth) <= atol + rtol * np.abs(truth)).all())

    slack = 1 + 1e-9
    if np.isfinite(found.rtol_needed):
        assert accepted(found.rtol_needed * slack + 1e-300, atol * slack)
        assert found.rtol_needed == 0 or not accepted(found.rtol_needed * 0.999, atol)
    assert accepted(rtol * slack, found.atol_needed * slack + 1e-300)
    assert found.atol_needed == 0 or not accepted(rtol, found.atol_needed * 0.999)


def test_error_is_counted_in_units_in_the_last_place() -> None:
    truth = np.array([1.0, 1024.0, -3.0])
    result = truth + np.array([2.0, -3.0 * 1024, 0.0]) * np.finfo(np.float64).eps
    found = compare(result, yardstick(truth))
    assert found.max_ulp == 3
    assert found.max_abs == 3072 * np.finfo(np.float64).eps
    assert found.error_ratio < LIMITS["float64"]


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 3\), its source \(1, 4\)"):
        compare(np.zeros((1, 3)), yardstick(np.zeros((1, 4))))


def test_agreeing_zeros_pass_and_others_do_not() -> None:
    truth = np.zeros(3)
    assert compare(np.zeros(3), yardstick(truth)).error_ratio == 0
    assert not compare(np.array([0.0, 1e-100, 0.0]), yardstick(truth)).passed


def test_weights_that_float32_rounds_are_seen_in_float64() -> None:
    """A float64 conversion with weights rounded to float32 on the way is wrong, however small the error is."""
    model = nn.Linear(8, 4, dtype=torch.float64)
    rounded = copy.deepcopy(model).float().double()
    inputs = (torch.randn(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy(),)
    finding = check_value(TorchRuntime(model, "float64"), TorchRuntime(rounded, "float64"), inputs, "float64")
    assert finding.verdict == FAIL
