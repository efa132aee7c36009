"""The records of a run: the same however it ran, and kept whatever happens to it."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import rows

from parity import records
from parity.pipeline import PLAN
from parity.records import COLUMNS, Record

CONVERTERS = """
import casadi
import parity

def scaled(model, example, factor):
    f = parity.convert(model, "casadi", example)
    x = casadi.SX.sym("x", *f.size_in(0))
    return casadi.Function("f", [x], [factor * f(x)])

@parity.converter("torch", "casadi")
def off(model, example):
    return scaled(model, example, 1.001)

@parity.converter("torch", "casadi")
def lost(model, example):
    return scaled(model, example, float("nan"))
"""
OWN = """
import casadi
import pytest
import torch

@pytest.mark.parity
@pytest.mark.parametrize("factor", [1.0, 1.5, float("inf")])
def test_own(parity, factor):
    x = casadi.SX.sym("x", 2)
    parity.check(torch.nn.Identity(), casadi.Function("f", [x], [factor * x]), torch.tensor([[1.0, -2.0]]))
"""
SHORT = ("--parity-cases=1", "-k", "Linear-0-0 or Mish-0-0 or own")


def comparable(folder: Path) -> list[str]:
    """The rows without what two runs never share. As text: nan is not equal to itself."""
    return sorted(repr(replace(row, run="", convert_ms=None)) for row in rows(folder))


def test_a_row_per_case_converter_and_check(pytester, run_parity):
    pytester.makeconftest(CONVERTERS)
    pytester.makepyfile(test_host=OWN)
    run_parity(*SHORT)
    found = rows(pytester.path / "report")
    names = {(row.case, row.converter, row.check, row.regime, row.batch) for row in found}
    assert len(names) == len(found) == 3 * 2 * len(PLAN) + 3 * 3
    assert {row.converter: row.verdict for row in found if row.case == "Linear-0-0" and row.check == "value"} == {
        "reference": "pass", "off": "fail", "lost": "fail",
    }  # fmt: skip
    assert {row.case for row in found if row.family == "own"} == {f"test_own[{factor}]" for factor in (1.0, 1.5, "inf")}
    assert {row.reproducer for row in found if row.converter == "off" and row.case == "Mish-0-0"} == {
        "parity repro Mish-0-0 --path torch-casadi --converter off"
    }
    stored = json.loads((pytester.path / "report/results.json").read_text(encoding="utf-8"))
    assert len(stored["records"]) == len(found)
    assert {row.run for row in found} == {stored["run"]}
    with (pytester.path / "report/results.csv").open(newline="", encoding="utf-8") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS


def test_rows_are_the_same_from_xdist_and_from_worker_processes(pytester, run_parity):
    pytester.makeconftest(CONVERTERS)
    pytester.makepyfile(test_host=OWN)
    run_parity(*SHORT)
    parallel = pytester.runpytest_subprocess(
        "--parity", "--parity-path=torch-casadi", "-n2", "--parity-report=parallel", *SHORT
    )
    parallel.assert_outcomes(passed=3, failed=6)
    found = comparable(pytester.path / "parallel")
    assert found == comparable(pytester.path / "report")
    assert any("error_ratio=nan" in row for row in found)
    assert any("max_abs=inf" in row for row in found)


def test_records_of_fixtures_and_of_subtests_are_kept_once(pytester, run_parity):
    pytester.makeconftest(CONVERTERS)
    pytester.makepyfile(
        test_host="""
        import pytest
        import torch

        ONE = torch.ones(1, 2)
        pytestmark = pytest.mark.parity

        @pytest.fixture
        def checked(parity):
            parity.check(torch.nn.Linear(2, 1), "off", ONE, checks=["value"])

        def test_fixture(checked): pass

        def test_subtests(parity, subtests):
            for check in "value", "jacobian":
                with subtests.test(check):
                    parity.check(torch.nn.Linear(2, 1), "reference", ONE, checks=[check])
        """
    )
    run_parity("test_host.py").assert_outcomes(passed=1, errors=1)
    assert [(row.case, row.check, row.verdict) for row in rows(pytester.path / "report")] == [
        ("test_fixture", "value", "fail"),
        ("test_subtests", "value", "pass"),
        ("test_subtests", "jacobian", "pass"),
    ]


def test_expected_failures_are_counted_as_such(pytester, run_parity):
    pytester.makeconftest(CONVERTERS)
    pytester.makepyfile(
        test_host="""
        import pytest
        from parity.deviations import Deviation

        KNOWN = Deviation("a known error", layers=(), stages=("torch→casadi",), converters=("off",))

        @pytest.mark.parity(path="torch-casadi", families=("layer",), without=("lost",))
        def test_host(parity, parity_case, parity_chain):
            parity.run(parity_case, parity_chain, checks=("value",), regimes=("normal",), deviations=[KNOWN])
        """
    )
    result = run_parity("test_host.py", "-k", "Linear-0-0", "--parity-cases=1")
    result.assert_outcomes(passed=1, xfailed=1, deselected=result.parseoutcomes()["deselected"])
    result.stdout.fnmatch_lines(["4 checks of 2 cases: 2 pass, 2 fail (all expected)"])
    assert {row.message.partition(";")[0] for row in rows(pytester.path / "report") if row.expected} == {
        "expected: a known error"
    }


# --- nothing is lost --------------------------------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """Where a run goes on that cannot write its folder."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def fill_disk(monkeypatch: pytest.MonkeyPatch, after: int, folder: str) -> None:
    """From the given record on, nothing more can be appended in folders of that name."""
    append, count = records.ResultsFile.append, 0

    def limited(self: records.ResultsFile, record: Record) -> None:
        nonlocal count
        count += 1
        if count > after and folder in str(self.path.parent):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, record)

    monkeypatch.setattr(records.ResultsFile, "append", limited)


def test_a_full_disk_moves_the_run(pytester, run_parity, monkeypatch, temporary):
    fill_disk(monkeypatch, after=12, folder=f"{pytester.path}/report")
    result = run_parity("--parity-cases=1", "-k", "Linear-0 or dag-0-0")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (refuge,) = temporary.iterdir()
    notice = f"{pytester.path}/report could not be written (No space left on device): the report went to {refuge}"
    result.stdout.fnmatch_lines([notice, "36 checks of 4 cases: 36 pass", f"report: {refuge}/index.html"])
    assert len(rows(pytester.path / "report")) == 12
    assert len(rows(refuge)) == 36
    assert len(json.loads((refuge / "results.json").read_text(encoding="utf-8"))["records"]) == 36
    assert notice in (refuge / "index.html").read_text(encoding="utf-8")


def test_where_no_folder_can_be_written_the_tests_still_run(run_parity, monkeypatch, temporary):
    fill_disk(monkeypatch, after=12, folder="")
    result = run_parity("--parity-cases=1", "-k", "Linear-0 or dag-0-0")
    result.assert_outcomes(passed=4, deselected=result.parseoutcomes()["deselected"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["*(No space left on device): the report went to *", "*records are lost", "36 checks of*"]
    )
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


def test_a_disk_that_is_full_only_for_the_page(pytester, run_parity, monkeypatch, temporary):
    write, folder = Path.write_text, str(pytester.path)

    def full(self: Path, *arguments, **options) -> int:
        if str(self).startswith(folder) and self.name.startswith("index.html") and "Linear-0-0" in arguments[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    assert run_parity("-k", "Linear-0-0").ret == pytest.ExitCode.TESTS_FAILED
    (refuge,) = temporary.iterdir()
    assert len(rows(refuge)) == len(PLAN)
    page = (refuge / "index.html").read_text(encoding="utf-8")
    assert "Linear-0-0" in page
    assert "still going" not in page


def test_a_folder_that_a_test_removes(pytester, run_parity, temporary):
    pytester.makepyfile(test_host="import shutil\ndef test_own(): shutil.rmtree('report')")
    result = run_parity("-k", "Linear-0-0 or own")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
    (refuge,) = temporary.iterdir()
    assert len(rows(refuge)) == len(PLAN)


def test_a_killed_run_leaves_a_report(pytester, frameworks):
    command = [sys.executable, "-m", "pytest", "-p", "no:randomly", "--parity", "--parity-path=torch-casadi"]
    command += ["--parity-report=report", "-q"]
    process = subprocess.Popen(command, cwd=pytester.path, stdout=subprocess.DEVNULL)
    results = pytester.path / "report/results.csv"
    wait(lambda: results.exists() and results.read_text(encoding="utf-8").count("\n") > 20)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = rows(pytester.path / "report")
    assert len(found) >= 20
    assert {row.verdict for row in found} == {"pass"}
    assert (pytester.path / "report/index.html").read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert children
    wait(lambda: not any(Path(f"/proc/{child}/exe").exists() for child in children))

    from parity.cli import main

    assert main(["report", str(pytester.path / "report")]) == 0
    stored = json.loads((pytester.path / "report/results.json").read_text(encoding="utf-8"))
    assert len(stored["records"]) == len(found)


def wait(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_the_summary_of_a_job(pytester, run_parity, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "step.md"))
    run_parity("-k", "Linear-0-0")
    summary = (pytester.path / "report/summary.md").read_text(encoding="utf-8")
    assert (pytester.path / "step.md").read_text(encoding="utf-8") == summary
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "/dev/null/step.md")
    result = run_parity("-k", "Linear-0-0")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["the job summary could not be written: * Not a directory*"])


def test_an_interrupted_run_is_reported(pytester, registry):
    pytester.makepyfile(test_host="def test_own(): raise KeyboardInterrupt")
    result = pytester.inline_run(
        "-p", "no:randomly", "--parity", "--parity-timeout=0", "--parity-report=report", "-k", "Linear-0-0 or own",
        "parity/suites/test_torch_casadi.py", "test_host.py", no_reraise_ctrlc=True,
    )  # fmt: skip
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert [row.verdict for row in rows(pytester.path / "report")] == ["pass"] * len(PLAN)
    assert "still going" not in (pytester.path / "report/index.html").read_text(encoding="utf-8")
