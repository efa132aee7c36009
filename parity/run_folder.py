"""The folder that a run writes: records as they come, facts about the machine, and a report that is always readable."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from time import monotonic
from typing import Any

from parity import report
from parity.checks.tolerance import LIMITS
from parity.errors import ParityError
from parity.records import Record, ResultsFile, write_json

RENDER_SECONDS = 10.0
"""How old the page may get while the run goes on, unless drawing it takes long."""
PACKAGES = ("pytest-parity", "pytest", "pytest-benchmark", "numpy", "scipy", "pandas")


class RunFolder:
    """`results.csv` and what is made from it. A full disk moves the run to a temporary folder and is not forgotten."""

    def __init__(self, folder: Path, run: str, environment: dict[str, Any], notices: Sequence[str] = ()) -> None:
        self.folder, self.run, self.environment, self.notices = folder, run, environment, list(notices)
        self.records: list[Record] = []
        self.moved = False
        try:
            self._open(folder)
        except OSError as error:
            why = _reason(error)
            raise ParityError(f"cannot write the report to {folder}: {why}; choose another folder") from error

    @property
    def index(self) -> Path:
        return self.folder / "index.html"

    def append(self, record: Record) -> None:
        """Keep a record, and draw the page anew if it has got old."""
        record = replace(record, run=record.run or self.run)
        self._write(lambda: self._results.append(record))
        self.records.append(record)
        if monotonic() > self._next_render:
            self.render(finished=False)

    def render(self, *, finished: bool) -> None:
        """Write the page, the summary and the JSON."""
        start = monotonic()
        self._write(lambda: report.write(self.folder, notices=self.notices, finished=finished))
        self._next_render = monotonic() + max(RENDER_SECONDS, 20 * (monotonic() - start))

    def close(self) -> None:
        self.render(finished=True)
        self._write(lambda: self._results.close())

    def _open(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._results = ResultsFile(folder / "results.csv")
        write_json(folder / "environment.json", self.environment)
        report.write(folder, notices=self.notices, finished=False)
        self._next_render = monotonic() + RENDER_SECONDS

    def _write(self, action: Callable[[], object]) -> None:
        """Write in the folder, or if it is full or gone, in a temporary one; the run goes on in any case."""
        try:
            try:
                action()
            except (OSError, ParityError) as error:
                if self.moved:
                    raise
                self._move(error)
                action()
        except (OSError, ParityError) as error:
            notice = f"{self.folder} could not be written either ({_reason(error)}): records are lost"
            self.notices += [notice] if notice not in self.notices else []

    def _move(self, error: OSError | ParityError) -> None:
        """Go on in a temporary folder with everything measured so far."""
        self.moved = True
        with suppress(OSError):
            self._results.close()  # what it still holds has no place there, and is written again here
        refuge = Path(tempfile.mkdtemp(prefix="parity-report-"))
        self.notices.append(f"{self.folder} could not be written ({_reason(error)}): the report went to {refuge}")
        self._open(refuge)
        for record in self.records:
            self._results.append(record)


def _reason(error: OSError | ParityError) -> str:
    return getattr(error, "strerror", None) or str(error)


def run_id() -> str:
    """The date and time, by which runs sort."""
    return datetime.now().strftime("%Y%m%d-%H%M%S")


def describe_environment(run: str, seed: int, packages: Sequence[str]) -> dict[str, Any]:
    """Facts that every record of a run shares. Versions are read from metadata: nothing is imported."""
    return {
        "run": run,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seed": seed,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "limits": LIMITS,
        "versions": {name: found for name in (*PACKAGES, *packages) if (found := _version(name))},
        **(_acados() if "casadi" in packages else {}),
    }


def _acados() -> dict[str, str]:
    """The acados that engines use: it is no package of this environment."""
    from parity.converters.ocp_sensitivity import acados_installation

    try:
        folder = acados_installation.find()
    except ParityError as error:
        return {"acados": str(error)}
    library = acados_installation.library_folder(folder) / "libacados.so"
    return {"acados": f"{acados_installation.version(folder)}, {library}"}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        owners = packages_distributions().get(name, ())  # cv2 comes with opencv-python-headless
        return version(owners[0]) if owners else ""
