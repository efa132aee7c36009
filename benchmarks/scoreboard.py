"""What every converter of a path does, refuses and gets wrong, side by side, in Markdown: `reports/scoreboard/`.

pytest --parity --parity-path torch-casadi --parity-converter all --parity-report RUN
python benchmarks/scoreboard.py RUN reports/scoreboard
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import parity
from parity.cases.case import case_from_id
from parity.converters.registry import converters
from parity.errors import ParityError
from parity.paths import path
from parity.records import BAD_VERDICTS, DEGENERATE, FAIL, PASS, UNSUPPORTED
from parity.report.formulations import EXPLANATION, MEASURES, formulations
from parity.report.markdown import table_of, text
from parity.report.tables import GLYPHS, as_rows, check_order, matrices, ranking, significant

JUDGED = {"torch-optimization": ("fixed", "optimum")}
"""Checks that all converters of a path can be asked for, where these are not all of its checks."""
MESSAGE = 150
WIDEST = 8
"""Converters that one table has room for."""
Row = dict[str, Any]


def scoreboard(run: Path, way: str) -> str:
    """The page of one path, from a report folder."""
    table = parity.load(run)
    table = table[table["path"] == way]
    judged = table[table["check"].isin(JUDGED[way])] if way in JUDGED else table
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    versions = environment["versions"] | dict(_versions(way))
    checks = sorted(judged["check"].unique(), key=check_order)
    parts = [
        f"# {path(way).title}: converters side by side",
        f"Written by `benchmarks/scoreboard.py` from {len(table)} checks: run {environment['run']}, seed "
        f"{environment['seed']}, {environment['machine']}; "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + ".",
        "## Verdicts",
        f"Of the checks {', '.join(checks)}, in every precision that a converter computes in.",
        _verdicts(judged),
        *_matrix(table),
        "## What other projects refuse or get wrong",
        "The smallest model that shows it, and how many more do.",
        table_of(
            ["converter", "verdict", "layers", "message", "again"], failures(as_rows(judged), way), numbers_from=5
        ),
    ]
    if networks := formulations(table):
        parts += ["## Formulations", EXPLANATION]
    for network in networks:
        grid = table_of(["formulation", "optimum", *MEASURES], network.rows, numbers_from=2)
        parts += [f"**{network.case}** {text(network.layers)}", grid]
    return "\n\n".join(parts) + "\n"


def failures(rows: list[Row], way: str) -> list[list[str]]:
    """One line per project and failure: the smallest case that shows it, and how many cases do."""
    projects = _projects(way)
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row["converter"] in projects and row["verdict"] in (*BAD_VERDICTS, UNSUPPORTED):
            found.setdefault((row["verdict"], projects[row["converter"]], reason(row)), []).append(row)
    lines = []
    for (verdict, *_), alike in sorted(found.items()):
        row = min(alike, key=lambda each: (each["layers"].count(">"), each["case"], check_order(each["check"])))
        others = len({each["case"] for each in alike}) - 1
        where = ", ".join(sorted({each["check"] for each in alike}, key=check_order))
        layers = text(written(row["case"], way)) + (f" and {others} more" if others else "")
        off = "" if row["max_abs"] != row["max_abs"] else f"off by {row['max_abs']:.2g} "
        command = f"`parity repro {row['case']} --path {way} --converter {row['converter']}`"
        names = ", ".join(sorted({each["converter"] for each in alike}))
        lines.append([text(names), f"**{verdict}** {where}", layers, text(off + row["message"], MESSAGE), command])
    return lines


def reason(row: Row) -> str:
    """What is the same for all records of one failure: names of nodes and numbers differ."""
    if "Only Add nodes are supported" in row["message"]:
        return "a linear layer without a bias"
    if row["check"] in ("structure", "training"):
        return str(row["check"])
    if row["verdict"] == FAIL:
        family = "" if row["family"] in ("layer", "dag") else row["family"]
        return f"{family} {str(row['blame_layer']).rpartition('_')[0] or row['layers']}"
    return " ".join(word for word in row["message"].split() if not any(c.isdigit() or c == "/" for c in word))


def written(case_id: str, way: str) -> str:
    """The case's layers with their arguments, but for the sizes of linear layers."""
    try:
        nodes = case_from_id(case_id, path(way).source).spec.nodes
    except (AttributeError, ParityError):  # a case that is no graph of layers
        return case_id
    shown = [{k: v for k, v in n.arguments.items() if n.layer != "Linear" or (k, v) == ("bias", False)} for n in nodes]
    return " › ".join(
        node.layer + (f"({', '.join(f'{k}={v}' for k, v in arguments.items())})" if arguments else "")
        for node, arguments in zip(nodes, shown, strict=True)
    )


def _verdicts(table: Any) -> str:
    verdicts = (PASS, UNSUPPORTED, DEGENERATE, *BAD_VERDICTS)
    lines = [
        [row["converter"], *(str(row[verdict] or "") for verdict in verdicts), significant(row["median_convert_ms"])]
        for row in as_rows(ranking(table[table["converter"] != "given"], ["converter"]))
    ]
    return table_of(["converter", *verdicts, "conversion, ms (median)"], lines, numbers_from=1)


def _matrix(table: Any) -> list[str]:
    """Layers and families against converters, a mark for each check."""
    (matrix,) = matrices(table)
    names = list(matrix.spans)
    if len(names) > WIDEST:
        return []
    checks = sorted({check for _, check in matrix.columns}, key=check_order)
    lines = []
    for row in (*matrix.layers, *matrix.families):
        found = dict(zip(matrix.columns, row.cells, strict=True))
        cells = {(name, check): found.get((name, check)) for name in names for check in checks}
        marks = {key: GLYPHS[cell.verdict] if cell else "·" for key, cell in cells.items()}
        lines.append([row.name, *(" ".join(marks[name, check] for check in checks) for name in names)])
    words = (
        f"{', '.join(checks)}, in this order; ✓ passed, ✗ wrong or an error, – refused, ∅ no derivative, · not asked."
    )
    return ["## Layers", words, table_of(["layer or family", *names], lines, numbers_from=len(names) + 1)]


def _edges(way: str) -> Iterator[Any]:
    for source, target in pairwise(path(way).representations):
        yield from converters(source, target)


def _projects(way: str) -> dict[str, str]:
    """Other projects' converters, by what they require: several may be one project's."""
    return {edge.name: " ".join(edge.requires) or edge.name for edge in _edges(way) if edge.on_request}


def _versions(way: str) -> Iterator[tuple[str, str]]:
    """Of what other projects' converters require."""
    distributions = packages_distributions()
    for package in dict.fromkeys(name for edge in _edges(way) if edge.on_request for name in edge.requires):
        for name in distributions.get(package, [package]):
            try:
                yield name, version(name)
            except PackageNotFoundError:
                yield name, "absent"


if __name__ == "__main__":
    source, folder = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    for way in parity.load(source)["path"].unique():
        (folder / f"{way}.md").write_text(scoreboard(source, way), encoding="utf-8")
