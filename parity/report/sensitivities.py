"""Three plots of the path ocp-sensitivity: error against step, error against margin, speed against parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from parity.report.plots import TOP, WIDTH, LogAxis, _label, _svg
from parity.report.tables import as_rows

if TYPE_CHECKING:
    import pandas

PATH = "ocp-sensitivity"
HEIGHT, LEFT, RIGHT = 260, 90, 900
Curves = Mapping[str, Sequence[tuple[float, float]]]
MARGIN = re.compile(r"complementarity ([0-9.e+-]+)")
PARAMETERS = re.compile(r"\bnp=(\d+)")
COLOURS = ("#1668b8", "#c4501b", "#2b7d4f", "#8a4fb0", "#9a7b00", "#5c6670", "#b8307a", "#0f8a8a")


def sensitivity_plots(table: pandas.DataFrame) -> str:
    """The plots as SVG, each under its sentence; empty for a run without the path."""
    steps: dict[str, list[tuple[float, float]]] = {}
    margins: dict[str, list[tuple[float, float]]] = {}
    speeds: dict[str, list[tuple[float, float]]] = {}
    for row in as_rows(table[table["path"] == PATH]):
        check, engine = row["check"], row["converter"]
        if check.startswith("step ") and row["max_abs"]:
            steps.setdefault(f"{engine} {row['case']}", []).append((float(check[5:]), row["max_abs"]))
        if check != "sensitivity":
            continue
        margin = MARGIN.search(row["message"])
        if margin and row["error_ratio"] and engine.startswith("acados"):
            margins.setdefault(engine, []).append((float(margin[1]), row["error_ratio"]))
        parameters = PARAMETERS.search(row["layers"])
        if row["family"] == "scaling" and parameters and row["speed_ratio"] and row["speed_ratio"] > 0:
            speeds.setdefault(engine, []).append((float(parameters[1]), row["speed_ratio"]))
    plots = (
        (steps, True, "Error of central differences (relative) against their step"),
        (margins, False, "acados: error in rounding units against the margin of strict complementarity; 10 passes"),
        (speeds, True, "Central differences' time over a sensitivity's, against the number of parameters"),
    )
    return "".join(
        f"<p>{escape(sentence)}</p>{scatter(curves, joined, sentence)}" for curves, joined, sentence in plots if curves
    )


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
