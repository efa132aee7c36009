"""Aggregations of a run's records. Each is made once, here, and shown by the page, the summary and the comparison."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from parity.records import (
    BAD_VERDICTS,
    CRASH,
    DEGENERATE,
    ERROR,
    EXPECTED,
    FAIL,
    PASS,
    TIMEOUT,
    UNSUPPORTED,
    VERDICTS,
    expected_remark,
)

if TYPE_CHECKING:
    import pandas

CHECKS = ("value", "jacobian", "hessian", "vjp", "sensitivity", "optimum")
"""The order in which checks are shown; any other follows by name."""
GLYPHS = {PASS: "✓", FAIL: "✗", UNSUPPORTED: "–", ERROR: "✗", CRASH: "✗", TIMEOUT: "✗", DEGENERATE: "∅"}
CHAIN = ["path", "converter"]
SPEED_MARGIN = 1.05
"""An interval must leave `1 / margin … margin` before a model is called faster or slower: 5 % is chance."""


@dataclass(frozen=True)
class Cell:
    """What one check of one converter found for one layer or family."""

    counts: Mapping[str, int]
    worst: float | None
    expected: int = 0
    """How many of the failures are."""

    @property
    def passed(self) -> int:
        return self.counts.get(PASS, 0)

    @property
    def judged(self) -> int:
        """How many could be judged: neither refused by the converter nor without a derivative."""
        return self.passed + sum(self.counts.get(verdict, 0) for verdict in BAD_VERDICTS)

    @property
    def verdict(self) -> str:
        """The verdict that stands for all: a bad one if there is any, else `pass`, else what there is."""
        order = (*BAD_VERDICTS, PASS, UNSUPPORTED, DEGENERATE, *self.counts)
        return next(verdict for verdict in order if self.counts.get(verdict))

    @property
    def bad(self) -> bool:
        """Whether anything went wrong that was not expected to."""
        return self.passed + self.expected < self.judged

    @property
    def style(self) -> str:
        """The verdict, or `expected` where nothing but expected failures is bad."""
        return "expected" if self.expected and not self.bad else self.verdict

    @property
    def text(self) -> str:
        """`✓ 15`, `✗ 3/15` (passed of judged), `✓ 12, – 3` (some unsupported) or `– unsupported` (all of them)."""
        glyph, refused = GLYPHS.get(self.verdict, "?"), self.counts.get(UNSUPPORTED, 0)
        if not self.judged:
            return f"{glyph} {self.verdict}"
        of_judged = f"/{self.judged}" if self.passed < self.judged else ""
        return f"{glyph} {self.passed}{of_judged}" + (f", {GLYPHS[UNSUPPORTED]} {refused}" if refused else "")

    @property
    def note(self) -> str:
        """The worst error, or without one the verdict if it is bad."""
        return significant(self.worst) or (self.verdict if self.verdict in BAD_VERDICTS else "")

    @property
    def description(self) -> str:
        """All that was found, in words."""
        remarks = {FAIL: expected_remark(self.counts.get(FAIL, 0), self.expected)}
        counts = ", ".join(f"{count} {verdict}{remarks.get(verdict, '')}" for verdict, count in self.counts.items())
        return counts + (f"; worst error {significant(self.worst)} rounding units" if self.worst is not None else "")


@dataclass(frozen=True)
class Row:
    """A row of a matrix: a layer, or a family of larger models; None where nothing was recorded."""

    name: str
    cells: Sequence[Cell | None]

    @property
    def bad(self) -> bool:
        return any(cell is not None and cell.bad for cell in self.cells)


@dataclass(frozen=True)
class Matrix:
    """One path's layers, then its families, against its converters and checks."""

    path: str
    columns: Sequence[tuple[str, str]]
    """Converter and check."""
    layers: Sequence[Row]
    families: Sequence[Row]

    @property
    def spans(self) -> dict[str, int]:
        """How many checks each converter has, for the header above the checks."""
        return Counter(converter for converter, _ in self.columns)


def error_units(limits: Mapping[str, float]) -> str:
    """What an `error_ratio` means, for people; `limits` by dtype, as in `Run.limits`."""
    known = ", ".join(f"{limit:g} for {dtype}" for dtype, limit in limits.items())
    return f"Error, in rounding units (1 = as good as the source's own rounding; limit {known})"


def significant(value: float | None) -> str:
    """Three significant digits; empty for a missing value, `∞` for an infinite one."""
    if value is None or math.isnan(value):
        return ""
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    rounded = float(f"{value:.2e}")
    if rounded and not 1e-4 <= abs(rounded) < 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{rounded:.0f}" if abs(rounded) >= 100 or not rounded else f"{rounded:#.3g}"


def converter_order(converter: str) -> tuple[bool, str]:
    """A sort key: ours first, then the others by name."""
    return (converter != "reference", converter)


def check_order(check: str) -> tuple[int, str]:
    """A sort key: the known checks in their order, then the others by name."""
    return (CHECKS.index(check) if check in CHECKS else len(CHECKS), check)


def verdict_counts(table: pandas.DataFrame) -> dict[str, int]:
    """How many records have each verdict, every verdict named, in the order of `VERDICTS`."""
    counts = table["verdict"].value_counts()
    return {verdict: int(counts.get(verdict, 0)) for verdict in VERDICTS}


def expected(table: pandas.DataFrame) -> pandas.Series[bool]:
    """Which records are failures that a list of known deviations explains."""
    return (table["verdict"] == FAIL) & table["message"].str.startswith(EXPECTED)


def ranking(table: pandas.DataFrame, by: Sequence[str] = (*CHAIN, "check")) -> pandas.DataFrame:
    """One row per converter and check (or whatever `by` names), the best first within each path (and check).

    Columns: those of `by`, `cases` (distinct), `records`, one per verdict, `expected` (of the failures),
    `passed_share` (of all records),
    `median_error` and `worst_error` (the `error_ratio` of passed and failed records), `median_speed`
    (`speed_ratio`), `median_convert_ms`. The best has the largest `passed_share`, then the smallest `median_error`.
    """
    keys = list(by)
    groups = table.groupby(keys)
    judged = table[table["verdict"].isin([PASS, FAIL])].groupby(keys)["error_ratio"]
    ranked = groups["case"].nunique().to_frame("cases")
    ranked["records"] = groups.size()
    for verdict in VERDICTS:
        ranked[verdict] = (table["verdict"] == verdict).groupby([table[key] for key in keys]).sum()
    ranked["expected"] = expected(table).groupby([table[key] for key in keys]).sum()
    ranked["passed_share"] = ranked[PASS] / ranked["records"]
    ranked["median_error"], ranked["worst_error"] = judged.median(), judged.max()
    ranked["median_speed"] = groups["speed_ratio"].median()
    ranked["median_convert_ms"] = groups["convert_ms"].median()
    within = [key for key in keys if key != "converter"]
    ascending = [*[True] * len(within), False, True]
    return ranked.reset_index().sort_values([*within, "passed_share", "median_error"], ascending=ascending)


def count_text(row: Mapping[str, Any], verdict: str) -> str:
    """How many records of a row of the ranking have a verdict: `26`, or of failures `26 (all expected)`."""
    return f"{row[verdict]}{expected_remark(row[verdict], row['expected']) if verdict == FAIL else ''}"


def row_name(family: str, layers: str) -> str:
    """A record's row in the matrix: its layer (the last, what comes before only feeds it), else its family."""
    return layers.rpartition(">")[2] if family == "layer" else family


def matrices(table: pandas.DataFrame) -> list[Matrix]:
    """One matrix per path: every layer (records of family `layer`) and every other family against every check."""
    return [_matrix(str(path), part) for path, part in table.groupby("path")]


def _matrix(path: str, table: pandas.DataFrame) -> Matrix:
    counts: dict[tuple[bool, str], dict[tuple[str, str], Counter[str]]] = {}
    worst: dict[tuple[str, str, str, bool], float] = {}
    known_wrong: Counter[tuple[str, str, str, bool]] = Counter()
    names = ["family", "layers", "converter", "check", "verdict", "error_ratio"]
    rows_of_table = table[names].itertuples(index=False, name=None)
    for (family, layers, converter, check, verdict, error), known in zip(rows_of_table, expected(table), strict=True):
        of_layer, name = family == "layer", row_name(family, layers)
        counts.setdefault((of_layer, name), {}).setdefault((converter, check), Counter())[verdict] += 1
        key = (name, converter, check, of_layer)
        known_wrong[key] += bool(known)
        if verdict in (PASS, FAIL) and not math.isnan(error):
            worst[key] = max(error, worst.get(key, error))
    columns = sorted(
        {column for row in counts.values() for column in row},
        key=lambda column: (converter_order(column[0]), check_order(column[1])),
    )

    def rows(of_layer: bool) -> list[Row]:
        known = sorted((name for layer, name in counts if layer == of_layer), key=lambda name: (name.casefold(), name))
        return [Row(name, [cell(name, column, of_layer) for column in columns]) for name in known]

    def cell(name: str, column: tuple[str, str], of_layer: bool) -> Cell | None:
        found, key = counts[of_layer, name].get(column), (name, *column, of_layer)
        return Cell(found, worst.get(key), known_wrong[key]) if found else None

    return Matrix(path, columns, layers=rows(True), families=rows(False))


def as_rows(table: pandas.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def speeds(table: pandas.DataFrame) -> list[dict[str, Any]]:
    """The timed records, converter by converter, the slowest first."""
    timed = as_rows(table[table["speed_ratio"].notna()])
    return sorted(timed, key=lambda row: (row["path"], converter_order(row["converter"]), row["speed_ratio"]))


def speed_verdict(row: Mapping[str, Any]) -> str:
    """`faster`, `slower`, `same` (the whole interval within the margin), `unclear`, or empty without an interval."""
    low, high = row["speed_low"], row["speed_high"]
    if math.isnan(low) or math.isnan(high):
        return ""
    if low > SPEED_MARGIN or high < 1 / SPEED_MARGIN:
        return "faster" if low > SPEED_MARGIN else "slower"
    return "same" if low >= 1 / SPEED_MARGIN and high <= SPEED_MARGIN else "unclear"


def speed_text(row: Mapping[str, Any]) -> str:
    """`1.07× [1.01, 1.16]`, without the interval where none was measured."""
    interval = [row["speed_low"], row["speed_high"]]
    if any(math.isnan(end) for end in interval):
        return f"{significant(row['speed_ratio'])}×"
    return f"{significant(row['speed_ratio'])}× [{', '.join(map(significant, interval))}]"


def worst(table: pandas.DataFrame, count: int) -> list[dict[str, Any]]:
    """The records to look at first, with `alike`: how many more of the same layer, converter, check and verdict.

    Of larger models, alike are those of the same case. Bad records that were not expected, if there are any; else those
    that passed with the largest error. Every converter shows its worst failure, crash, and so on before any shows its
    second, so that one broken converter does not hide the others.
    """
    bad = table[table["verdict"].isin(BAD_VERDICTS) & ~expected(table)]
    shown = bad if len(bad) else table[(table["verdict"] == PASS) & table["error_ratio"].notna()]
    shown = shown.sort_values("error_ratio", ascending=False, kind="stable", na_position="last")
    same = [*CHAIN, "subject", "check", "verdict"]
    shown = shown.assign(subject=shown["layers"].where(shown["family"] == "layer", shown["case"]))
    shown = shown.assign(alike=shown.groupby(same)["case"].transform("size") - 1).drop_duplicates(same)
    shown = shown.assign(turn=shown.groupby([*CHAIN, "verdict"]).cumcount())
    return as_rows(shown.sort_values(["turn", "error_ratio"], ascending=[True, False], kind="stable").head(count))
