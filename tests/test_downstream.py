"""What users write in their own repositories: the marker, the fixtures, converters of their own, no pytest at all."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import install, node_ids, rows

from parity.pipeline import PLAN

# --- the marker -------------------------------------------------------------------------------------------------------


def test_the_marker_gives_random_cases_and_converters(pytester, run_parity):
    pytester.makepyfile(
        test_host="""
        import pytest

        @pytest.mark.parity(path="torch-casadi", families=("Linear", "dag"), cases=2)
        def test_both(parity, parity_case, parity_chain):
            records = parity.run(parity_case, parity_chain)
            assert {record.verdict for record in records} == {"pass"}

        @pytest.mark.parity(path="torch-casadi", families="recipe")
        def test_case_alone(parity_case):
            assert parity_case.model() is not None
            assert parity_case.inputs("tiny", 3)[0].shape == (3, 2)

        @pytest.mark.parity(path="torch→casadi")
        def test_chain_alone(parity_chain):
            assert parity_chain.name == "reference"

        @pytest.mark.parity(path="torch-casadi", families=["Tanh"], cases=1)
        class TestClass:
            @pytest.fixture
            def model(self, parity_case):
                return parity_case.model()

            def test_method(self, model):
                assert "tanh" in str(model).lower()
        """
    )
    ids = [
        *(f"test_both[reference-{case}]" for case in ("Linear-0-0", "Linear-0-1", "dag-0-0", "dag-0-1")),
        *(f"test_case_alone[recipe-0-{number}]" for number in range(3)),
        "test_chain_alone[reference]",
        "TestClass::test_method[Tanh-0-0]",
    ]
    assert node_ids(run_parity("--co", "-q", "test_host.py")) == [f"test_host.py::{name}" for name in ids]
    run_parity("test_host.py").assert_outcomes(passed=9)
    found = rows(pytester.path / "report")
    assert len(found) == 4 * len(PLAN)
    assert {row.case for row in found} == {"Linear-0-0", "Linear-0-1", "dag-0-0", "dag-0-1"}
    run_parity(f"test_host.py::{ids[2]}").assert_outcomes(passed=1)
    assert "test_host.py::test_both[reference-dag-9-2]" in node_ids(
        run_parity("--co", "-q", "test_host.py", "--parity-cases=3", "--parity-seed=9")
    )


@pytest.mark.parametrize(
    ("mark", "message"),
    {
        "": "parity_chain and parity_case need a mark such as @*(path='torch-casadi')",
        "@pytest.mark.parity": "parity_chain and parity_case need a mark such as @*(path='torch-casadi')",
        "@pytest.mark.parity(path='torch-lua')": "unknown path 'torch-lua': one of torch-casadi*",
        "@pytest.mark.parity(path='torch-casadi', families='Lin')": "unknown family 'Lin': layer, *, or a layer",
        "@pytest.mark.parity(path='torch-casadi', family='dag')": "*unexpected keyword argument 'family'*",
    }.items(),
)
def test_wrong_marks_are_one_line(pytester, run_parity, mark, message):
    pytester.makepyfile(test_host=f"import pytest\n{mark}\ndef test_own(parity_chain, parity_case): pass")
    result = run_parity("test_host.py")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"test_host.py::test_own: {message}"])
    result.stdout.no_fnmatch_line("*Traceback*")


# --- the fixture ------------------------------------------------------------------------------------------------------


def test_the_fixture_checks_own_models(pytester, run_parity):
    pytester.makepyfile(
        test_host="""
        import casadi
        import pytest
        import torch

        pytestmark = pytest.mark.parity

        def model(slope=0.01):
            torch.manual_seed(0)
            return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LeakyReLU(slope))

        X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))

        def test_named(parity):
            records = parity.check(model(), "reference", X)
            assert [(r.check, r.batch, r.verdict) for r in records] == [
                ("value", 5, "pass"), ("jacobian", 4, "pass"), ("hessian", 4, "pass")]

        def test_artifact(parity):
            converted = parity.convert(model(), "casadi", X[:1])
            assert isinstance(converted, casadi.Function)
            parity.check(model(), converted, X.numpy(), checks=["value"])

        def test_function(parity):
            parity.check(model(), lambda m, example: parity.convert(m, "casadi", example), X, checks=["jacobian"])

        def test_wrong_slope(parity):
            parity.check(model(), parity.convert(model(0.011), "casadi", X[:1]), X, checks=["value"])

        def test_integers(parity):
            parity.check(model(), "reference", torch.ones(5, 3, dtype=torch.int64))
        """
    )
    result = run_parity("test_host.py")
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(
        [
            "E * AssertionError: test_wrong_slope [[]given[]] value given batch 5: fail, error * of float64 *",
            "E * parity.errors.ParityError: input 0 is of dtype int64: give floating-point inputs",
        ]
    )
    found = rows(pytester.path / "report")
    assert [(row.case, row.converter, row.check, row.verdict) for row in found if row.check == "value"] == [
        ("test_named", "reference", "value", "pass"),
        ("test_artifact", "given", "value", "pass"),
        ("test_wrong_slope", "given", "value", "fail"),
    ]
    assert len(found) == 6


# --- converters of others ---------------------------------------------------------------------------------------------


def test_a_converter_of_a_conftest_takes_part(pytester, run_parity):
    pytester.makeconftest(
        """
        import parity

        @parity.converter("torch", "casadi", name="mine")
        def convert(model, example):
            if "Tanh" in str(model):
                raise parity.Unsupported("Tanh() is not for this one")
            return parity.convert(model, "casadi", example)

        @parity.converter("torch", "casadi", requires=["no_such_package"])
        def absent(model, example):
            raise AssertionError
        """
    )
    chosen = "Linear-0-0 or (Tanh-0-0 and not dtanh)"
    result = run_parity("-rs", "-k", chosen)
    result.assert_outcomes(passed=3, skipped=1, deselected=result.parseoutcomes()["deselected"])
    result.stdout.fnmatch_lines(["parity: torch-casadi by reference, mine", "SKIPPED * Tanh() is not for this one"])
    verdicts = {(row.converter, row.case): row.verdict for row in rows(pytester.path / "report")}
    assert verdicts == {
        ("reference", "Linear-0-0"): "pass",
        ("mine", "Linear-0-0"): "pass",
        ("reference", "Tanh-0-0"): "pass",
        ("mine", "Tanh-0-0"): "unsupported",
    }


def test_two_converters_of_one_name_are_refused(pytester):
    pytester.makeconftest(
        """
        import parity

        @parity.converter("torch", "casadi", name="reference")
        def another(model, example): ...
        """
    )
    result = pytester.runpytest_subprocess("--parity")  # where the shipped ones are loaded after the conftest's
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert [line for line in result.errlines if line] == [
        "ERROR: two converters torch→casadi are named 'reference': rename one with name="
    ]


def test_an_installed_converter_takes_part_in_a_process_of_its_own(pytester, tmp_path, monkeypatch):
    source = """
import os
import parity

@parity.converter("torch", "casadi")
def elsewhere(model, example):
    with open("processes", "a") as file:
        print(os.getpid(), os.getppid(), file=file)
    return parity.convert(model, "casadi", example)
"""
    install(tmp_path, "converters_elsewhere", source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = pytester.runpytest_subprocess("--parity", "--parity-converter=elsewhere", "-k", "Linear-0")
    result.assert_outcomes(passed=3, deselected=result.parseoutcomes()["deselected"])
    processes = set((pytester.path / "processes").read_text().splitlines())
    assert len(processes) == 1, "the process is kept from case to case"
    (worker, parent) = processes.pop().split()
    assert worker != parent


# --- without pytest ---------------------------------------------------------------------------------------------------


def test_assert_parity_needs_no_pytest(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        """
import sys
import torch
import parity

model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh())
f = parity.convert(model, "casadi", torch.ones(1, 2))
records = parity.assert_parity(model, f, torch.randn(4, 2))
print([record.verdict for record in records])
try:
    parity.assert_parity(torch.nn.Linear(2, 3), f, torch.randn(4, 2), checks=["value"])
except AssertionError as error:
    print(str(error).count("\\n"), "fail" in str(error))
print("pytest" in sys.modules)
""",
        encoding="utf-8",
    )
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert result.stdout.splitlines() == ["['pass', 'pass', 'pass']", "0 True", "False"], result.stderr
