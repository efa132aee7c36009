"""Two runs, or two converters of one run, side by side: what got worse, better, faster, slower."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from parity.errors import ParityError
from parity.records import BAD_VERDICTS, UNSUPPORTED
from parity.report.markdown import table_of, text
from parity.report.reading import read_records, tabulate
from parity.report.tables import as_rows, significant, speed_text, verdict_counts

if TYPE_CHECKING:
    import pandas

KEYS = ["path", "converter", "case", "dtype", "batch", "regime", "check"]
ERROR_FACTOR = 2.0
SHOWN = 50
"""Rows per table; the heading has the full count."""


class Differences(NamedTuple):
    """What two sets of records differ in: a text, and how many checks have a worse verdict in the second."""

    text: str
    regressed: int


def compare(first: Path, second: Path) -> Differences:
    """What changed from run `first` to run `second` (report folders or `results.csv` files), in Markdown."""
    return _report(_table(first), _table(second), KEYS, str(first), str(second))


def compare_converters(folder: Path, first_name: str, second_name: str) -> Differences:
    """How converter `second_name` differs from `first_name` on the same cases of one run, in Markdown."""
    table = _table(folder)
    known = sorted(set(table["converter"]))
    for name in (first_name, second_name):
        if name not in known:
            raise ParityError(f"no converter {name!r} in {folder}: it has {', '.join(known) or 'no records'}")
    first, second = (table[table["converter"] == name] for name in (first_name, second_name))
    return _report(first, second, [key for key in KEYS if key != "converter"], first_name, second_name)


def _table(report: Path) -> pandas.DataFrame:
    return tabulate(read_records(report / "results.csv" if report.is_dir() else report)[0])


def _report(
    first: pandas.DataFrame, second: pandas.DataFrame, keys: Sequence[str], first_name: str, second_name: str
) -> Differences:
    joined = _join(first, second, keys)
    both = joined[joined["_merge"] == "both"]
    counts = [verdict_counts(first), verdict_counts(second)]
    rows = [[verdict, str(counts[0][verdict]), str(counts[1][verdict])] for verdict in counts[0]]
    total = ["records", str(len(first)), str(len(second))]
    head = [
        "# Parity comparison",
        f"From **{text(first_name)}** to **{text(second_name)}**: {len(both)} records in both.",
        table_of(["", "first", "second"], [*rows, total], numbers_from=1),
    ]
    changes = _changes(joined)
    sections = [*head, *_verdicts(changes, keys), *_errors(both, keys), *_speeds(both, keys)]
    return Differences("\n\n".join(sections) + "\n", len(changes["regressed"]))


def _join(first: pandas.DataFrame, second: pandas.DataFrame, keys: Sequence[str]) -> pandas.DataFrame:
    # Records that share all keys (timings, say) are paired in the order in which they came.
    sides = [side.assign(occurrence=side.groupby(list(keys), dropna=False).cumcount()) for side in (first, second)]
    on = [*keys, "occurrence"]
    return sides[0].merge(sides[1], on=on, how="outer", suffixes=("_first", "_second"), indicator=True)


def _severity(verdict: str) -> int:
    """Fewer is better; a change among verdicts of one severity is neither a regression nor a fix."""
    return 2 if verdict in BAD_VERDICTS else 1 if verdict == UNSUPPORTED else 0


def _changes(joined: pandas.DataFrame) -> dict[str, pandas.DataFrame]:
    both = joined[(joined["_merge"] == "both") & (joined["verdict_first"] != joined["verdict_second"])]
    step = both["verdict_second"].map(_severity) - both["verdict_first"].map(_severity)
    return {
        "regressed": both[step > 0],
        "fixed": both[step < 0],
        "changed": both[step == 0],
        "new": joined[joined["_merge"] == "right_only"],
        "gone": joined[joined["_merge"] == "left_only"],
    }


def _verdicts(changes: dict[str, pandas.DataFrame], keys: Sequence[str]) -> list[str]:
    count = ", ".join(f"{len(rows)} {name}" for name, rows in changes.items())
    sections = ["## Verdicts", count.capitalize() + "."]
    for name, rows in changes.items():
        verdicts = rows[["verdict_first", "verdict_second"]].fillna("").itertuples(index=False)
        sections += _section(f"### {name.capitalize()}", rows, keys, [" → ".join(filter(None, v)) for v in verdicts])
    return sections


def _errors(both: pandas.DataFrame, keys: Sequence[str]) -> list[str]:
    first, second = both["error_ratio_first"], both["error_ratio_second"]
    known = both[first.notna() & second.notna() & (first != second)]
    # The quotient orders the table; a comparison by products needs no care about zero.
    first, second = known["error_ratio_first"], known["error_ratio_second"]
    changed = known[(second > ERROR_FACTOR * first) | (first > ERROR_FACTOR * second)]
    changed = changed.assign(factor=changed["error_ratio_second"] / changed["error_ratio_first"])
    changed = changed.sort_values("factor", ascending=False, kind="stable")
    ends = zip(changed["error_ratio_first"], changed["error_ratio_second"], strict=True)
    values = [f"{significant(old)} → {significant(new)}" for old, new in ends]
    worse = int((changed["factor"] > 1).sum())
    title = f"## Errors: {worse} larger, {len(changed) - worse} smaller, by more than a factor {ERROR_FACTOR:g}"
    return _section(title, changed, keys, values) or [title]


def _speeds(both: pandas.DataFrame, keys: Sequence[str]) -> list[str]:
    first, second = both["speed_ratio_first"], both["speed_ratio_second"]
    slower = (second < both["speed_low_first"]) & (first > both["speed_high_second"])
    faster = (second > both["speed_high_first"]) & (first < both["speed_low_second"])
    changed = both[slower | faster]
    values = [
        " → ".join(
            speed_text({name: row[f"{name}_{side}"] for name in ("speed_ratio", "speed_low", "speed_high")})
            for side in ("first", "second")
        )
        for row in as_rows(changed)
    ]
    title = f"## Speed: {int(slower.sum())} slower, {int(faster.sum())} faster, outside both intervals"
    return _section(title, changed, keys, values) or [title]


def _section(title: str, rows: pandas.DataFrame, keys: Sequence[str], values: Sequence[str]) -> list[str]:
    """A titled table of the rows' keys and one value each; nothing for no rows."""
    if rows.empty:
        return []
    names = [key for key in keys if key != "batch" or rows["batch"].notna().any()]
    cells = rows[names].head(SHOWN).itertuples(index=False)
    lines = [
        [*(significant_key(cell) for cell in line), value] for line, value in zip(cells, values[:SHOWN], strict=True)
    ]
    left_out = [f"… and {len(rows) - SHOWN} more."] if len(rows) > SHOWN else []
    return [title, table_of([*names, "first → second"], lines, numbers_from=len(names)), *left_out]


def significant_key(value: object) -> str:
    """A key's value for a table: batch sizes are floats only because a table has no missing integers."""
    return ("" if value != value else f"{value:g}") if isinstance(value, float) else text(value)
