"""Takes the records out of pytest's test reports and keeps the run's folder, in the process that writes it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from parity.fixture import PROPERTY
from parity.records import FAIL, VERDICTS, Record, expected_remark
from parity.run_folder import RunFolder


class Recorder:
    """A pytest plugin, registered for a run with `--parity`; records come from xdist workers just as from here."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":  # once per test: the records of its fixtures too, and of subtests only once
            for name, value in report.user_properties:
                if name == PROPERTY and isinstance(value, dict):
                    self.folder.append(Record(**value))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.folder.close()
        if self.folder.moved and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        counts = Counter(record.verdict for record in self.folder.records)
        cases = len({(record.path, record.converter, record.case) for record in self.folder.records})
        terminalreporter.section("parity")
        for notice in self.folder.notices:
            terminalreporter.write_line(notice, yellow=True)
        remarks = {FAIL: expected_remark(counts[FAIL], sum(record.expected for record in self.folder.records))}
        found = ", ".join(
            f"{counts[verdict]} {verdict}{remarks.get(verdict, '')}" for verdict in VERDICTS if counts[verdict]
        )
        terminalreporter.write_line(f"{len(self.folder.records)} checks of {cases} cases: {found or 'none ran'}")
        terminalreporter.write_line(f"report: {self.folder.index}")
        self._write_job_summary(terminalreporter)

    def _write_job_summary(self, terminalreporter: Any) -> None:
        """Where GitHub Actions shows a job's summary; a failure to write it is no reason to fail the run."""
        target = os.environ.get("GITHUB_STEP_SUMMARY")
        summary = self.folder.folder / "summary.md"
        if target and summary.is_file():
            try:
                with Path(target).open("a", encoding="utf-8") as file:
                    file.write(summary.read_text(encoding="utf-8"))
            except OSError as error:
                terminalreporter.write_line(f"the job summary could not be written: {error}", yellow=True)
