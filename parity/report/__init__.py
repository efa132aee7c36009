"""What a run's records say, for people and for machines: `index.html`, `summary.md`, `results.json`, comparisons.

Everything is made from `results.csv` (and `environment.json`) alone, so a killed run, or one from another machine,
reports like any other. Importing this package costs nothing: pandas, jinja2 and itables come in where they are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parity.records import write_atomically, write_json
from parity.report import html, markdown
from parity.report.comparison import compare, compare_converters
from parity.report.reading import read_run
from parity.report.tables import ranking

__all__ = ["compare", "compare_converters", "ranking", "summary", "write"]


def write(folder: Path, *, notices: Sequence[str] | None = None, finished: bool | None = None) -> Path:
    """Write `results.json`, `summary.md` and `index.html` beside `results.csv`; returns the page's path.

    `notices` are lines shown at the top, such as a path that could not run and what installs it. Without them, and
    without `finished`, those of the last write stand, so that a killed run can be reported again. Raises
    `ParityError` where `folder` holds no `results.csv`, or one of another format.
    """
    run = read_run(folder, notices, finished=finished)
    records = [record.to_plain() for record in run.records]
    content = {"run": run.name, "finished": run.finished, "notices": run.given_notices, "records": records}
    write_json(folder / "results.json", content)
    write_atomically(folder / "summary.md", markdown.summary(run))
    index = folder / "index.html"
    write_atomically(index, html.page(run))
    return index


def summary(folder: Path) -> str:
    """The run in Markdown, short enough for a terminal or $GITHUB_STEP_SUMMARY, with the notices `write` was given."""
    return markdown.summary(read_run(folder))
