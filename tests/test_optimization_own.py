"""torch→optimization for a model of the user's: layers that are added, options, files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import casadi
import numpy as np
import pytest
import torch
from test_optimization import convert, rectifier, verdicts
from torch import nn

import parity
from parity.converters import registry
from parity.errors import ParityError, Unsupported
from parity.records import PASS
from parity.runtimes import runtime_for


def test_user_registers_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_LOWERINGS", dict(registry._LOWERINGS))

    class Squash(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x) / (1 + torch.relu(x))

    model = nn.Sequential(nn.Linear(2, 3), Squash(), nn.Linear(3, 1))
    with pytest.raises(Unsupported, match="bounds of a divisor"):
        convert(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), _Reciprocal()), "casadi-full-space")

    @parity.lowers(Squash, to="optimization")
    def squash(layer: nn.Module, x: Any) -> Any:
        positive = x.relu()
        return positive / (1 + positive)

    x = np.random.RandomState(0).uniform(-1, 1, (5, 2))
    for name in ("casadi-full-space", "casadi-big-m", "casadi-reduced-space"):
        found = verdicts(model, convert(model, name), x, "value", "trace", "fixed")
        assert {record.verdict for record in found.values()} == {PASS}, name


class _Reciprocal(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x


@pytest.mark.parametrize(
    ("model", "shape", "reason"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Mish()), (2,), "Mish"),
        (nn.BatchNorm1d(2, track_running_stats=False), (2,), "running statistics"),
        (nn.MaxPool2d(2, return_indices=True), (1, 4, 4), "return_indices"),
        (nn.Softmax(0), (2,), "batch axis"),
        (nn.Flatten(0), (2,), "batch axis"),
        (nn.LSTM(2, 2), (3, 2), "LSTM"),
    ],
    ids=str,
)
def test_what_cannot_be_converted_is_named(model: nn.Module, shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(Unsupported, match=reason) as error:
        convert(model, "casadi-full-space", shape)
    assert "\n" not in str(error.value)


def test_pyomo_says_which_functions_it_lacks() -> None:
    with pytest.raises(Unsupported, match="GELU needs the error function"):
        convert(nn.Sequential(nn.GELU()), "pyomo-full-space")
    with pytest.raises(Unsupported, match=r"threshold=0\.5"):
        convert(nn.Sequential(nn.Softplus(1.0, 0.5)), "pyomo-reduced-space")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"box": (1, -1)}, "empty"),
        ({"box": 3}, "box is"),
        ({"box": ([0, 0, 0], 1)}, "box is"),
        ({"config": {nn.Tanh: "big-m"}}, "Tanh"),
        ({"config": {nn.ReLU: "bigger-m"}}, "bigger-m"),
        ({"tighten": "more"}, "tighten"),
    ],
    ids=str,
)
def test_bad_options_are_one_line(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ParityError, match=reason):
        convert(rectifier(), "casadi-big-m", **options)


def test_big_m_without_a_box_is_refused() -> None:
    with pytest.raises(Unsupported, match="finite box"):
        convert(rectifier(), "casadi-big-m", box=(-np.inf, np.inf))


def test_inputs_outside_the_box_are_told_apart_from_errors() -> None:
    record = verdicts(rectifier(), convert(rectifier(), "casadi-big-m"), np.array([[3.0, 0.0]]), "trace")["trace"]
    assert "outside the box" in record.message


def test_the_model_takes_part_in_a_problem_of_the_user(tmp_path: Path) -> None:
    """The input nearest to (0.9, 0.9) at which the network gives no more than at another point."""
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    torch.manual_seed(3)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    embedding = convert(model, "casadi-full-space")
    opti = casadi.Opti()
    x, y = embedding.add_to(opti)
    opti.minimize(casadi.sumsqr(x - 0.9))
    highest = float(model(torch.tensor([[-0.5, 0.2]]).double()).detach())
    opti.subject_to(y <= highest)
    opti.solver("ipopt", {"print_time": False, "ipopt": {"print_level": 0, "sb": "yes"}})
    solution = opti.solve()
    assert float(model(torch.tensor(solution.value(x))[None]).detach()) == pytest.approx(
        float(solution.value(y)), abs=1e-6
    )
    assert float(solution.value(y)) <= highest + 1e-6


def test_from_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from parity.cli import main

    file, stem = tmp_path / "model.pt", tmp_path / "net"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    torch.save(model, file)
    given = [str(file), "--trust", "--input-shape", "1,2"]
    code = main(["check", *given, "--path", "torch-optimization",
                 "--converter", "casadi-big-m", "--check", "value", "--check", "jacobian"])  # fmt: skip
    assert code == 0, capfd.readouterr().out

    convert = ["convert", *given, "--to", "optimization", "--output", str(stem), "--converter"]
    assert main([*convert, "pyomo-big-m", "--box", "-2", "0.5"]) == 0
    assert main([*convert, "casadi-big-m"]) == 2
    assert "name a pyomo converter" in capfd.readouterr().err
    reader = casadi.NlpBuilder()
    reader.import_nl(f"{stem}.nl")
    names = stem.with_suffix(".col").read_text().split()
    low, high = (dict(zip(names, side, strict=True)) for side in (reader.x_lb, reader.x_ub))
    assert {(low[name], high[name]) for name in names if name.startswith("v0_x")} == {(-2, 0.5)}
    cost = reader.x[names.index("y[0]")]
    terms = {"x": casadi.vertcat(*reader.x), "f": -cost, "g": casadi.vertcat(*reader.g)}
    solver = casadi.nlpsol("solver", "bonmin", terms, {"discrete": reader.discrete, "bonmin": {"bb_log_level": 0}})
    found = solver(lbx=reader.x_lb, ubx=reader.x_ub, lbg=reader.g_lb, ubg=reader.g_ub)
    expected = (
        runtime_for(parity.convert(model, "optimization", torch.zeros(1, 2), converter="casadi-big-m", box=(-2, 0.5)))
        .maximise(np.ones(1))
        .value
    )
    assert -float(found["f"]) == pytest.approx(expected, abs=1e-6)


def test_residuals_and_concatenation_between_layers() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)
            self.outer = nn.Linear(9, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.inner(x)) + x
            z = torch.cat([y, 2 * x - y, torch.nn.functional.gelu(y)], dim=1)
            return self.outer(z.view(x.size(0), -1))

    for name in ("casadi-full-space", "casadi-reduced-space", "casadi-big-m"):
        x = np.random.RandomState(1).uniform(-1, 1, (6, 3))
        model = Block()
        found = verdicts(model, convert(model, name, 3), x, "value", "trace", "jacobian", "fixed")
        assert {record.verdict for record in found.values()} == {PASS}, name
