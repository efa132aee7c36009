"""The run in Markdown: for a terminal, a pull request, or the job summary of a continuous-integration run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from parity.records import FAIL, VERDICTS, expected_remark
from parity.report import tables
from parity.report.formulations import EXPLANATION, MEASURES, formulations
from parity.report.reading import Run

MATRIX_ROWS = 60
SPEED_ROWS = 40
WORST_CASES = 20
MESSAGE_LENGTH = 300


def summary(run: Run) -> str:
    """Counts, ranking, matrix, speed and the worst cases. Its length does not grow with the number of records."""
    facts = [f"run {text(run.name)}", f"seed {text(run.seed)}" if run.seed else "", text(run.date)]
    counts = tables.verdict_counts(run.table)
    remarks = {FAIL: expected_remark(counts[FAIL], int(tables.expected(run.table).sum()))}
    shown = [
        f"{tables.GLYPHS[verdict]} {count} {verdict}{remarks.get(verdict, '')}"
        for verdict, count in counts.items()
        if count
    ]
    head = ["# Parity report", " · ".join(filter(None, facts)), "**" + (" · ".join(shown) or "no records yet") + "**"]
    notices = ["\n".join(f"> {text(notice)}  " for notice in run.notices)] if run.notices else []
    sections = []
    if not run.table.empty:
        coverage = [part for matrix in tables.matrices(run.table) for part in _matrix(matrix)]
        sections = [*_ranking(run), *coverage, *_speed(run), *_formulations(run), *_worst(run)]
    return "\n\n".join([*head, *notices, *sections]) + "\n"


def text(value: object, length: int = MESSAGE_LENGTH) -> str:
    """A value as one line that Markdown shows as it is, cut at `length` characters."""
    line = " ".join(str(value).split())
    line = line if len(line) <= length else line[: length - 1] + "…"
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", line).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def table_of(header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int) -> str:
    """A Markdown table whose columns are aligned to the right from column `numbers_from` on."""
    rule = ["---" if index < numbers_from else "--:" for index in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def code_block(command: str) -> str:
    """A fenced block that the command's own backticks cannot end."""
    longest = max((len(run) for run in re.findall(r"`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{command}\n{fence}"


def more(total: int, shown: int, what: str) -> list[str]:
    """The line that says what a cut table leaves out, if anything."""
    return [f"… and {total - shown} more {what} in `index.html`."] if total > shown else []


def _ranking(run: Run) -> list[str]:
    ranked = tables.ranking(run.table)
    verdicts = [verdict for verdict in VERDICTS if ranked[verdict].any()]
    header = ["path", "converter", "check", "cases", *verdicts]
    header += ["median error", "worst error", "median speed", "convert ms"]
    numbers = ["median_error", "worst_error", "median_speed", "median_convert_ms"]
    rows = [
        [text(row[key]) for key in ("path", "converter", "check")]
        + [str(row["cases"]), *(tables.count_text(row, verdict) for verdict in verdicts)]
        + [tables.significant(row[key]) for key in numbers]
        for row in tables.as_rows(ranked)
    ]
    units = f"{tables.error_units(run.limits)}. Speed above 1: the converted model is faster."
    return ["## Converters", units, table_of(header, rows, numbers_from=3)]


def _matrix(matrix: tables.Matrix) -> list[str]:
    # Where not all rows fit, those with something wrong must.
    rows = [*matrix.layers, *matrix.families]
    shown = sorted(rows, key=lambda row: not row.bad)[:MATRIX_ROWS]
    lines = [
        [
            text(row.name),
            *(text(cell.text + (f" ({cell.note})" if cell.note else "")) if cell else "" for cell in row.cells),
        ]
        for row in shown
    ]
    title = [f"## Coverage of {text(matrix.path)}", "Passed (of judged, if fewer) and the worst error."]
    columns = [text(f"{converter} {check}") for converter, check in matrix.columns]
    grid = table_of(["layer or family", *columns], lines, numbers_from=1)
    return [*title, grid, *more(len(rows), len(shown), "rows")]


def _speed(run: Run) -> list[str]:
    timed = tables.speeds(run.table)
    if not timed:
        return []
    rows = [
        [text(row[key], 80) for key in ("converter", "case", "check", "message")]
        + [tables.speed_text(row), tables.speed_verdict(row)]
        for row in timed[:SPEED_ROWS]
    ]
    header = ["converter", "case", "check", "timed", "speed [interval]", ""]
    return ["## Speed", table_of(header, rows, numbers_from=4), *more(len(timed), SPEED_ROWS, "timed cases")]


def _formulations(run: Run) -> list[str]:
    parts = []
    for network in formulations(run.table):
        rows = [[text(cell) for cell in row] for row in network.rows]
        grid = table_of(["formulation", "optimum", *MEASURES], rows, numbers_from=2)
        parts += [f"**{text(network.case)}** {text(network.layers)}", grid]
    return ["## Formulations of a network inside a solver's model", EXPLANATION, *parts] if parts else []


def what_and_where(row: Any) -> str:
    """One sentence about a record: how far off, where it first goes wrong, and what was said."""
    error = tables.significant(row["error_ratio"])
    off = f"{error} rounding units of {row['dtype']} off" if error else ""
    stage = f"in the {row['blame_stage']} stage" if row["blame_stage"] else ""
    layer = f"first at {row['blame_layer']}" if row["blame_layer"] else ""
    return ": ".join(filter(None, [", ".join(filter(None, [off, stage, layer])), row["message"]]))


def _worst(run: Run) -> list[str]:
    cases = tables.worst(run.table, WORST_CASES)
    if not cases:
        return []
    entries = []
    for row in cases:
        alike = f" (and {row['alike']} more like it)" if row["alike"] else ""
        name = f"{tables.GLYPHS.get(row['verdict'], '?')} **{row['verdict']}** {text(row['case'])}"
        chain = f"[{text(row['path'])} {text(row['converter'])}] {text(row['check'])}"
        sentence = text(what_and_where(row))
        entries.append(f"{name} {chain}{alike}" + (f": {sentence}" if sentence else ""))
        if row["reproducer"]:
            entries.append(code_block(row["reproducer"]))
    return ["## Worst cases", *entries]
