"""The run as one HTML page that needs nothing else: no network, no neighbouring file."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from parity.errors import MissingPackage
from parity.records import BAD_VERDICTS, COLUMNS, EXPECTED, FAIL, VERDICTS, Record, expected_remark
from parity.report import plots, tables
from parity.report.formulations import EXPLANATION, MEASURES, formulations
from parity.report.markdown import what_and_where
from parity.report.reading import KINDS, Run
from parity.report.sensitivities import sensitivity_plots

WORST_CASES = 12
# Columns of the table of records that are shown at first; the others open with a row, or by the columns button.
VISIBLE = ("case", "converter", "check", "regime", "dtype", "verdict", "error_ratio", "max_abs", "blame_layer")


def page(run: Run) -> str:
    """The whole page. Every string of a record is escaped by the template, or is data that the script never parses."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["significant"] = tables.significant
    environment.globals |= {"glyphs": tables.GLYPHS, "count_text": tables.count_text}
    library_style, library = _data_tables()
    script = _asset("report.js")
    trusted = {
        "style": library_style + _asset("report.css"),
        "script": script,
        "library": _embedded(library),
        "data": _embedded(_records(run)),
        "error_plot": plots.error_plot(run.table, run.limits),
        "speed_plot": plots.speed_plot(run.table),
        "sensitivity_plots": sensitivity_plots(run.table),
    }
    # Whatever a string of a record might smuggle in, the browser runs this one script and loads nothing.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    context = _context(run) | {"digest": digest} | {name: Markup(text) for name, text in trusted.items()}
    return environment.from_string(_asset("template.html.j2")).render(context)


def _context(run: Run) -> dict[str, Any]:
    counts = tables.verdict_counts(run.table)
    cases, expected = tables.worst(run.table, WORST_CASES), int(tables.expected(run.table).sum())
    return {
        "run": run,
        "counts": {verdict: count for verdict, count in counts.items() if count},
        "bad": sum(counts[verdict] for verdict in BAD_VERDICTS) - expected,
        "remarks": {FAIL: expected_remark(counts[FAIL], expected)},
        "styles": {FAIL: "expected"} if counts[FAIL] == expected else {},
        "verdicts": VERDICTS,
        "units": tables.error_units(run.limits),
        "facts": [(key, _flat(value)) for key, value in run.environment.items()],
        "ranking": tables.as_rows(tables.ranking(run.table, tables.CHAIN)),
        "matrices": tables.matrices(run.table),
        "worst": [row | {"sentence": what_and_where(row)} for row in cases],
        "formulations": formulations(run.table),
        "formulation_text": EXPLANATION,
        "measures": MEASURES,
        "hidden_speeds": max(0, len(tables.speeds(run.table)) - plots.SPEED_ROWS),
    }


def _records(run: Run) -> dict[str, Any]:
    """What the script needs for its table: rows as lists, since 29 names in each would double the page."""
    several_paths = run.table["path"].nunique() > 1
    return {
        "columns": ["row", *COLUMNS],
        "numeric": [name for name, kind in KINDS.items() if kind != "str"],
        "visible": [*(["path"] if several_paths else []), *VISIBLE],
        "glyphs": tables.GLYPHS,
        "bad": BAD_VERDICTS,
        "expected": EXPECTED,
        "run": run.name,
        "rows": [[tables.row_name(record.family, record.layers), *_values(record)] for record in run.records],
    }


def _values(record: Record) -> list[Any]:
    """The record's values; JSON has no NaN and no infinity, and the table shows them as words."""
    values = (getattr(record, name) for name in COLUMNS)
    return [str(value) if isinstance(value, float) and not math.isfinite(value) else value for value in values]


def _embedded(content: Any) -> str:
    """JSON for a script element, which no string inside can end or turn into a comment."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _flat(value: Any) -> str:
    """A fact of the environment as one line of text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flat(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_flat, value))
    return str(value)


def _asset(name: str) -> str:
    return files("parity.report").joinpath(name).read_text(encoding="utf-8")


def _data_tables() -> tuple[str, str]:
    """Style and script of DataTables out of the wheel of itables, whose import would cost more than the page."""
    spec = find_spec("itables")
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackage("the report's table needs itables: pip install itables")
    folder = Path(spec.submodule_search_locations[0]) / "html"
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("dt_bundle.css", "dt_bundle.js"))
    return style, script
