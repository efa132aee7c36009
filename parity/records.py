"""One row per case x converter chain x check: the only thing that reports read.

The columns and their order are a public format (`results.csv`). Values are builtins, never numpy scalars, so that
a record travels through pytest-xdist, JSON and CSV unchanged. A missing value is `None`, an empty cell in CSV.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import pandas

PASS, FAIL, UNSUPPORTED, ERROR = "pass", "fail", "unsupported", "error"
CRASH, TIMEOUT, DEGENERATE = "crash", "timeout", "degenerate"
VERDICTS = (PASS, FAIL, UNSUPPORTED, ERROR, CRASH, TIMEOUT, DEGENERATE)
BAD_VERDICTS = (FAIL, ERROR, CRASH, TIMEOUT)
"""Verdicts that make a run red. `unsupported` and `degenerate` are shown and counted, and redden nothing."""
EXPECTED = "expected: "
"""How the message of a failure begins that a list of known deviations explains: it is shown, and reddens nothing."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one check of one case through one converter chain found.

    Errors are of the converted model against the float64 source: `max_abs` and `max_rel` (elementwise, against the
    reference's magnitude), `max_ulp` in units in the last place of `dtype`, `error_ratio` in rounding units (1 means:
    as good as the source itself rounded to `dtype`; see `parity.checks.tolerance`). `rtol_needed` and `atol_needed`
    are the smallest tolerances that `torch.testing.assert_close` would have needed, the other one at its default.
    Times: `convert_ms` in milliseconds, `source_us` and `target_us` in microseconds per call, `speed_ratio` is
    source time / target time (above 1: the converted model is faster), `speed_low` and `speed_high` its interval.
    `variables`, `constraints` and `binaries` are the size of a solver's model.
    """

    run: str = ""
    path: str = ""
    converter: str = ""
    case: str = ""
    family: str = ""
    layers: str = ""
    seed: int | None = None
    dtype: str = ""
    batch: int | None = None
    regime: str = ""
    check: str = ""
    verdict: str = ""
    message: str = ""
    error_ratio: float | None = None
    max_abs: float | None = None
    max_rel: float | None = None
    max_ulp: float | None = None
    rtol_needed: float | None = None
    atol_needed: float | None = None
    blame_stage: str = ""
    blame_layer: str = ""
    convert_ms: float | None = None
    source_us: float | None = None
    target_us: float | None = None
    speed_ratio: float | None = None
    speed_low: float | None = None
    speed_high: float | None = None
    artifact_bytes: int | None = None
    variables: int | None = None
    constraints: int | None = None
    binaries: int | None = None
    reproducer: str = ""

    def to_plain(self) -> dict[str, Any]:
        """The record as a dict of builtins in column order; raises TypeError on anything else."""
        row = asdict(self)
        for column, value in row.items():
            if type(value) not in (str, int, float, type(None)):
                raise TypeError(f"record column {column!r} holds a {type(value).__name__}, not a builtin: {value!r}")
        return row

    def summary(self) -> str:
        """One line for terminals and assertion messages."""
        where = " ".join(filter(None, [self.check, self.regime, f"batch {self.batch}" if self.batch else ""]))
        line = f"{self.case or 'model'} [{self.converter}] {where}: {self.verdict}"
        if self.error_ratio is not None:
            line += f", error {self.error_ratio:.3g} rounding units of {self.dtype} (max abs {self.max_abs:.3g})"
        if self.blame_layer:
            line += f", first diverges at {self.blame_layer}"
        return line + (f": {self.message}" if self.message else "")

    @property
    def expected(self) -> bool:
        """Whether this is a failure that a list of known deviations explains."""
        return self.verdict == FAIL and self.message.startswith(EXPECTED)


def expected_remark(failures: int, expected: int) -> str:
    """What is said behind a number of failures: ` (all expected)`, ` (3 expected)`, or nothing."""
    return f" ({'all' if expected == failures else expected} expected)" if expected else ""


COLUMNS = tuple(field.name for field in fields(Record))


class ResultsFile:
    """`results.csv` of a run, appended and flushed record by record: a killed run leaves what it had measured."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file: TextIO = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, COLUMNS)
        self._writer.writeheader()
        self._file.flush()

    def append(self, record: Record) -> None:
        """Write one row and hand it to the operating system at once; raises OSError (a full disk, say)."""
        self._writer.writerow(record.to_plain())
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON in one step (no half-written file is ever seen): NaN and infinities become strings."""
    text = json.dumps(_json_value(content), indent=1, allow_nan=False, ensure_ascii=False)
    write_atomically(path, text + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` so that a reader, or a kill, sees the old file or the new one and nothing between."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _json_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    return value


def load(report: str | Path) -> pandas.DataFrame:
    """The records of a finished, running or killed run as a table, one row per record.

    `report` is a report folder or its `results.csv`. Raises `ParityError` where there is none.
    """
    import pandas

    from parity.errors import ParityError

    path = Path(report)
    path = path / "results.csv" if path.is_dir() else path
    if not path.is_file():
        raise ParityError(
            f"no results at {path}: give a report folder that `pytest --parity` wrote, or its results.csv"
        )
    text_columns = [field.name for field in fields(Record) if field.type == "str"]
    try:
        table = pandas.read_csv(path, dtype=dict.fromkeys(text_columns, "str"), keep_default_na=True)
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ParityError(f"{path} is not a results.csv of pytest-parity: {error}") from error
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise ParityError(f"{path} is not a results.csv of pytest-parity: it lacks the columns {', '.join(missing)}")
    table[text_columns] = table[text_columns].fillna("")
    return table[list(COLUMNS)]


def to_table(records: Iterable[Record]) -> pandas.DataFrame:
    """The same table as `load` gives, from records in memory."""
    import pandas

    return pandas.DataFrame([record.to_plain() for record in records], columns=list(COLUMNS))
