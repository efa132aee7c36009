"""Adapters of other projects' converters: what they share, and each at work where its packages are installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import casadi
import numpy as np
import pytest
import torch
from torch import nn

import parity
from parity.converters import registry
from parity.converters.thirdparty import columns, folders, onnx_export
from parity.errors import MissingPackage, Unsupported
from parity.paths import path
from parity.runtimes import runtime_for

ADAPTERS = {
    "torch2casadi": ("float64", "float32"),
    "l4casadi": ("float32",),
    "casadi-graphbuilder": ("float64",),
}


@pytest.fixture
def without(monkeypatch):
    """Makes packages look as if they were not installed."""

    def hide(*packages):
        found = importlib.util.find_spec
        monkeypatch.setattr(registry, "find_spec", lambda name: None if name in packages else found(name))

    return hide


class Two(nn.Module):
    """Two inputs of different shapes and two outputs."""

    def forward(self, x, y):
        return x.transpose(1, 2) * 2, y + x.sum()


def test_adapters_state_the_precision_they_compute_in():
    known = {converter.name: converter.dtypes for converter in registry.converters("torch", "casadi")}
    assert {name: known[name] for name in ADAPTERS} == ADAPTERS
    assert all(converter.installed for converter in registry.converters("torch", "casadi"))


def test_a_converter_that_is_not_installed_is_named_with_what_installs_it(without):
    without("l4casadi", "onnxscript")
    assert [step.name for step in registry.not_installed(path("torch-casadi"))] == [
        "casadi-graphbuilder", "l4casadi", "torch2casadi",
    ]  # fmt: skip
    assert [chain.name for chain in registry.chains(path("torch-casadi"))] == ["reference"]
    with pytest.raises(MissingPackage, match=r"l4casadi needs l4casadi: pip install 'setuptools<81'.* l4casadi$"):
        parity.convert(nn.Linear(2, 1), "casadi", torch.zeros(1, 2), converter="l4casadi")
    with pytest.raises(MissingPackage, match=r"casadi-graphbuilder needs .*onnxscript: pip install .*onnxscript$"):
        parity.convert(nn.Linear(2, 1), "casadi", torch.zeros(1, 2), converter="casadi-graphbuilder")


def test_a_run_names_the_converters_that_it_goes_without(pytester, without):
    without("l4casadi")
    case = "parity/suites/test_torch_casadi.py::test_case[reference-Linear-0-0]"
    arguments = ("--parity", "--parity-converter=all", "--parity-report=report", "-p", "no:randomly", case)
    result = pytester.runpytest_inprocess(*arguments)
    line = "torch-casadi by l4casadi cannot run here: it needs l4casadi: pip install 'setuptools<81'*"
    result.stdout.fnmatch_lines([f"parity: {line}", "*= parity =*", line])
    assert "by l4casadi cannot run here" in (pytester.path / "report/index.html").read_text(encoding="utf-8")
    result = pytester.runpytest_inprocess("--parity", "--parity-converter=l4casadi", "-p", "no:randomly")
    result.stderr.fnmatch_lines(["ERROR: converter l4casadi needs l4casadi: pip install*"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR


@pytest.mark.parametrize("joined", [False, True])
def test_columns_hold_inputs_and_outputs_in_row_major_order(joined):
    x, y = torch.arange(6.0).reshape(1, 2, 3), torch.ones(1, 4)
    model = columns.in_columns(Two(), (x, y), joined=joined)
    given = [x.reshape(-1, 1), y.reshape(-1, 1)]
    result = model(torch.cat(given)) if joined else model(*given)
    assert result.tolist() == [[v] for v in (0.0, 6.0, 2.0, 8.0, 4.0, 10.0, 16.0, 16.0, 16.0, 16.0)]


def test_files_of_a_conversion_go_when_the_process_ends():
    code = "from parity.converters.thirdparty.folders import fresh_folder as f; a = f(); b = f(); print(a, b)"
    first, second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    assert first != second
    assert not os.path.exists(first) and not os.path.exists(os.path.dirname(first))
    assert folders.fresh_folder().is_dir()


def test_casadi_is_told_where_onnx_runtime_is_unless_the_user_has(tmp_path, monkeypatch):
    (tmp_path / "capi").mkdir()
    for name in ("libonnxruntime.so.1.31.1", "libonnxruntime_providers_shared.so"):
        (tmp_path / "capi" / name).touch()
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: spec)
    monkeypatch.setenv("CASADI_ONNXRUNTIME_LIB", "")  # so that it is put back even where it was not set
    monkeypatch.delenv("CASADI_ONNXRUNTIME_LIB")
    onnx_export.find_onnxruntime()
    assert os.environ["CASADI_ONNXRUNTIME_LIB"] == str(tmp_path / "capi/libonnxruntime.so.1.31.1")
    monkeypatch.setenv("CASADI_ONNXRUNTIME_LIB", "mine")
    onnx_export.find_onnxruntime()
    assert os.environ["CASADI_ONNXRUNTIME_LIB"] == "mine"


def test_an_exporters_no_names_the_operator_and_an_error_is_what_went_wrong_first():
    cause = ValueError("No ONNX function found for <OpOverload(op='aten._cdist_forward', overload='default')>. Wrong")
    error = RuntimeError("Failed to export. Next steps: …")
    error.__cause__ = cause
    assert onnx_export.no_of_onnx(error) == "torch.onnx cannot export the operator aten._cdist_forward"
    assert onnx_export.no_of_onnx(ValueError("anything else")) == ""
    assert onnx_export.innermost(error) is cause


def test_a_function_without_derivatives_is_unsupported_and_can_say_why():
    class Black(casadi.Callback):
        def __init__(self):
            super().__init__()
            self.construct("black", {})

        def eval(self, arguments):
            return [2 * arguments[0]]

    point, black = (np.array([[1.5]]),), Black()
    runtime = runtime_for(black)
    assert runtime.value(point) == 3.0
    with pytest.raises(Unsupported, match=r"^no jacobian: Derivatives cannot be calculated for black$"):
        runtime.jacobian(point)
    with pytest.raises(Unsupported, match=r"^no hessian: "):
        runtime.hessian(point, np.ones(1))
    black.refusals = {"jacobian": KeyError("lost")}
    with pytest.raises(KeyError, match="lost"):
        runtime_for(black).jacobian(point)


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_converts_a_network_or_says_what_it_needs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))  # torch2casadi's Hessians are of one output
    adapter = next(each for each in registry.converters("torch", "casadi") if each.name == name)
    if adapter.missing():
        with pytest.raises(MissingPackage, match=f"converter {name} needs .*: pip install "):
            registry.find_converter("torch", "casadi", name)
        return
    records = parity.assert_parity(model, name, torch.randn(3, 3))
    assert [(each.check, each.dtype) for each in records] == [
        (check, dtype) for dtype in ADAPTERS[name] for check in ("value", "jacobian", "hessian")
    ]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not list(tmp_path.iterdir())
