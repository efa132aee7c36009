"""acados from the registry: right when polished, wrong when not, and clear when it cannot run.

Run where it is installed (`parity setup acados`): `tox -e acados` does both.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from test_ocp import problem, riccati

import parity
from parity.cases.case import case_from_id
from parity.converters.ocp_sensitivity import acados_installation
from parity.converters.ocp_sensitivity import acados_map as engine
from parity.errors import MissingPackage
from parity.records import ERROR, FAIL, PASS, UNSUPPORTED

try:
    acados_installation.find()
    MISSING = ""
except parity.ParityError as error:
    MISSING = str(error)
real = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def checked(case_id: str, name: str):
    case = case_from_id(case_id, "ocp")
    (x,) = case.inputs()
    return parity.check(case.model(), name, x, checks=["solution", "sensitivity"], path="ocp-sensitivity")


@real
@pytest.mark.parametrize("case_id", ["lqr-0-0", "integrator-0-0", "cartpole-0-1", "cartpole-0-2"])
def test_polished_it_is_right(case_id: str) -> None:
    assert [record.verdict for record in checked(case_id, "acados-polished")] == [PASS, PASS]


@real
@pytest.mark.parametrize("case_id", ["lqr-0-0", "lqr-0-1", "lqr-5-2"])
def test_polished_it_agrees_with_riccati(case_id: str) -> None:
    case = case_from_id(case_id, "ocp")
    made = engine.AcadosMap(case.model(), tolerance=1e-8, polish=True)
    found = made.sensitivity(made.solve(case.inputs()[0][0])).controls[0]
    made.close()
    expected = np.concatenate(riccati(case_id), axis=1)
    assert np.abs(found - expected).max() < 1e-10 * np.abs(expected).max()


@real
@pytest.mark.parametrize("name", ["acados", "acados-gauss-newton"])
def test_plain_or_with_gauss_newtons_hessian_it_solves_and_is_caught(name: str) -> None:
    solution, sensitivity = checked("vanderpol-0-1", name)
    assert (solution.verdict, sensitivity.verdict) == (PASS, FAIL)


@real
def test_nothing_is_left_in_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = engine.AcadosMap(problem(), tolerance=1e-8)
    made.solve(np.array([0.3, 0.1]))
    folder = engine.code_folder()
    assert any(folder.iterdir()) and not folder.is_relative_to(tmp_path)
    made.close()
    assert not any(tmp_path.iterdir())


@real
def test_a_process_that_dies_costs_one_answer() -> None:
    made = engine.AcadosMap(problem(), tolerance=1e-8)
    made._process._process.kill()
    with pytest.raises(parity.ParityError, match="process ended with code -9 in solve"):
        made.solve(np.array([0.3, 0.1]))


@real
def test_an_unwritable_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    engine._code_folder.cache_clear()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    (record,) = parity.check(problem(), "acados", np.zeros((1, 2)), checks=["solution"], path="ocp-sensitivity")
    engine._code_folder.cache_clear()
    assert record.verdict == ERROR
    assert "set TMPDIR" in record.message


@real
def test_a_missing_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MissingPackage, match="needs make and cc on the PATH"):
        acados_installation.find()
    (record,) = parity.check(problem(), "acados", np.zeros((1, 2)), checks=["solution"], path="ocp-sensitivity")
    assert record.verdict == UNSUPPORTED and "needs make and cc" in record.message


@real
def test_a_compiler_that_fails_is_one_line_and_the_next_problem_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho error: no space left >&2\nexit 1\n")
    compiler.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        (record,) = parity.check(
            problem(horizon=7), "acados", np.zeros((1, 2)), checks=["solution"], path="ocp-sensitivity"
        )
    assert record.verdict == ERROR and "Error 1" in record.message, record.message
    (record,) = parity.check(
        problem(horizon=7), "acados", np.zeros((1, 2)), checks=["solution"], path="ocp-sensitivity"
    )
    assert record.verdict == PASS, record.message


@real
@pytest.mark.parametrize("name", ["acados", "acados-polished"])
def test_an_infeasible_problem_costs_its_own_verdict(name: str) -> None:
    """The state cannot come back into its bounds from 10; from 0.5 it can."""
    points = np.array([[10.0, 0.0], [0.5, 0.0]])
    records = [
        parity.check(problem(state_bound=1.0), name, point[None], checks=["solution"], path="ocp-sensitivity")[0]
        for point in points
    ]
    assert [record.verdict for record in records] == [ERROR, PASS]
    assert "infeasible" in records[0].message.lower()


@real
def test_its_layer_passes_gradcheck() -> None:
    case = case_from_id("integrator-0-0", "ocp")
    points = torch.from_numpy(case.inputs("layer", 2)[0])
    layer = parity.OcpLayer(case.model(), "acados-polished", workers=2)
    x, p = points[:, :2].clone().requires_grad_(True), points[:, 2:].clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x, p: layer(x, p)[:3], (x, p), eps=1e-6, atol=1e-6, rtol=1e-6)
    layer.close()


def test_folders_of_processes_that_were_killed_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / f"{engine.PREFIX}999999999-abc"
    own = tmp_path / f"{engine.PREFIX}{os.getpid()}-abc"
    left.mkdir()
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    engine._code_folder.cache_clear()
    assert engine.code_folder().is_dir()
    engine._code_folder.cache_clear()
    assert own.is_dir() and not left.exists()
