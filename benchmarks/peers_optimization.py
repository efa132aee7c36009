"""What other projects' converters to optimization models refuse or get wrong, from a run of the suite, in Markdown.

pytest --parity --parity-path torch-optimization --parity-converter all --parity-report RUN
python benchmarks/peers_optimization.py RUN reports/scoreboard/torch-optimization.md
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import parity
from parity.cases.case import case_from_id
from parity.records import BAD_VERDICTS, DEGENERATE, PASS, UNSUPPORTED
from parity.report.formulations import EXPLANATION, MEASURES, formulations
from parity.report.markdown import table_of, text

PEERS = {
    "omlt": ("OMLT", "omlt"),
    "pyscipopt-ml": ("PySCIPOpt-ML", "pyscipopt-ml"),
    "gurobi-ml": ("gurobi-machinelearning", "gurobi-machinelearning"),
}
BY_SOLVER = ("fixed", "optimum")
MESSAGE = 150


def peer_of(converter: str) -> tuple[str, str] | None:
    return next((peer for name, peer in PEERS.items() if converter.startswith(name)), None)


def written(case_id: str) -> str:
    """The case's layers with their arguments, but for the sizes of linear layers."""
    nodes = case_from_id(case_id).spec.nodes
    shown = [{k: v for k, v in n.arguments.items() if n.layer != "Linear" or (k, v) == ("bias", False)} for n in nodes]
    return " › ".join(
        node.layer + (f"({', '.join(f'{k}={v}' for k, v in arguments.items())})" if arguments else "")
        for node, arguments in zip(nodes, shown, strict=True)
    )


def reason(row: dict[str, Any]) -> str:
    """What is the same for all records of one failure: names of nodes and numbers differ."""
    if row["verdict"] != UNSUPPORTED:
        return f"{row['family']} {row['layers']}"
    if "Only Add nodes are supported" in row["message"]:
        return "a linear layer without a bias"
    return " ".join(word for word in row["message"].split() if not any(c.isdigit() or c == "/" for c in word))


def failures(rows: list[dict[str, Any]]) -> list[list[str]]:
    """One line per project and failure: the smallest case that shows it, and how many cases do."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if peer_of(row["converter"]) and row["verdict"] in (*BAD_VERDICTS, UNSUPPORTED) and row["check"] in BY_SOLVER:
            found.setdefault((row["verdict"], peer_of(row["converter"])[0], reason(row)), []).append(row)
    lines = []
    for (verdict, peer, _), alike in sorted(found.items()):
        row = min(alike, key=lambda each: (each["layers"].count(">"), each["case"], each["check"], each["converter"]))
        converters = sorted({each["converter"] for each in alike})
        names = f"{peer} ({', '.join(converters)})"
        cases = len({each["case"] for each in alike})
        layers = text(written(row["case"])) + f", of {row['family']}" + (f" and {cases - 1} more" if cases > 1 else "")
        off = "" if row["max_abs"] != row["max_abs"] else f"off by {row['max_abs']:.2g}: "
        command = f"`parity repro {row['case']} --path torch-optimization --converter {row['converter']}`"
        lines.append([text(names), f"**{verdict}**", layers, text(off + row["message"], MESSAGE), command])
    return lines


def scoreboard(run: Path) -> str:
    """The page, of a report folder."""
    table = parity.load(run)
    rows: list[dict[str, Any]] = table.to_dict("records")
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    versions = environment["versions"] | {label: _version(package) for label, package in PEERS.values()}
    parts = [
        "# torch→optimization: converters side by side",
        f"Run {environment['run']}, seed {environment['seed']}, {len(rows)} checks, written by "
        f"`benchmarks/peers_optimization.py` (`tox -e compare-optimization`). {environment['machine']}; "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + ". mathoptai needs juliacall and a Julia with MathOptAI, which could not be had on this machine.",
        "## Verdicts",
        "Of the checks with a solver (`fixed`, `optimum`) of every network, by converter.",
        _verdicts([row for row in rows if row["check"] in BY_SOLVER]),
        "## What other projects refuse or get wrong",
        "The smallest network that shows it, and how many more do.",
        table_of(["converter", "verdict", "layers", "message", "again"], failures(rows), numbers_from=5),
        "## Formulations",
        EXPLANATION,
    ]
    for network in formulations(table):
        grid = table_of(["formulation", "optimum", *MEASURES], network.rows, numbers_from=2)
        parts += [f"**{network.case}** {text(network.layers)}", grid]
    return "\n\n".join(parts) + "\n"


def _verdicts(rows: list[dict[str, Any]]) -> str:
    counts = {name: Counter(row["verdict"] for row in rows if row["converter"] == name) for name in _names(rows)}
    verdicts = (PASS, UNSUPPORTED, DEGENERATE, *BAD_VERDICTS)
    lines = [[name, *(str(count[verdict] or "") for verdict in verdicts)] for name, count in counts.items()]
    return table_of(["converter", *verdicts], lines, numbers_from=1)


def _names(rows: list[dict[str, Any]]) -> list[str]:
    return sorted({row["converter"] for row in rows} - {"given"}, key=lambda name: (peer_of(name) is not None, name))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


if __name__ == "__main__":
    Path(sys.argv[2]).parent.mkdir(parents=True, exist_ok=True)
    Path(sys.argv[2]).write_text(scoreboard(Path(sys.argv[1])), encoding="utf-8")
