"""The `parity` command: what it says, and the three ways in which it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import rows

from parity.cli import main

MODELS = """
import sys
import torch

def good():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.BatchNorm1d(8), torch.nn.Tanh(), torch.nn.Linear(8, 2))

def nan():
    model = good()
    model[0].weight.data[1, 2] = float("nan")
    return model

def leaves(): sys.exit(0)
def raises(): raise ValueError("two\\nlines")
def number(): return 3

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(12, 2)

    def forward(self, x):
        return torch.sin(self.linear(x))

class Leaving(torch.nn.Module):
    def forward(self, x):
        sys.exit(0)

class Unknown(torch.nn.Module):
    def forward(self, x):
        return torch.special.i0(x)
"""


@pytest.fixture
def command(tmp_path, monkeypatch, registry, capsys):
    """Run `parity …` in a folder with `models.py`: exit code, lines of stdout, lines of stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS, encoding="utf-8")
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.delitem(sys.modules, "models", raising=False)

    def command(*arguments: object) -> tuple[int, list[str], list[str]]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as error:  # argparse
            code = int(error.code)
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err.splitlines()

    yield command
    sys.modules.pop("models", None)


@pytest.fixture
def check(command):
    return lambda *arguments: command("check", "--input-shape", "1,12", *arguments)


@pytest.fixture
def saved(tmp_path, command):
    """A model that torch.save wrote."""
    import models
    import torch

    torch.save(models.good(), tmp_path / "good.pt")
    return tmp_path / "good.pt"


# --- check ------------------------------------------------------------------------------------------------------------


def test_a_good_model_file(check, saved):
    code, said, complaints = check(saved, "--trust")
    assert (code, complaints) == (0, [])
    assert [line.split(":")[0] for line in said] == [
        f"good.pt [reference] {name} given batch 1" for name in ("value", "jacobian", "hessian")
    ]
    assert all(": pass, error " in line for line in said)


def test_the_same_model_by_its_function(check, saved, tmp_path):
    assert [line.removeprefix("models:good") for line in check("models:good")[1]] == [
        line.removeprefix("good.pt") for line in check(saved, "--trust")[1]
    ]


def test_a_class_of_the_users_own_file(check, tmp_path):
    import models
    import torch

    torch.save(models.Net(), tmp_path / "net.pt")
    del sys.modules["models"], sys.path[0]
    assert check("net.pt", "--trust")[0] == 0


def test_one_check_at_several_samples_with_a_seed(command):
    arguments = ("check", "models:good", "--input-shape", "3,12", "--check", "value", "--seed")
    code, said, _ = command(*arguments, 5)
    assert code == 0
    assert [line.split(": pass")[0] for line in said] == ["models:good [reference] value given batch 3"]
    assert said == command(*arguments, 5)[1] != command(*arguments, 6)[1]


@pytest.mark.parametrize(
    ("model", "message"),
    {
        "good.pt": "good.pt is a pickle, which can run any code when it is read: add --trust if you trust it",
        "nothing.pt": "no file nothing.pt: give a model saved by torch.save(model, file), or module:function",
        "models:nothing": "cannot build models:nothing: AttributeError: module 'models' has no attribute 'nothing'",
        "nowhere:f": "cannot build nowhere:f: ModuleNotFoundError: No module named 'nowhere'",
        "models:raises": "cannot build models:raises: ValueError: two",
        "models:leaves": "cannot build models:leaves: SystemExit: 0",
        "models:Leaving": "the model or the converter ended the process (exit code 0)",
        "models:number": "models:number gives a builtins.int, not a torch.nn.Module or a Keras model",
        "models:nan": "weights '0.weight' hold 1 NaN or infinite element(s): mend the model first",
    }.items(),
)
def test_models_that_cannot_be_judged(check, saved, model, message):
    assert check(model) == (2, [], [f"parity: {message}"])


@pytest.mark.parametrize(
    "damage", [lambda whole: b"", lambda whole: b"no model" * 100, lambda whole: whole[: len(whole) // 2]]
)
def test_files_that_are_no_archive(check, saved, damage):
    saved.write_bytes(damage(saved.read_bytes()))
    why = "it is cut off, or not a file that torch.save wrote (torch 1.6 or later)"
    assert check(saved, "--trust") == (2, [], [f"parity: cannot read {saved}: {why}"])


def test_damage_within_a_file(check, saved):
    saved.write_bytes(saved.read_bytes().replace(b"Linear", b"Lineax"))
    assert check(saved, "--trust") == (
        2, [], [f"parity: {saved} is damaged: the checksum of good/data.pkl is wrong; save the model again"]
    )  # fmt: skip


def test_one_wrong_bit_in_the_weights(check, saved):
    import models

    weights = models.good()[0].weight.detach().numpy().tobytes()
    whole = saved.read_bytes()
    place = whole.index(weights[:64]) + 10
    saved.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    assert check(saved, "--trust") == (
        2, [], [f"parity: {saved} is damaged: the checksum of good/data/0 is wrong; save the model again"]
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_files_of_torch_without_a_module(check, tmp_path):
    import models
    import torch

    torch.save(models.good().state_dict(), tmp_path / "state.pt")
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    torch.jit.trace(models.good().eval(), torch.ones(1, 12)).save(tmp_path / "script.pt")
    assert check("state.pt", "--trust")[2] == [
        "parity: state.pt gives a collections.OrderedDict, not a torch.nn.Module or a Keras model; "
        "a state dict holds no model: name a function that builds it, as module:function"
    ]
    assert check("tensor.pt", "--trust")[2] == [
        "parity: tensor.pt gives a torch.Tensor, not a torch.nn.Module or a Keras model"
    ]
    assert check("script.pt", "--trust") == (
        2, [], ["parity: script.pt holds TorchScript: save the module itself with torch.save(model, file)"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    {
        ("--input-shape", "1,3"): "the source model does not run on inputs of shape (1, 3): *",
        ("--input-shape", "1,12", "--input-shape", "1,2"): "the source model does not run on inputs of shape *",
        ("--input-shape", "1,twelve"): "argument --input-shape: '1,twelve' is no shape: give positive sizes, *",
        ("--input-shape", "0,12"): "argument --input-shape: '0,12' is no shape: give positive sizes, *",
        ("--input-shape", "1,12", "--path", "torch-lua"): "unknown path 'torch-lua': one of torch-casadi*",
        ("--input-shape", "1,12", "--converter", "l4"): "no converter 'l4' starts from torch: reference*",
        ("--input-shape", "1,12", "--check", "all"): "unknown check 'all': one of value, jacobian, hessian*",
    }.items(),
)  # fmt: skip
def test_bad_arguments(command, arguments, message):
    code, said, complaints = command("check", "models:good", *arguments)
    assert (code, said) == (2, [])
    pytest.LineMatcher([complaints[-1].replace(" check: error", "")]).fnmatch_lines([f"parity: {message}"])
    assert len(complaints) == 1 or complaints[0].startswith("usage: ")


def test_a_missing_package(check, monkeypatch):
    monkeypatch.setitem(sys.modules, "casadi", None)
    assert check("models:good") == (
        2, [], ["parity: path torch-casadi needs casadi: pip install 'pytest-parity[casadi]'"]
    )  # fmt: skip


def test_another_function_and_an_unknown_layer_are_a_one(check, registry):
    import parity

    @parity.converter("torch", "casadi")
    def off(model, example):
        model[0].bias.data += 0.01
        return parity.convert(model, "casadi", example)

    code, said, complaints = check("models:good", "--converter", "off")
    assert (code, complaints) == (1, [])
    assert [": fail, error " in line for line in said] == [True] * 3
    code, said, complaints = check("models:Unknown")
    assert (code, complaints) == (1, [])
    assert all(": unsupported: " in line and "i0" in line for line in said)


def test_check_writes_a_report(check, tmp_path):
    code, said, _ = check("models:good", "--report", "report", "--check", "value", "--speed")
    assert (code, said[-1]) == (0, "report: report/index.html")
    (row,) = rows(tmp_path / "report")
    assert (row.case, row.verdict) == ("models:good", "pass")
    assert row.speed_low <= row.speed_ratio <= row.speed_high
    code, said, complaints = check("models:good", "--report", "models.py")
    assert (code, len(said)) == (2, 3)
    assert complaints == ["parity: cannot write the report to models.py: File exists; choose another folder"]


# --- the other commands -----------------------------------------------------------------------------------------------


def test_list(command, monkeypatch):
    code, said, _ = command("list")
    assert code == 0
    assert any(line.startswith("torch-casadi: reference") for line in said)
    assert any("cases of the families recipe, network, pendulum, " in line for line in said)
    monkeypatch.setitem(sys.modules, "casadi", None)
    code, said, _ = command("list")
    assert code == 0
    assert "torch-casadi: needs casadi: pip install 'pytest-parity[casadi]'" in said


def test_repro(command):
    code, said, complaints = command("repro", "dag-0-3")
    assert (code, complaints) == (0, [])
    assert len(said) > 9  # the model is printed too
    assert sum(line.startswith("dag-0-3 [reference] ") for line in said) == 9
    assert command("repro", "nothing")[0] == command("repro", "recipe-0-9")[0] == 2
    (complaint,) = command("repro", "dag-0-3", "--converter", "l4")[2]
    assert complaint.startswith("parity: no converter 'l4' on path torch-casadi: reference")


@pytest.fixture
def runs(check, tmp_path) -> tuple[Path, Path]:
    for seed in (1, 2):
        check("models:good", "--seed", seed, "--report", f"run{seed}")
    return tmp_path / "run1", tmp_path / "run2"


def test_compare(command, runs):
    code, said, _ = command("compare", *runs)
    assert (code, said[0]) == (0, "# Parity comparison")
    assert any(line.startswith("From **") and line.endswith("**: 3 records in both.") for line in said)
    assert command("compare", runs[0], "--converters", "reference", "reference")[0] == 0
    table = runs[1] / "results.csv"
    table.write_text(table.read_text().replace(",pass,", ",fail,"))
    assert command("compare", *runs)[0] == 1
    assert command("compare", runs[0])[0] == 2
    assert command("compare", runs[0], "nowhere") == (
        2, [], ["parity: no results at nowhere: give a report folder that `pytest --parity` wrote, or its results.csv"]
    )  # fmt: skip
    assert command("compare", runs[0], "--converters", "reference", "l4")[2] == [
        f"parity: no converter 'l4' in {runs[0]}: it has reference"
    ]


def test_report(command, runs):
    for name in ("index.html", "summary.md", "results.json"):
        (runs[0] / name).unlink()
    assert command("report", runs[0]) == (0, [f"{runs[0]}/index.html"], [])
    assert len(json.loads((runs[0] / "results.json").read_text(encoding="utf-8"))["records"]) == 3
    (runs[1] / "results.csv").write_text("a,b\n1,2\n")
    code, said, complaints = command("report", runs[1])
    assert (code, said, len(complaints)) == (2, [], 1)
    assert command("report", "nowhere")[0] == 2


def test_merge(command, runs, tmp_path):
    assert command("merge", "both", *runs) == (0, ["both/index.html"], [])
    merged = rows(tmp_path / "both")
    assert merged == rows(runs[0]) + rows(runs[1])
    assert command("merge", "both", runs[0], "nowhere")[0] == 2
    assert rows(tmp_path / "both") == merged
    assert command("merge", "models.py", *runs)[2] == [
        "parity: cannot write the report to models.py: File exists; choose another folder"
    ]


def test_the_installed_command():
    parity = str(Path(sys.executable).with_name("parity"))
    assert subprocess.run([parity], capture_output=True).returncode == 2
    reader = subprocess.run(f"{parity} list | true; exit ${{PIPESTATUS[0]}}", shell=True, executable="/bin/bash",
                            capture_output=True, text=True)  # fmt: skip
    assert (reader.returncode, reader.stderr) in ((0, ""), (1, ""))
