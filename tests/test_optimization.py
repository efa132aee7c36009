"""torch→optimization: every layer in every form, the formulations agree, and what a user adds or gets wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import parity
from parity.cases.case import case_from_id, case_ids
from parity.checks.derivatives import projection
from parity.checks.optimum import search
from parity.converters.registry import find_chain
from parity.converters.torch_optimization import Complementarity, Direct, Smooth, Sos1
from parity.converters.torch_optimization.capture import embed
from parity.paths import path
from parity.pipeline import PLANS, examine
from parity.records import DEGENERATE, PASS, UNSUPPORTED
from parity.runtimes import runtime_for

torch.set_num_threads(1)
LISTED = (
    "AvgPool2d", "Conv2d", "Flatten", "GELU", "LayerNorm", "LeakyReLU", "Linear", "MaxPool2d", "ReLU", "Sigmoid",
    "Softmax", "Softplus", "Tanh", "BatchNorm1d", "BatchNorm2d", "Dropout", "ELU", "SiLU", "Hardtanh", "Add",
    "Concatenate"
)  # fmt: skip
EMBEDDED_PLAN = PLANS["torch-optimization"]
WITHOUT_SOLVER = tuple(point for point in EMBEDDED_PLAN if point.check in ("value", "trace"))


def convert(model: nn.Module, name: str, inputs: int | tuple[int, ...] = 2, **options: Any) -> Any:
    shape = (inputs,) if isinstance(inputs, int) else inputs
    example = torch.zeros(1, *shape, dtype=torch.float64)
    return parity.convert(model.double().eval(), "optimization", example, converter=name, **options)


def rectifier(seed: int = 0, width: int = 6, scale: float = 2.0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
    for parameter in model.parameters():
        parameter.data *= scale
    return model.double().eval()


def verdicts(model: nn.Module, artifact: Any, x: np.ndarray, *checks: str) -> dict[str, Any]:
    return {record.check: record for record in parity.check(model, artifact, x, checks=checks)}


KINKED = ("LeakyReLU", "MaxPool2d", "ReLU", "ELU", "Hardtanh")


@pytest.mark.parametrize(
    ("form", "layer"),
    [
        *((form, layer) for form in ("casadi-full-space", "casadi-reduced-space") for layer in LISTED),
        *((form, layer) for form in ("casadi-big-m", "casadi-complementarity") for layer in KINKED),
    ],
)
def test_every_listed_layer_agrees_in_value_and_in_its_constraints(layer: str, form: str) -> None:
    for case_id in case_ids([layer]):
        records = list(examine(case_from_id(case_id), find_chain(path("torch-optimization"), form), WITHOUT_SOLVER))
        assert [record.verdict for record in records] == [PASS] * len(WITHOUT_SOLVER), records[0].summary()


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("form", ["casadi-full-space", "casadi-reduced-space", "pyomo-full-space"])
def test_random_networks_pass_every_check(number: int, form: str) -> None:
    chain = find_chain(path("torch-optimization"), form)
    plan = [point for point in EMBEDDED_PLAN if point.check != "optimum"]
    for record in examine(case_from_id(f"sequential-0-{number}"), chain, plan):
        assert record.verdict in (PASS, UNSUPPORTED, DEGENERATE), record.summary()


@pytest.mark.parametrize("number", [0, 1, 2, 7])
def test_exact_formulations_of_rectifiers_agree_on_the_optimum(number: int) -> None:
    """Number 7 is one whose optimum SCIP cuts off, unless its cuts from special ordered sets are off."""
    case = case_from_id(f"rectifier-0-{number}")
    model, x = case.model().double(), case.inputs("unit")
    optima = {}
    for name in ("casadi-big-m", "casadi-sos1", "pyomo-big-m", "pyomo-sos1", "pyomo-complementarity"):
        embedding = parity.convert(model, "optimization", x, converter=name)
        weights = projection(embedding.outputs)
        solution = runtime_for(embedding).maximise(weights)
        assert solution.outcome == "optimal"
        optima[name] = solution.value
    best = search(runtime_for(model, "float64"), embedding.lower, embedding.upper, x, weights)
    assert max(optima.values()) - min(optima.values()) < 1e-6
    assert max(optima.values()) >= best - 1e-6


def test_scip_solves_complementarity_and_sets_to_the_same_optimum() -> None:
    pytest.importorskip("pyscipopt")
    model = rectifier(width=4)
    optima = []
    for name in ("pyomo-complementarity", "pyomo-sos1", "casadi-big-m"):
        optima.append(runtime_for(convert(model, name)).maximise(np.ones(1)).value)
    assert max(optima) - min(optima) < 1e-5


def test_known_optimum() -> None:
    """max |x₁ + x₂| over [-1, 1]² is 2, through two rectifiers."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    model[2].weight.data = torch.ones(1, 2)
    for name in ("casadi-big-m", "casadi-sos1", "pyomo-big-m"):
        solution = runtime_for(convert(model, name)).maximise(np.ones(1))
        assert solution.value == pytest.approx(2.0, abs=1e-8)
        assert abs(solution.x).tolist() == pytest.approx([1, 1])


def test_local_solvers_say_so_and_are_not_failed_for_it() -> None:
    record = verdicts(rectifier(), convert(rectifier(), "casadi-complementarity"), np.zeros((1, 2)), "optimum")[
        "optimum"
    ]
    assert record.verdict in (PASS, DEGENERATE)
    assert "local only" in record.message


def test_a_solve_that_runs_into_its_time_limit_is_told_and_not_timed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    embedding = convert(model, "pyomo-full-space", 3, solver="scip", time_limit=0.3)
    (record,) = parity.check(model, embedding, np.zeros((1, 3)), checks=("optimum",), speed=True)
    assert (record.verdict, record.speed_ratio) == (PASS, None) or record.verdict == "timeout", record.summary()
    assert "imelimit" in record.message.replace(" ", "").lower()


def test_gray_box_has_exact_derivatives_and_no_variables_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 2))
    embedding = convert(model, "casadi-gray-box", 3)
    found = verdicts(model, embedding, np.array([[0.3, -0.2, 0.7]]), "value", "jacobian", "hessian", "fixed", "optimum")
    assert {record.verdict for record in found.values()} == {PASS}
    assert (embedding.size.variables, embedding.size.constraints) == (3, 0)


def test_records_hold_the_size_of_the_model() -> None:
    model = rectifier(width=4, scale=1.0)
    record = verdicts(model, convert(model, "casadi-big-m"), np.zeros((1, 2)), "fixed")["fixed"]
    embedding = convert(model, "casadi-full-space")
    assert (embedding.size.variables, embedding.size.constraints, embedding.size.binaries) == (2 + 4 * 4 + 1, 17, 0)
    assert record.variables and record.constraints and 0 < (record.binaries or 0) <= 8
    assert "highs" in record.message


@pytest.mark.parametrize(
    "config", [{nn.ReLU: "sos1"}, {nn.ReLU: Sos1()}, {"1": Sos1(), "3": "sos1"}, {"default": "sos1"}], ids=str
)
def test_config_chooses_by_type_by_name_and_for_all(config: dict[Any, Any]) -> None:
    embedding = convert(rectifier(), "casadi-full-space", config=config)
    assert len(embedding.sets) == 12
    assert not embedding.integer.any()


def test_config_for_one_layer_leaves_the_others() -> None:
    embedding = convert(rectifier(), "casadi-big-m", config={"3": Complementarity()}, box=(-2, 2))
    layers = {label.layer for label, integer in zip(embedding.labels, embedding.integer, strict=True) if integer}
    assert layers == {"1"}


def test_smooth_formulation_is_off_by_no_more_than_it_says() -> None:
    model, epsilon = nn.Sequential(nn.ReLU()), 1e-3
    embedding = convert(model, "casadi-reduced-space", 1, config={nn.ReLU: Smooth(epsilon)})
    x = np.linspace(-1, 1, 101)[:, None]
    excess = runtime_for(embedding).value((x,)) - np.maximum(x, 0)
    assert excess.min() >= 0 and excess.max() == pytest.approx(epsilon / 2)
    assert embedding.error > epsilon / 2
    assert verdicts(model, embedding, np.array([[0.0]]), "fixed")["fixed"].verdict == PASS


def binaries(**options: Any) -> int:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)
    )
    count: int = convert(model, "casadi-big-m", 3, **options).size.binaries
    return count


def test_tightened_bounds_leave_fewer_binaries_and_the_same_optimum() -> None:
    assert binaries(tighten="milp") <= binaries(tighten="lp") < binaries()
    model = rectifier()
    loose, tight = (runtime_for(convert(model, "casadi-big-m", tighten=how)) for how in ("", "lp"))
    assert tight.maximise(np.ones(1)).value == pytest.approx(loose.maximise(np.ones(1)).value, abs=1e-7)
    x = np.random.RandomState(0).uniform(-1, 1, (200, 2))
    assert verdicts(model, tight.embedding, x, "trace")["trace"].verdict == PASS


@pytest.mark.parametrize(
    "layer",
    [
        *(nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Softplus(3.0, 2.0), nn.ELU(0.7), nn.LayerNorm(6), nn.Softmax(1)),
        *(nn.Tanh(), nn.Sigmoid(), nn.Hardtanh(-0.5, 0.2), nn.LeakyReLU(0.3)),
    ],
    ids=str,
)
def test_intervals_hold_what_the_layer_gives(layer: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), layer).double().eval()
    example = (torch.zeros(1, 3, dtype=torch.float64),)
    program = embed(model, example, box=(-4.0, 4.0), full=True, default=Direct(), config=None)
    output = program.results["1"]
    x = torch.from_numpy(np.random.RandomState(0).uniform(-4, 4, (2000, 3)))
    values = model(x).detach().numpy()
    assert (values >= output.lower - 1e-12).all() and (values <= output.upper + 1e-12).all()
    assert np.isfinite(output.lower).all() and np.isfinite(output.upper).all()


def test_gelu_is_not_cut_off_at_a_rounded_minimum() -> None:
    """The tanh form reaches -0.170041: a bound of -0.17 makes inputs near -0.75 infeasible."""
    model = nn.Sequential(nn.GELU("tanh"))
    embedding = convert(model, "casadi-full-space", 1)
    assert embedding.bounds[0][1] == pytest.approx(-0.1700407, abs=1e-7)
    found = verdicts(model, embedding, np.array([[-0.7525]]), "trace", "fixed")
    assert {record.verdict for record in found.values()} == {PASS}


@pytest.mark.parametrize("name", ["casadi-full-space", "casadi-reduced-space"])
def test_wide_inputs_overflow_nowhere(name: str) -> None:
    for model in (nn.Softplus(), nn.Sigmoid(), nn.SiLU(), nn.Softmax(1), nn.ELU(), nn.Tanh()):
        embedding = convert(nn.Sequential(model), name, 3, box=(-2000, 2000))
        x = np.array([[1500.0, -1500.0, 3.0]])
        value = runtime_for(embedding).value((x,))
        assert value == pytest.approx(model(torch.from_numpy(x)).numpy(), rel=1e-14)
        assert np.isfinite(runtime_for(embedding).jacobian((x,))).all()


def test_pyomo_names_what_is_used_twice() -> None:
    """Its expressions are trees: unnamed, each of these layers would multiply the size of what is before it."""
    torch.manual_seed(0)
    layers = [part for _ in range(12) for part in (nn.LayerNorm(5), nn.Linear(5, 5), nn.Softmax(1))]
    model = nn.Sequential(nn.Linear(5, 5), *layers, nn.Unflatten(1, (1, 5, 1)), nn.MaxPool2d((5, 1)))
    embedding = convert(model, "pyomo-reduced-space", 5)
    assert len(embedding.model.shared) < 12 * 50
    x = np.random.RandomState(0).uniform(-1, 1, (3, 5))
    assert verdicts(model, embedding, x, "value")["value"].verdict == PASS


def test_two_exact_formulations_agree_on_the_margin_of_a_digit() -> None:
    """The worst perturbation within the box makes another class win than the one that comes second without it."""
    pytest.importorskip("sklearn")
    case = case_from_id("digits-0-0")
    model, x = case.model().double(), case.inputs("unit")
    unperturbed = model(torch.zeros(1, 64, dtype=torch.float64)).detach()[0]
    assert len(unperturbed) == 9 and unperturbed.min() > 2
    margins = []
    for name in ("casadi-big-m", "casadi-sos1"):
        runtime = runtime_for(parity.convert(model, "optimization", x, converter=name))
        ends = [runtime.maximise(-rival) for rival in np.eye(9)]
        assert {end.outcome for end in ends} == {"optimal"}
        rival = min(range(9), key=lambda number: -ends[number].value)
        margins.append(-ends[rival].value)
        attacked = model(torch.from_numpy(ends[rival].x)[None]).detach()[0]
        assert float(attacked.min()) == pytest.approx(margins[-1], abs=1e-7)
        assert rival == int(attacked.argmin()) != int(unperturbed.argmin())
    assert margins[0] == pytest.approx(margins[1], abs=1e-7)
    assert margins[0] < 0


def test_records_hold_builtins_only() -> None:
    x = np.zeros((1, 2))
    found = verdicts(rectifier(), convert(rectifier(), "casadi-big-m"), x, "trace", "fixed", "optimum")
    assert all(record.to_plain() for record in found.values())
