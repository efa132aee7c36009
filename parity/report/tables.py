"""Aggregations of a run's records. Each is made once, here, and shown by the page, the summary and the comparison."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from parity.records import BAD_VERDICTS, CRASH, DEGENERATE, ERROR, FAIL, PASS, TIMEOUT, UNSUPPORTED, VERDICTS

if TYPE_CHECKING:
    import pandas

CHECKS = ("value", "jacobian", "hessian", "vjp", "sensitivity", "optimum")
"""The order in which checks are shown; any other follows by name."""
GLYPHS = {PASS: "✓", FAIL: "✗", UNSUPPORTED: "–", ERROR: "✗", CRASH: "✗", TIMEOUT: "✗", DEGENERATE: "∅"}
CHAIN = ["path", "converter"]


class Column(NamedTuple):
    """A column of the matrix: one check of one converter chain."""

    path: str
    converter: str
    check: str


@dataclass(frozen=True)
class Cell:
    """What one check of one converter found for one layer or family."""

    counts: Mapping[str, int]
    worst: float | None

    @property
    def passed(self) -> int:
        return self.counts.get(PASS, 0)

    @property
    def run(self) -> int:
        """How many could be judged: neither refused by the converter nor without a derivative."""
        return self.passed + sum(self.counts.get(verdict, 0) for verdict in BAD_VERDICTS)

    @property
    def unsupported(self) -> int:
        return self.counts.get(UNSUPPORTED, 0)

    @property
    def state(self) -> str:
        """The verdict that stands for all: `fail` if any is bad, `pass` if any passed, else what there is."""
        if self.run > self.passed:
            return FAIL
        return next((verdict for verdict in (PASS, UNSUPPORTED, DEGENERATE) if self.counts.get(verdict)), "")


@dataclass(frozen=True)
class Row:
    """A row of the matrix: a layer, or a family of larger models; None where nothing was recorded."""

    name: str
    cells: Sequence[Cell | None]

    @property
    def bad(self) -> bool:
        return any(cell is not None and cell.state == FAIL for cell in self.cells)


@dataclass(frozen=True)
class Matrix:
    """Layers and families against converters and checks."""

    columns: Sequence[Column]
    layers: Sequence[Row]
    families: Sequence[Row]

    @property
    def rows(self) -> list[Row]:
        return [*self.families, *self.layers]

    @property
    def chains(self) -> list[tuple[str, str, int]]:
        """Path, converter and number of checks, for the header above the checks."""
        counts = Counter((column.path, column.converter) for column in self.columns)
        return [(path, converter, count) for (path, converter), count in counts.items()]


def significant(value: float | None) -> str:
    """Three significant digits; empty for a missing value, `∞` for an infinite one."""
    if value is None or math.isnan(value):
        return ""
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    mantissa, exponent = f"{value:.2e}".split("e")
    if value == 0 or not -4 <= int(exponent) < 6:
        return "0" if value == 0 else f"{mantissa}e{int(exponent)}"
    return f"{float(f'{value:.2e}'):.{max(0, 2 - int(exponent))}f}"


def check_order(check: str) -> tuple[int, str]:
    """A sort key: the known checks in their order, then the others by name."""
    return (CHECKS.index(check) if check in CHECKS else len(CHECKS), check)


def verdict_counts(table: pandas.DataFrame) -> dict[str, int]:
    """How many records have each verdict, every verdict named, in the order of `VERDICTS`."""
    counts = table["verdict"].value_counts()
    return {verdict: int(counts.get(verdict, 0)) for verdict in VERDICTS}


def ranking(table: pandas.DataFrame, by: Sequence[str] = (*CHAIN, "check")) -> pandas.DataFrame:
    """One row per converter and check (or whatever `by` names), the best first within each path.

    Columns: those of `by`, `cases` (distinct), `records`, one per verdict, `median_error` and `worst_error` (the
    `error_ratio` of passed and failed records), `median_speed` (`speed_ratio`), `median_convert_ms`.
    """
    import pandas

    keys = list(by)
    groups = table.groupby(keys, sort=True)
    judged = table[table["verdict"].isin([PASS, FAIL])].groupby(keys)["error_ratio"]
    counts = pandas.crosstab([table[key] for key in keys], table["verdict"]).reindex(
        columns=list(VERDICTS), fill_value=0
    )
    ranked = pandas.DataFrame({"cases": groups["case"].nunique(), "records": groups.size()}).join(counts)
    ranked["median_error"], ranked["worst_error"] = judged.median(), judged.max()
    ranked["median_speed"] = groups["speed_ratio"].median()
    ranked["median_convert_ms"] = groups["convert_ms"].median()
    ranked = ranked.reset_index()
    order = [key for key in keys if key != "converter"]
    ranked["passed_share"] = ranked[PASS] / ranked["records"]
    ranked = ranked.sort_values([*order, "passed_share", "median_error"], ascending=[*[True] * len(order), False, True])
    return ranked.drop(columns="passed_share").reset_index(drop=True)


def matrix(table: pandas.DataFrame) -> Matrix:
    """Every layer (records of family `layer`) and every other family against every converter and check."""
    is_layer = table["family"] == "layer"
    named = table.assign(is_layer=is_layer, row=table["layers"].where(is_layer, table["family"]))
    columns = sorted(
        (Column(*key) for key in named[[*CHAIN, "check"]].drop_duplicates().itertuples(index=False)),
        key=lambda column: (column.path, column.converter != "reference", column.converter, check_order(column.check)),
    )
    judged = named["verdict"].isin([PASS, FAIL])
    named["judged_error"] = named["error_ratio"].where(judged)
    keys = ["is_layer", "row", *CHAIN, "check"]
    cells = {
        (bool(key[0]), key[1], Column(*key[2:])): Cell(dict(Counter(group["verdict"])), _maximum(group["judged_error"]))
        for key, group in named.groupby(keys)
    }

    def rows(layers: bool) -> list[Row]:
        names = sorted({name for of_layer, name, _ in cells if of_layer == layers}, key=str.casefold)
        return [Row(name, [cells.get((layers, name, column)) for column in columns]) for name in names]

    return Matrix(columns, layers=rows(True), families=rows(False))


def _maximum(values: pandas.Series) -> float | None:
    largest = values.max()
    return None if math.isnan(largest) else float(largest)


def speeds(table: pandas.DataFrame) -> pandas.DataFrame:
    """The timed records, converter by converter, the slowest first."""
    timed = table[table["speed_ratio"].notna()]
    return timed.sort_values([*CHAIN, "speed_ratio"], kind="stable").reset_index(drop=True)


def worst(table: pandas.DataFrame, count: int) -> list[dict[str, Any]]:
    """The records to look at first, with `alike`: how many more of the same case, converter, check and verdict.

    Bad ones, if there are any; else those with the largest error. Every converter shows its worst failure, crash,
    and so on before any shows its second, so that one broken converter does not hide the others.
    """
    bad = table[table["verdict"].isin(BAD_VERDICTS)]
    shown = bad if len(bad) else table[(table["verdict"] == PASS) & table["error_ratio"].notna()]
    shown = shown.sort_values("error_ratio", ascending=False, kind="stable", na_position="last")
    same = [*CHAIN, "case", "check", "verdict"]
    shown = shown.assign(alike=shown.groupby(same)["case"].transform("size") - 1).drop_duplicates(same)
    shown = shown.assign(turn=shown.groupby([*CHAIN, "verdict"]).cumcount())
    first = shown.sort_values(["turn", "error_ratio"], ascending=[True, False], kind="stable").head(count)
    return [{str(key): value for key, value in row.items()} for row in first.to_dict("records")]
