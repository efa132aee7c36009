"""Plots of the path ocp-sensitivity: errors against step, margin and tolerance; speed and time against parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from parity.report.plots import TOP, WIDTH, LogAxis, _label, _svg
from parity.report.tables import as_rows

if TYPE_CHECKING:
    import pandas

PATH = "ocp-sensitivity"
HEIGHT, LEFT, RIGHT = 260, 90, 900
Curves = Mapping[str, Sequence[tuple[float, float]]]
MARGIN = re.compile(r"complementarity ([0-9.e+-]+)")
STEP = re.compile(r"([0-9.e+-]+) at step ([0-9.e+-]+)")
TOLERANCES = {"acados": 1e-6, "acados-1e-8": 1e-8, "acados-1e-10": 1e-10}
"""Of the plain engines, by name."""
PARAMETERS = re.compile(r"\bnp=(\d+)")
COLOURS = ("#1668b8", "#c4501b", "#2b7d4f", "#8a4fb0", "#9a7b00", "#5c6670", "#b8307a", "#0f8a8a")


def sensitivity_plots(table: pandas.DataFrame) -> str:
    """The plots as SVG, each under its sentence; empty for a run without the path."""
    curves = {
        "Error of central differences (relative) against their step": (_steps, True),
        "acados: error in rounding units against the margin of strict complementarity; 10 passes": (_margins, False),
        "acados, plain: error in rounding units against its tolerance; 10 passes": (_tolerances, False),
        "Central differences' time over a sensitivity's, against the number of parameters": (_speeds, True),
        "Microseconds for all sensitivities at a solution, against the number of parameters": (_times, True),
    }
    rows = as_rows(table[table["path"] == PATH])
    parts = []
    for sentence, (read, joined) in curves.items():
        found: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            for name, across, up in read(row):
                found.setdefault(name, []).append((across, up))
        if found:
            parts.append(f"<p>{escape(sentence)}</p>{scatter(found, joined, sentence)}")
    return "".join(parts)


Row = Mapping[str, Any]
Points = Iterator[tuple[str, float, float]]
"""What a record adds to a plot: the curve, and a point of it."""


def _steps(row: Row) -> Points:
    if row["check"] == "steps":
        for error, step in STEP.findall(row["message"]):
            yield f"{row['converter']} {row['case']}", float(step), float(error)


def _margins(row: Row) -> Points:
    margin = MARGIN.search(row["message"])
    if _is_of_acados(row) and margin:
        yield row["converter"], float(margin[1]), row["error_ratio"]


def _tolerances(row: Row) -> Points:
    tolerance = TOLERANCES.get(row["converter"])
    if _is_of_acados(row) and tolerance:
        yield row["family"], tolerance, row["error_ratio"]


def _speeds(row: Row) -> Points:
    if parameters := _parameters(row):
        yield row["converter"], parameters, row["speed_ratio"]


def _times(row: Row) -> Points:
    if parameters := _parameters(row):
        yield row["converter"], parameters, row["target_us"]


def _is_of_acados(row: Row) -> bool:
    return bool(row["check"] == "sensitivity" and row["converter"].startswith("acados") and row["error_ratio"] > 0)


def _parameters(row: Row) -> float:
    """How many parameters the timed problem of a sensitivity has; 0 for any other record."""
    found = PARAMETERS.search(row["layers"])
    timed = row["check"] == "sensitivity" and row["family"] == "scaling" and row["speed_ratio"] > 0
    return float(found[1]) if found and timed else 0.0


def scatter(curves: Curves, joined: bool, description: str) -> str:
    """Points on two logarithmic axes, one colour per curve; `joined` draws its line too."""
    points = [point for curve in curves.values() for point in curve if 0 < point[0] < float("inf")]
    across, up = LogAxis((x for x, _ in points), LEFT, RIGHT), LogAxis((y for _, y in points), -HEIGHT, -TOP)
    parts = []
    for value in across.ticks():
        x = across.position(value)
        parts.append(f'<path class="grid" d="M{x:g} {TOP}V{HEIGHT}"></path>')
        parts.append(f'<text class="muted middle" x="{x:g}" y="{HEIGHT + 16}">{value:g}</text>')
    for value in up.ticks():
        y = -up.position(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:g}H{RIGHT}"></path>')
        parts.append(f'<text class="muted end" x="{LEFT - 6}" y="{y + 4:g}">{value:g}</text>')
    for number, (name, curve) in enumerate(sorted(curves.items())):
        colour = COLOURS[number % len(COLOURS)]
        places = [(across.position(x), -up.position(y), x, y) for x, y in sorted(curve) if 0 < x < float("inf")]
        if joined and len(places) > 1:
            line = "L".join(f"{x:g} {y:g}" for x, y, *_ in places)
            parts.append(f'<path d="M{line}" style="fill:none;stroke:{colour}"></path>')
        for x, y, *values in places:
            title = escape(f"{name}: {values[0]:.3g}, {values[1]:.3g}")
            dot = f'<circle cx="{x:g}" cy="{y:g}" r="3" style="fill:{colour};stroke:none">'
            parts.append(f"{dot}<title>{title}</title></circle>")
        parts.append(f'<circle cx="{RIGHT + 24}" cy="{TOP + 18 * number + 11}" r="4" style="fill:{colour}"></circle>')
        parts.append(_label(RIGHT + 36, TOP + 18 * number, name, (WIDTH - RIGHT - 40) // 7))
    return _svg(description, parts, max(HEIGHT, TOP + 18 * len(curves)) + 24)
