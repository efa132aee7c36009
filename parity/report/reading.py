"""A run read back from its folder, exactly as it was written: `nan` is not taken for a missing value."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.errors import ParityError
from parity.records import COLUMNS, Record, to_table

if TYPE_CHECKING:
    import pandas

KINDS = {field.name: str(field.type).split(" ")[0] for field in fields(Record)}
"""The type of each column's values: `str`, `int` or `float`."""
LIMITS = {"float64": 10.0, "float32": 2.0}
"""Of a run whose environment does not say."""
CUT_LINE = "the last line of results.csv was cut off when the run was killed: it is left out"


@dataclass(frozen=True)
class Run:
    """One run's records, as a list and as a table, and what is known about it."""

    name: str
    date: str
    records: list[Record]
    table: pandas.DataFrame
    environment: dict[str, Any]
    finished: bool
    given_notices: list[str]
    """What the run had to say."""
    notices: list[str]
    """The same, and what reading it back has to say: all that is shown."""

    @property
    def limits(self) -> dict[str, float]:
        """The largest `error_ratio` that passed, by dtype."""
        limits = self.environment.get("limits")
        limits = limits if isinstance(limits, dict) else {}
        return {dtype: float(limit) for dtype, limit in limits.items() if isinstance(limit, int | float)} or LIMITS

    @property
    def seed(self) -> str:
        """The seed all cases came from; empty where the environment does not say."""
        return str(self.environment.get("seed", ""))


def read_run(folder: Path, notices: Sequence[str] | None = None, *, finished: bool | None = None) -> Run:
    """Read a report folder. What is None is taken as it was when the report was last written."""
    path = folder / "results.csv"
    records, cut = read_records(path)
    environment = _read_object(folder / "environment.json")
    stored = _read_object(folder / "results.json") if notices is None or finished is None else {}
    notices = list(stored.get("notices", []) if notices is None else notices)
    finished = stored.get("finished", True) if finished is None else finished
    banner = [] if finished else [f"run still going or interrupted: {len(records)} records so far"]
    changed = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    return Run(
        name=next((record.run for record in records if record.run), str(environment.get("run", folder.resolve().name))),
        date=str(environment.get("date", changed.strftime("%Y-%m-%d %H:%M UTC"))),
        records=records,
        table=tabulate(records),
        environment=environment,
        finished=finished,
        given_notices=notices,
        notices=[*banner, *notices, *([CUT_LINE] if cut else [])],
    )


def read_records(path: Path) -> tuple[list[Record], bool]:
    """The complete records of a `results.csv`, and whether a cut last line was left out; raises `ParityError`."""
    if not path.is_file():
        raise ParityError(
            f"no results at {path}: give a report folder that `pytest --parity` wrote, or its results.csv"
        )
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        text = file.read()
    header, rows, cut = _complete_rows(text, path)
    if missing := [column for column in COLUMNS if column not in header] if header else []:
        raise ParityError(f"{path} is not a results.csv of pytest-parity: it lacks the columns {', '.join(missing)}")
    try:
        return [_parse(dict(zip(header, row, strict=True))) for row in rows], cut
    except ValueError as error:
        raise ParityError(f"{path} is not a results.csv of pytest-parity: {error}") from error


def tabulate(records: Sequence[Record]) -> pandas.DataFrame:
    """The records as a table with the same column types however many rows there are.

    A NaN error counts as an infinite one: it is worse than any number, and must not be taken for a missing one.
    """
    table = to_table(records).astype({name: "str" if kind == "str" else "float64" for name, kind in KINDS.items()})
    not_a_number = [record.error_ratio is not None and math.isnan(record.error_ratio) for record in records]
    table.loc[not_a_number, "error_ratio"] = math.inf
    return table


def _complete_rows(text: str, path: Path) -> tuple[list[str], list[list[str]], bool]:
    """Header, rows, and whether the last row was dropped because a kill had cut it."""
    rows: list[list[str]] = []
    cut = not text.endswith("\n") and bool(text)
    csv.field_size_limit(sys.maxsize)  # a message may hold a long traceback
    try:
        for row in csv.reader(io.StringIO(text, newline=""), strict=True):
            rows.append(row)
    except csv.Error as error:
        if "unexpected end of data" not in str(error):
            raise ParityError(f"{path} is not a results.csv of pytest-parity: {error}") from error
        # The kill came inside quotes: the reader has not given out the cut row, there is nothing more to drop.
        return rows[0], rows[1:], True
    if cut:
        rows.pop()
    return (rows[0], rows[1:], cut) if rows else ([], [], cut)


def _parse(row: Mapping[str, str]) -> Record:
    values: dict[str, Any] = {}
    for name, kind in KINDS.items():
        text = row[name]
        values[name] = text if kind == "str" else None if not text else int(text) if kind == "int" else float(text)
    return Record(**values)


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is none to read: the records must be reported all the same."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
