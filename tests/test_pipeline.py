"""The pipeline from case to record: a broken converter is caught and blamed, an honest one passes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import casadi
import numpy as np
import pytest
import torch
from mutations import MUTATIONS
from torch import nn

import parity
import parity.converters.torch_casadi.lowering  # registers the lowerings that are broken below
from parity.cases.case import case_from_id, case_ids
from parity.checks.derivatives import check_jacobian
from parity.converters import registry
from parity.converters.registry import Chain, Converter, find_chain, find_lowering
from parity.paths import path
from parity.pipeline import PLAN, Point, examine
from parity.records import DEGENERATE, ERROR, FAIL, PASS, UNSUPPORTED, Record
from parity.runtimes import runtime_for

REFERENCE = find_chain(path("torch-casadi"), "reference")


def chain_of(function: Callable[..., Any]) -> Chain:
    edge = Converter("torch", "casadi", function.__name__, function, ("float64",), ())
    return Chain(path("torch-casadi"), (edge,))


def records_of(case_id: str, chain: Chain = REFERENCE, plan: Any = PLAN) -> list[Record]:
    return list(examine(case_from_id(case_id), chain, plan))


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[nn.Module], Callable[..., Any]], None]:
    """Replace the lowering of a layer by one that got the layer wrong."""

    def break_lowering(kind: type[nn.Module], wrong: Callable[..., Any]) -> None:
        right = find_lowering(kind, "casadi")
        assert right is not None

        def lowering(layer: nn.Module, *inputs: Any) -> Any:
            return wrong(right, copy.deepcopy(layer), *inputs)

        monkeypatch.setitem(registry._LOWERINGS, ("casadi", kind), lowering)

    return break_lowering


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_converter_that_gets_a_layer_wrong_is_caught_and_blamed(mutation: str, broken: Any) -> None:
    """By the very cases that a run has of the layer, and by its random graphs."""
    kind, change = MUTATIONS[mutation]

    def wrong(right: Callable[..., Any], layer: nn.Module, *inputs: Any) -> Any:
        change(layer)
        return right(layer, *inputs)

    broken(kind, wrong)
    own = [record for case_id in case_ids([kind.__name__]) for record in records_of(case_id)]
    failed = [record for record in own if record.verdict == FAIL]
    assert failed
    assert {record.blame_layer.rpartition("_")[0] for record in failed} == {kind.__name__.lower()}
    assert {record.blame_stage for record in failed} == {"torch→casadi"}
    graphs = [case_id for case_id in case_ids(["dag"], count=200) if kind.__name__ in case_from_id(case_id).spec.layers]
    assert any(record.verdict == FAIL for case_id in graphs[:6] for record in records_of(case_id))


def test_flatten_in_the_wrong_order_is_caught(broken: Any) -> None:
    def wrong(right: Callable[..., Any], layer: nn.Module, x: Any) -> Any:
        return right(layer, x.permute(0, *range(2, x.ndim), 1))

    broken(nn.Flatten, wrong)
    records = [record for case_id in case_ids(["Flatten"]) for record in records_of(case_id)]
    assert sum(record.verdict == FAIL for record in records) > len(records) / 3


def test_only_the_guilty_layer_is_blamed(broken: Any) -> None:
    def wrong(right: Callable[..., Any], layer: nn.Module, x: Any) -> Any:
        return right(layer, x) * 1.0001

    broken(nn.Tanh, wrong)
    record = records_of("network-0-0", plan=[Point("value")])[0]
    assert (record.verdict, record.blame_layer) == (FAIL, "tanh_2")


def test_a_wrong_derivative_of_a_right_value_is_caught(broken: Any) -> None:
    """A kink that bends the Jacobian at a point where the value agrees to the last bit."""

    def wrong(right: Callable[..., Any], layer: nn.Module, x: Any) -> Any:
        y = right(layer, x)
        return type(y)(casadi.if_else(True, y.data, 0) + 0 * x.data[0], y.shape)

    case = case_from_id("network-0-0")
    function = parity.convert(case.model().double(), "casadi", example=case.inputs())
    x = casadi.MX.sym("x", 2)
    rounded = casadi.Function("f", [x], [function(x) + 1e-3 * (x[0] - float(case.inputs()[0][0, 0]))])
    records = parity.check(case.model().double(), rounded, case.inputs())
    assert [record.verdict for record in records] == [PASS, FAIL, PASS]


def test_kinks_are_degenerate_and_do_not_hide_an_error() -> None:
    model = nn.ReLU()
    x = casadi.MX.sym("x", 3)
    other_choice = casadi.Function("f", [x], [casadi.fmax(x, 0)])  # derivative 1/2 at 0, torch has 0
    point = (np.array([[0.0, 1.0, -2.0]]),)
    records = parity.check(model, other_choice, point)
    assert [record.verdict for record in records] == [PASS, DEGENERATE, PASS]
    assert "1 of 9 elements jump" in records[1].message
    wrong = casadi.Function("f", [x], [casadi.fmax(x, 0) + casadi.vertcat(0, 0, 1e-9 * (x[2] + 2) ** 1)])
    assert check_jacobian(runtime_for(model, "float64"), runtime_for(wrong), point, "float64").verdict == FAIL


def test_what_a_converter_refuses_is_unsupported() -> None:
    def shy(model: Any, example: Any) -> Any:
        raise parity.Unsupported("no Linear(2, 1) here: add it")

    records = records_of("recipe-0-0", chain_of(shy))
    assert {record.verdict for record in records} == {UNSUPPORTED}
    assert {record.message for record in records} == {"no Linear(2, 1) here: add it"}
    assert len(records) == len(PLAN)


def test_what_a_converter_raises_is_an_error_with_its_place() -> None:
    def careless(model: Any, example: Any) -> Any:
        return {}["weights"]

    record = records_of("recipe-0-0", chain_of(careless))[0]
    assert record.verdict == ERROR
    assert record.message.startswith("KeyError: 'weights' (test_pipeline.py:")


def test_a_wrong_shape_and_a_missing_derivative_cost_their_own_verdict() -> None:
    def halves(model: Any, example: Any) -> Any:
        x = casadi.MX.sym("x", 2)
        return casadi.Function("f", [x], [casadi.vertcat(x, x)])

    record = records_of("recipe-0-0", chain_of(halves))[0]
    assert record.verdict == ERROR and "gives shape (1, 4), its source (1, 1)" in record.message


def test_records_of_a_timed_case_have_the_speed_once() -> None:
    records = records_of("recipe-0-0", plan=[Point("value", timed=True), Point("value", "large")])
    assert records[0].speed_low <= records[0].speed_ratio <= records[0].speed_high
    assert records[0].speed_ratio == pytest.approx(records[0].source_us / records[0].target_us, rel=0.5)
    assert records[0].message.split(":")[0] in ("faster", "slower", "same", "unclear")
    assert records[1].speed_ratio is None


@pytest.fixture
def pendulum() -> Iterator[tuple[nn.Module, np.ndarray]]:
    case = case_from_id("pendulum-0-0")
    yield case.model(), case.inputs(batch=5)[0]


def test_own_model_by_name_by_function_and_converted(pendulum: tuple[nn.Module, np.ndarray]) -> None:
    model, x = pendulum
    converted = parity.convert(model, "casadi", example=x[:1])
    assert isinstance(converted, casadi.Function)
    for way in (converted, "reference", lambda model, example: parity.convert(model, "casadi", example=example)):
        records = parity.assert_parity(model, way, x)
        assert [(record.check, record.verdict, record.batch) for record in records] == [
            ("value", PASS, 5),
            ("jacobian", PASS, 4),
            ("hessian", PASS, 4),
        ]
    assert parity.assert_parity(model, "reference", torch.from_numpy(x).float(), checks=["value"], speed=True)


def test_assert_parity_says_what_is_off(pendulum: tuple[nn.Module, np.ndarray]) -> None:
    model, x = pendulum
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.linear_3.bias += 1e-6
    converted = parity.convert(other, "casadi", example=x[:1])
    with pytest.raises(AssertionError, match=r"value given batch 5: fail, error .* rounding units of float64"):
        parity.assert_parity(model, converted, x)


def test_models_with_several_inputs_and_outputs() -> None:
    class Dynamics(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.state, self.input = nn.Linear(3, 3), nn.Linear(2, 3)

        def forward(self, x: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = torch.tanh(self.state(x) + self.input(u))
            return y, y.sum(-1, keepdim=True)

    rng = np.random.RandomState(0)
    records = parity.assert_parity(Dynamics(), "reference", (rng.randn(3, 3), rng.randn(3, 2)))
    assert len(records) == 3


class Bad(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 1)
        with torch.no_grad():
            self.weight[0, 1] = float("nan")


@pytest.mark.parametrize(
    ("model", "converted", "inputs", "message"),
    [
        (Bad(), "reference", np.zeros((1, 2)), "weights 'weight' hold 1 NaN or infinite element"),
        (nn.Linear(2, 1), "reference", np.zeros((1, 3)), r"does not run on inputs of shape \(1, 3\): mat1 and mat2"),
        (nn.Linear(2, 1), "reference", np.zeros((1, 2), int), "input 0 is of dtype int64: give floating-point"),
        (nn.Linear(2, 1), "reference", np.zeros((0, 2)), "give at least one sample"),
        (nn.Linear(2, 1), "nobody", np.zeros((1, 2)), "no converter 'nobody' starts from torch: reference"),
        (nn.Linear(2, 1), 3, np.zeros((1, 2)), "a int is neither a converted model"),
        ("text", "reference", np.zeros((1, 2)), "no path starts from a builtins.str"),
    ],
)
def test_bad_input_is_one_clear_line(model: Any, converted: Any, inputs: np.ndarray, message: str) -> None:
    with pytest.raises(parity.ParityError, match=message) as caught:
        parity.check(model, converted, inputs)
    assert "\n" not in str(caught.value)


def test_unknown_check_is_refused() -> None:
    with pytest.raises(parity.ParityError, match="unknown check 'speed': one of value, jacobian, hessian"):
        parity.check(nn.Linear(2, 1), "reference", np.zeros((1, 2)), checks=["speed"])
