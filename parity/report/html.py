"""The run as one HTML page that needs nothing else: no network, no neighbouring file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from parity.errors import MissingPackage
from parity.records import BAD_VERDICTS, COLUMNS, VERDICTS, Record
from parity.report import plots, tables
from parity.report.markdown import what_and_where
from parity.report.reading import KINDS, Run

WORST_CASES = 12
LIMITS = {"float64": 10.0, "float32": 2.0}
"""The largest `error_ratio` that passes, where `environment.json` does not say."""
VISIBLE = "path converter case dtype batch regime check verdict error_ratio max_abs blame_layer speed_ratio".split()
"""Columns of the table of cases that are shown at first."""


def page(run: Run) -> str:
    """The whole page. Every string of a record is escaped by the template, or is data that the script never parses."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["significant"] = tables.significant
    environment.globals["glyphs"] = tables.GLYPHS
    bundle_css, bundle_js = _data_tables()
    limits = run.environment.get("limits", LIMITS)
    trusted = {
        "style": bundle_css + _asset("report.css"),
        "script": _asset("report.js"),
        "bundle": _embedded(bundle_js),
        "data": _embedded(_cases(run)),
        "error_plot": plots.error_plot(run.table, limits),
        "speed_plot": plots.speed_plot(run.table),
    }
    context = _context(run) | {"limits": limits} | {name: Markup(text) for name, text in trusted.items()}
    return environment.from_string(_asset("template.html.j2")).render(context)


def _context(run: Run) -> dict[str, Any]:
    counts = tables.verdict_counts(run.table)
    empty = run.table.empty
    cases = tables.worst(run.table, WORST_CASES)
    return {
        "run": run,
        "counts": {verdict: count for verdict, count in counts.items() if count},
        "bad": sum(counts[verdict] for verdict in BAD_VERDICTS),
        "verdicts": VERDICTS,
        "facts": [(key, _flat(value)) for key, value in run.environment.items()],
        "ranking": [] if empty else tables.ranking(run.table, tables.CHAIN).to_dict("records"),
        "matrix": None if empty else tables.matrix(run.table),
        "worst": [row | {"sentence": what_and_where(row)} for row in cases],
        "timed": len(tables.speeds(run.table)),
        "speed_rows": plots.SPEED_ROWS,
    }


def _cases(run: Run) -> dict[str, Any]:
    """What the script needs for the table of cases: rows as lists, since 29 names per row would double the page."""
    visible = [name for name in VISIBLE if name != "path" or run.table["path"].nunique() > 1]
    return {
        "columns": [{"name": name, "numeric": KINDS[name] != "str"} for name in COLUMNS],
        "visible": visible,
        "glyphs": tables.GLYPHS,
        "bad": BAD_VERDICTS,
        "rows": [_values(record) for record in run.records],
    }


def _values(record: Record) -> list[Any]:
    """The record's values; JSON has no NaN and no infinity, and the table shows them as words."""
    values = record.to_plain().values()
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
