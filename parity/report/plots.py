"""The two plots as inline SVG: they need no script, print well, and take their colours from the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape
from statistics import median
from typing import TYPE_CHECKING, Any

from parity.records import FAIL, PASS
from parity.report.tables import (
    CHAIN,
    as_rows,
    check_order,
    converter_order,
    expected,
    significant,
    speed_text,
    speed_verdict,
    speeds,
)

if TYPE_CHECKING:
    import pandas

WIDTH, ROW, TOP = 1280, 22, 26
CHARACTER = 6.4
"""Width of one character at the plots' font size, a little generous: labels are cut to fit by this measure."""
SPEED_ROWS = 60


class LogAxis:
    """Positions on a logarithmic axis; zero and infinity have their places at its ends."""

    def __init__(self, values: Iterable[float], left: float, right: float) -> None:
        finite = [math.log10(value) for value in values if 0 < value < math.inf] or [0.0]
        self.low, self.high = min(finite), max(finite)
        margin = max(0.05 * (self.high - self.low), 0.1)
        self.low, self.high = self.low - margin, self.high + margin
        self.left, self.right = left, right

    def position(self, value: float) -> float:
        """The horizontal position, rounded to what an eye can tell apart."""
        if value <= 0:
            return self.left
        exponent = min(math.log10(value), self.high) if value < math.inf else self.high
        return round(self.left + (exponent - self.low) / (self.high - self.low) * (self.right - self.left), 1)

    def ticks(self) -> list[float]:
        """Round values: powers of ten, or 1, 2 and 5 times those where the axis is short."""
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        step = max(1, round(len(decades) / 10))
        multiples = (1, 2, 5) if self.high - self.low < 2.5 else (1,)
        values = [multiple * 10.0**decade for decade in decades if decade % step == 0 for multiple in multiples]
        return [value for value in values if self.low <= math.log10(value) <= self.high]


def error_plot(table: pandas.DataFrame, limits: Mapping[str, float]) -> str:
    """Every `error_ratio` as a tick, a row per converter, check and dtype, with the dtype's limit; empty for none."""
    columns = [*CHAIN, "check", "dtype", "verdict", "expected", "error_ratio", "case", "regime"]
    table = table.assign(expected=expected(table))
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in as_rows(table.loc[table["error_ratio"].notna(), columns]):
        groups.setdefault((row["path"], row["converter"], row["check"], row["dtype"]), []).append(row)
    if not groups:
        return ""
    drawn = {dtype: limits[dtype] for *_, dtype in groups if dtype in limits}
    axis = LogAxis([*table["error_ratio"].dropna(), *drawn.values()], 400, 1060)
    order = sorted(groups, key=lambda key: (key[0], converter_order(key[1]), check_order(key[2]), key[3]))
    parts, chain = [], None
    for index, (path, converter, check, dtype) in enumerate(order):
        y = TOP + index * ROW
        if chain != (path, converter):
            chain = (path, converter)
            parts += [_rule(y)] * (index > 0) + [_label(0, y, f"{converter}  {path}", 34, "strong")]
        rows = groups[path, converter, check, dtype]
        errors = [row["error_ratio"] for row in rows]
        failed = sum(row["verdict"] == FAIL for row in rows)
        style = "expected end" if failed == sum(row["expected"] for row in rows) else "fail end"
        parts += [_label(225, y, f"{check} {dtype}", 25), *_marks(rows, axis, y), *_limit(drawn.get(dtype), axis, y)]
        parts.append(_label(1075, y, f"{significant(median(errors))} … {significant(max(errors))}", 20))
        parts += [_label(WIDTH, y, f"✗ {failed}", 8, style)] if failed else []
    header = [_label(1075, 0, "median … worst", 20, "muted"), _label(WIDTH, 0, "failed", 8, "muted end")]
    description = "Errors in rounding units, one tick per record, on a logarithmic axis"
    return _svg(description, [*header, *_axis(axis, len(groups), ""), *parts], TOP + len(groups) * ROW + 24)


def _marks(rows: Iterable[Mapping[str, Any]], axis: LogAxis, y: float) -> list[str]:
    # Ticks that would cover each other are drawn once: the page's size does not grow with the number of records.
    stacks: dict[tuple[bool, float, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = (row["verdict"] == FAIL, axis.position(row["error_ratio"]), row["verdict"])
        stacks.setdefault(key, []).append(row)
    marks = []
    for (failed, x, verdict), stack in sorted(stacks.items(), key=lambda item: item[0]):
        style = verdict if verdict in (PASS, FAIL) else "other"
        more = f" and {len(stack) - 1} more" if len(stack) > 1 else ""
        first = stack[0]
        title = f"{first['case']} {first['regime']}: {verdict}, {significant(first['error_ratio'])}{more}"
        top, height = (y + 2, ROW - 4) if failed else (y + 5, ROW - 10)
        marks.append(f'<path class="{style}" d="M{x:g} {top}v{height}"><title>{escape(title)}</title></path>')
    return marks


def _limit(limit: float | None, axis: LogAxis, y: float) -> list[str]:
    if limit is None:
        return []
    return [f'<path class="limit" d="M{axis.position(limit):g} {y}v{ROW}"><title>limit {limit:g}</title></path>']


def speed_plot(table: pandas.DataFrame) -> str:
    """`speed_ratio` with its interval, a row per timed record, against the line at 1×; empty for none."""
    timed = speeds(table)
    if len(timed) > SPEED_ROWS:
        ratios = sorted(row["speed_ratio"] for row in timed)
        low, high = ratios[SPEED_ROWS // 2 - 1], ratios[-SPEED_ROWS // 2]
        timed = [row for row in timed if not low < row["speed_ratio"] < high][:SPEED_ROWS]
    if not timed:
        return ""
    ends = [row[name] for row in timed for name in ("speed_ratio", "speed_low", "speed_high")]
    axis = LogAxis([*ends, 0.9, 1.1], 400, 820)
    parts, chain = [], None
    for index, row in enumerate(timed):
        y = TOP + index * ROW
        if chain != (row["path"], row["converter"]):
            chain = (row["path"], row["converter"])
            parts += [_rule(y)] * (index > 0) + [_label(0, y, f"{row['converter']}  {row['path']}", 34, "strong")]
        parts += [_label(225, y, f"{row['case']} {row['check']}", 26), *_interval(row, axis, y)]
        parts += [_label(835, y, speed_text(row), 26), _label(1005, y, speed_verdict(row), 9)]
        parts.append(_label(1075, y, row["message"], 32, "muted"))
    one = f'<path class="one" d="M{axis.position(1):g} {TOP - 4}v{len(timed) * ROW + 4}"></path>'
    header = [_label(835, 0, "speed [interval]", 26, "muted"), _label(1075, 0, "what was timed", 32, "muted")]
    description = "Source time divided by target time: right of 1 the converted model is faster"
    height = TOP + len(timed) * ROW + 24
    return _svg(description, [*header, *_axis(axis, len(timed), "×"), one, *parts], height)


def _interval(row: Mapping[str, Any], axis: LogAxis, y: float) -> list[str]:
    ratio, low, high = row["speed_ratio"], row["speed_low"], row["speed_high"]
    title = escape(f"{row['case']} {row['check']}: {speed_text(row)} {row['message']}")
    middle = y + ROW / 2
    known = not (math.isnan(low) or math.isnan(high))
    line = [f'<path d="M{axis.position(low):g} {middle}H{axis.position(high):g}"></path>'] if known else []
    dot = f'<circle cx="{axis.position(ratio):g}" cy="{middle}" r="4"></circle>'
    return [f'<g class="{speed_verdict(row) or "unclear"}"><title>{title}</title>', *line, dot, "</g>"]


def _axis(axis: LogAxis, rows: int, unit: str) -> list[str]:
    bottom = TOP + rows * ROW
    marks = []
    for value in axis.ticks():
        x = axis.position(value)
        text = f"{value:g}" if 1e-4 <= value < 1e4 else f"1e{round(math.log10(value))}"
        marks.append(f'<path class="grid" d="M{x:g} {TOP}V{bottom}"></path>')
        marks.append(f'<text class="muted middle" x="{x:g}" y="{bottom + 16}">{text}{unit}</text>')
    return marks


def _rule(y: float) -> str:
    return f'<path class="rule" d="M0 {y}H{WIDTH}"></path>'


def _label(x: float, y: float, text: str, characters: int, style: str = "") -> str:
    """A text in row `y`, cut to so many characters, whole in its tooltip."""
    line = " ".join(text.split())
    cut = line if len(line) <= characters else line[: characters - 1] + "…"
    title = f"<title>{escape(text)}</title>" if cut != line else ""
    return f'<text class="{style}" x="{x:g}" y="{y + ROW / 2 + 4:g}">{escape(cut)}{title}</text>'


def _svg(description: str, parts: Iterable[str], height: float) -> str:
    size = f'viewBox="0 0 {WIDTH} {height:g}"'
    return f'<svg class="plot" role="img" aria-label="{escape(description)}" {size}>{"".join(parts)}</svg>'
