"""Networks inside solvers' models, formulation by formulation: how large, how quickly built, how quickly solved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from parity.report.tables import as_rows, significant

if TYPE_CHECKING:
    import pandas

MEASURES = ("variables", "constraints", "binaries", "build, ms", "solve, ms")
EXPLANATION = (
    "Beside each figure, its ratio to the smallest above zero in the column. Building is the median of fresh "
    "conversions; times of solving are compared through the search that they were timed against, pair by pair."
)


@dataclass(frozen=True)
class Formulations:
    """One network's rows, smallest solve time first: converter, kind of optimum, then a text for each measure."""

    case: str
    layers: str
    rows: list[tuple[str, ...]]


def formulations(table: pandas.DataFrame) -> list[Formulations]:
    """One table per network whose optimum was timed."""
    solved = table[(table["check"] == "optimum") & table["variables"].notna()]
    timed = solved[solved["case"].isin(solved.loc[solved["speed_ratio"].notna(), "case"])]
    return [_of(str(case), as_rows(part)) for case, part in timed.groupby("case")]


def _of(case: str, records: list[dict[str, Any]]) -> Formulations:
    # Of a solve, the ratio to what it was timed against: a machine that slows down does so for both.
    ratios = [[r["variables"], r["constraints"], r["binaries"], r["convert_ms"], 1 / r["speed_ratio"]] for r in records]
    shown = [[*row[:4], r["target_us"] / 1e3] for row, r in zip(ratios, records, strict=True)]
    least = [min((value for value in column if value > 0), default=1.0) for column in zip(*ratios, strict=True)]
    order = sorted(range(len(records)), key=lambda index: ratios[index][-1] if ratios[index][-1] > 0 else float("inf"))
    rows = []
    for index in order:
        cells = (
            f"{_figure(value)} ({significant(ratio / smallest)}×)" if ratio > 0 else _figure(value)
            for value, ratio, smallest in zip(shown[index], ratios[index], least, strict=True)
        )
        rows.append((records[index]["converter"], _optimum(records[index]), *cells))
    return Formulations(case, records[0]["layers"], rows)


def _figure(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else significant(value)


def _optimum(record: dict[str, Any]) -> str:
    if record["verdict"] != "pass":
        return str(record["verdict"])
    return (
        "local"
        if "local only" in record["message"]
        else "not proven"
        if "time limit" in record["message"]
        else "proven"
    )
