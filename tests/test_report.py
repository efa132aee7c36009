"""The report of a run: what people read in the page and the summary, and what machines read in the JSON."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from parity import report
from parity.errors import ParityError
from parity.records import Record, ResultsFile, load, to_table
from parity.report import plots, tables
from parity.report.formulations import formulations
from parity.report.reading import read_records, read_run

GOOD = Record(
    run="r1",
    path="torch-casadi",
    converter="reference",
    case="Linear-0-0",
    family="layer",
    layers="Linear",
    seed=0,
    dtype="float64",
    batch=1,
    regime="normal",
    check="value",
    verdict="pass",
    error_ratio=0.5,
    max_abs=1e-16,
    reproducer="parity repro Linear-0-0",
)
BAD = replace(GOOD, verdict="fail", error_ratio=834.0, blame_layer="Linear_2", message="worst element [0, 3]")
TIMED = replace(GOOD, case="network-0-0", family="network", speed_ratio=2.0, speed_low=1.9, speed_high=2.1)
HOSTILE = (
    "</script><script>alert(1)</script>",
    '<img src=x onerror="alert(2)">',
    "&lt;b&gt; & <img src=x onerror=alert(3)>",
    "quotes \" ' ` and, a comma",
    "line\r\nbreak \u2028 \u202e 漢字 ü",
    "<!-- | {{ 7919 * 104729 }} ``` *",
)


def written(folder: Path, records: Iterable[Record]) -> Path:
    """A report folder as a run leaves it, without an environment."""
    results = ResultsFile(folder / "results.csv")
    for record in records:
        results.append(record)
    results.close()
    return folder


class Page(HTMLParser):
    """What a browser without scripts makes of a page: its elements, its visible text, its script elements."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.links: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self.in_link = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag == "a":
            self.in_link = True
            self.links.append((dict(attributes), ""))

    def handle_endtag(self, tag: str) -> None:
        self.in_link = self.in_link and tag != "a"

    def handle_data(self, data: str) -> None:
        attributes = self.elements[-1][1] if self.elements else {}
        if self.cdata_elem == "script":
            self.scripts[attributes.get("id") or "code"] = data
        elif self.cdata_elem is None:
            self.text += data
            if self.in_link:
                self.links[-1] = (self.links[-1][0], self.links[-1][1] + data)

    def cell(self, row: str, check: str, converter: str = "reference") -> str:
        """The text of a cell of the matrix."""
        found = [
            text
            for a, text in self.links
            if (a.get("data-row"), a.get("data-check")) == (row, check) and a.get("data-converter") == converter
        ]
        assert len(found) == 1
        return " ".join(found[0].split())


def strict_json(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_page_says_what_happened_and_loads_nothing(tmp_path: Path) -> None:
    records = [GOOD, BAD, TIMED, replace(GOOD, verdict="unsupported", error_ratio=None, layers="Upsample")]
    path = report.write(written(tmp_path, records), notices=["path keras-torch: pip install 'pytest-parity[keras]'"])
    page = Page(path)
    assert path == tmp_path / "index.html"
    for shown in (
        "✗ fail",
        "– unsupported",
        "pip install 'pytest-parity[keras]'",
        "first at Linear_2",
        "834",
        "parity repro Linear-0-0",
        "limit 10 for float64, 2 for float32",
        "2.00× [1.90, 2.10]",
        "faster",
    ):
        assert shown in page.text
    addresses = [a[name] for _, a in page.elements for name in ("src", "href", "action", "data") if name in a]
    assert addresses and all(address and address.startswith("#") for address in addresses)
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert policy and "default-src 'none'" in policy
    style = re.search("<style>(.*?)</style>", path.read_text(encoding="utf-8"), re.DOTALL)
    assert style and "@import" not in style[1] and not re.search(r"url\((?!['\"]?data:)", style[1])


def test_policy_allows_exactly_the_script_of_the_page(tmp_path: Path) -> None:
    import base64
    import hashlib

    page = Page(report.write(written(tmp_path, [GOOD])))
    digest = base64.b64encode(hashlib.sha256(page.scripts["code"].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}' blob:" in str(page.elements)
    assert set(page.scripts) == {"data", "library", "code"}


@pytest.mark.parametrize("evil", HOSTILE)
def test_hostile_strings_are_text(tmp_path: Path, evil: str) -> None:
    names = [field.name for field in fields(Record) if field.type == "str" and field.name != "verdict"]
    changes: list[dict[str, Any]] = [{name: evil} for name in names]
    records = [replace(TIMED if n % 2 else BAD, **change) for n, change in enumerate(changes)]
    written(tmp_path, [*records, replace(GOOD, verdict=evil)])
    (tmp_path / "environment.json").write_text(json.dumps({evil: [evil, {evil: evil}]}))
    page = Page(report.write(tmp_path, notices=[evil]))
    tags = {tag for tag, _ in page.elements}
    assert "img" not in tags and "b" not in tags
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 3
    assert evil.split("\r")[0] in page.text and "829348951" not in page.text.replace(evil, "")
    data = strict_json(page.scripts["data"])
    assert [row[1:] for row in data["rows"]] == [list(r.to_plain().values()) for r in read_run(tmp_path).records]
    assert strict_json((tmp_path / "results.json").read_text())["records"][0]["run"] == evil
    assert evil not in report.summary(tmp_path) or not set(evil) & set("<&")


def test_records_come_back_exactly(tmp_path: Path) -> None:
    records = [BAD, replace(BAD, error_ratio=math.inf, message=HOSTILE[4]), replace(TIMED, seed=2**60)]
    assert read_records(written(tmp_path, records) / "results.csv") == (records, False)


def test_matrix_counts(tmp_path: Path) -> None:
    def some(count: int, verdict: str, **changes: Any) -> list[Record]:
        error = {"pass": 0.5, "fail": 834.0}.get(verdict)
        return [replace(GOOD, verdict=verdict, error_ratio=error, **changes) for _ in range(count)]

    records = [
        *some(15, "pass"),
        *some(3, "pass", check="jacobian"),
        *some(12, "fail", check="jacobian"),
        *some(2, "unsupported", layers="Upsample"),
        *some(4, "pass", layers="Tanh>Add"),
        *some(1, "unsupported", layers="Tanh>Add"),
        *some(1, "degenerate", layers="Tanh>Add", check="hessian"),
        *some(6, "crash", family="dag", layers="Linear>Tanh"),
        *some(1, "pass", converter="l4casadi"),
    ]
    page = Page(report.write(written(tmp_path, records)))
    assert page.cell("Linear", "value") == "✓ 150.500"
    assert page.cell("Linear", "jacobian") == "✗ 3/15834"
    assert page.cell("Upsample", "value") == "– unsupported"
    assert page.cell("Add", "value") == "✓ 4, – 10.500"
    assert page.cell("Add", "hessian") == "∅ degenerate"
    assert page.cell("dag", "value") == "✗ 0/6crash"
    assert page.cell("Linear", "value", "l4casadi") == "✓ 10.500"
    (matrix,) = tables.matrices(read_run(tmp_path).table)
    assert matrix.columns == [
        ("reference", "value"),
        ("reference", "jacobian"),
        ("reference", "hessian"),
        ("l4casadi", "value"),
    ]
    assert [row.name for row in matrix.layers] == ["Add", "Linear", "Upsample"]
    assert [row.name for row in matrix.families] == ["dag"]
    assert "| Linear | ✓ 15 (0.500) | ✗ 3/15 (834) |" in report.summary(tmp_path)


def test_every_path_has_its_own_matrix() -> None:
    table = to_table([GOOD, replace(GOOD, path="keras-torch", layers="Dense", error_ratio=math.inf)])
    matrices = tables.matrices(table)
    assert [(m.path, [row.name for row in m.layers]) for m in matrices] == [
        ("keras-torch", ["Dense"]),
        ("torch-casadi", ["Linear"]),
    ]
    assert matrices[0].layers[0].cells[0].note == "∞"  # type: ignore[union-attr]


def test_ranking_puts_the_best_first() -> None:
    other = replace(GOOD, converter="aaa", error_ratio=3.0, convert_ms=20.0)
    ranked = report.ranking(to_table([other, other, replace(BAD, converter="bbb"), GOOD, GOOD, TIMED]))
    assert list(ranked["converter"]) == ["reference", "aaa", "bbb"]
    first = ranked.iloc[0]
    assert (first["cases"], first["records"], first["pass"], first["fail"]) == (2, 3, 3, 0)
    assert (first["median_error"], first["median_speed"], first["passed_share"]) == (0.5, 2.0, 1.0)
    assert list(ranked["worst_error"]) == [0.5, 3.0, 834.0]
    assert report.ranking(to_table([])).empty


def test_worst_cases_take_turns_between_converters() -> None:
    slight = replace(BAD, converter="l4casadi", error_ratio=11.0)
    cases = tables.worst(to_table([*[replace(BAD, case=f"Linear-0-{n}") for n in range(3)], slight, GOOD]), 5)
    assert [(row["converter"], row["case"], row["alike"]) for row in cases] == [
        ("reference", "Linear-0-0", 2),
        ("l4casadi", "Linear-0-0", 0),
    ]


def test_speed_verdict_needs_a_margin() -> None:
    def verdict(low: float, high: float) -> str:
        return tables.speed_verdict({"speed_low": low, "speed_high": high})

    intervals = [(1.06, 1.2), (0.7, 0.94), (0.98, 1.03), (1.01, 1.2), (0.5, 2.0), (math.nan, math.nan)]
    assert [verdict(*ends) for ends in intervals] == ["faster", "slower", "same", "unclear", "unclear", ""]


def test_formulations_are_compared_by_ratios(tmp_path: Path) -> None:
    solved = replace(TIMED, path="torch-optimization", case="surrogate-0-0", layers="Linear>ReLU", check="optimum")
    first = replace(solved, converter="big-m", variables=30, constraints=20, binaries=8, convert_ms=5.0,
                    target_us=4000.0, message="highs: Optimal, 0.1 s")  # fmt: skip
    second = replace(first, converter="reduced-space", variables=2, constraints=0, binaries=0, convert_ms=10.0,
                     speed_ratio=0.5, target_us=16000.0, message="ipopt: Solve_Succeeded, local only")  # fmt: skip
    stuck = replace(second, converter="gray-box", verdict="degenerate", speed_ratio=None, target_us=None)
    untimed = replace(stuck, case="digits-0-0")
    page = report.write(written(tmp_path, [stuck, second, first, untimed])).read_text()
    (network,) = formulations(read_run(tmp_path).table)
    assert (network.case, network.layers) == ("surrogate-0-0", "Linear>ReLU")
    assert network.rows == [
        ("big-m", "proven", "30 (15.0×)", "20 (1.00×)", "8 (1.00×)", "5 (1.00×)", "4 (1.00×)"),
        ("reduced-space", "local", "2 (1.00×)", "0", "0", "10 (2.00×)", "16 (4.00×)"),
        ("gray-box", "degenerate", "2 (1.00×)", "0", "0", "10 (2.00×)", ""),
    ]
    assert "16 (4.00×)" in page and "| big-m | proven | 30 (15.0×) |" in (tmp_path / "summary.md").read_text()
    assert formulations(to_table([GOOD, BAD])) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.5, "0.500"), (9.999, "10.0"), (834.2, "834"), (123456, "123000"), (1.06e6, "1.06e6"),
     (1e-7, "1.00e-7"), (-2.5, "-2.50"), (math.inf, "∞"), (math.nan, ""), (None, "")],
)  # fmt: skip
def test_significant_digits(value: float | None, text: str) -> None:
    assert tables.significant(value) == text


def test_not_a_number_is_worse_than_any_number_and_stays_strict_json(tmp_path: Path) -> None:
    nan = replace(BAD, error_ratio=math.nan, max_abs=math.inf, message="7 elements are NaN")
    page = Page(report.write(written(tmp_path, [BAD, nan])))
    first, second = strict_json((tmp_path / "results.json").read_text())["records"]
    assert (first["error_ratio"], second["error_ratio"], second["max_abs"]) == (834.0, "nan", "inf")
    assert page.cell("Linear", "value") == "✗ 0/2∞"
    assert tables.worst(read_run(tmp_path).table, 1)[0]["message"] == "7 elements are NaN"


@pytest.mark.parametrize("records", [[], [GOOD]])
def test_a_run_just_begun_or_killed_reports(tmp_path: Path, records: list[Record]) -> None:
    page = Page(report.write(written(tmp_path, records), finished=False))
    assert f"{len(records)} records so far" in page.text
    assert ("No records yet" in page.text) == (not records)
    with (tmp_path / "results.csv").open("a", encoding="utf-8") as file:
        csv.writer(file).writerow(GOOD.to_plain().values())
    assert f"{len(records) + 1} records so far" in report.summary(tmp_path)
    assert "records so far" not in Page(report.write(tmp_path, finished=True)).text


def test_a_run_reported_again_keeps_its_notices(tmp_path: Path) -> None:
    report.write(written(tmp_path, [GOOD]), notices=["path keras-torch did not run"])
    assert "keras-torch did not run" in Page(report.write(tmp_path)).text
    assert "keras-torch did not run" in report.summary(tmp_path)
    assert "keras-torch" not in Page(report.write(tmp_path, notices=[])).text


def test_limits_are_those_of_the_run(tmp_path: Path) -> None:
    written(tmp_path, [GOOD])
    (tmp_path / "environment.json").write_text('{"limits": {"float64": 7, "float32": null}}')
    assert "limit 7 for float64)" in Page(report.write(tmp_path)).text


def test_speed_plot_shows_both_ends_of_many() -> None:
    timed = [replace(TIMED, case=f"network-0-{n}", speed_ratio=n + 1.0) for n in range(200)]
    plot = plots.speed_plot(to_table(timed))
    assert plot.count("<circle") == plots.SPEED_ROWS
    assert "network-0-0 " in plot and "network-0-199 " in plot and "network-0-100 " not in plot


def test_every_cut_of_a_killed_run_is_readable(tmp_path: Path) -> None:
    records = [GOOD, replace(BAD, message='said "no",\r\nthen\nü'), GOOD]
    ends = [(written(tmp_path, records[:count]) / "results.csv").stat().st_size for count in range(4)]
    path = tmp_path / "results.csv"
    content = path.read_bytes()
    for end in range(1, len(content)):
        path.write_bytes(content[:end])
        complete = sum(end >= size for size in ends[1:])
        assert read_records(path) == (records[:complete], end not in ends)
    assert "cut off" in Page(report.write(tmp_path)).text
    assert len(load(tmp_path)) >= 2


def test_what_is_no_run_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"no results at .*results\.csv"):
        report.write(tmp_path)
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ParityError, match="lacks the columns run, path"):
        report.write(tmp_path)
    written(tmp_path, [])
    (tmp_path / "results.csv").open("a").write(",".join(["x"] * len(fields(Record))) + "\n")
    with pytest.raises(ParityError, match=r"is not a results\.csv"):
        report.write(tmp_path)


def test_summary_is_markdown_that_no_message_breaks(tmp_path: Path) -> None:
    records = [
        replace(BAD, case=f"dag-0-{n}", family="dag", message="a | b <i> `c`", reproducer="```") for n in range(99)
    ]
    text = report.summary(written(tmp_path, records))
    assert "✗ 99 fail" in text and "a \\| b &lt;i&gt; \\`c\\`" in text and "````sh\n```\n````" in text
    assert len(text) < 10_000


def test_solution_sensitivities_are_drawn(tmp_path: Path) -> None:
    of_path = replace(GOOD, path="ocp-sensitivity", converter="acados", check="sensitivity", family="scaling")
    records = [
        replace(of_path, check="steps", message="off by 1.0e-02 at step 1e-01, 3.0e-09 at step 1e-05"),
        replace(of_path, message="margins: complementarity 2.0e-02, LICQ 1.0e+00", error_ratio=math.inf),
        *(
            replace(of_path, layers=f"nx=4 nu=2 np={count} N=20", speed_ratio=10.0 * count, target_us=5.0)
            for count in (1, 6)
        ),
    ]
    page = report.write(written(tmp_path, records)).read_text(encoding="utf-8")
    drawn = page.partition('<section id="sensitivities">')[2].partition("</section>")[0]
    assert drawn.count("<svg") == 5
    assert "acados Linear-0-0: 0.1, 0.01" in drawn, "step and error"
    assert "acados: 6, 60" in drawn, "parameters and speed"
    assert "Solution sensitivities" not in Page(report.write(written(tmp_path / "other", [GOOD]))).text


def test_expected_failures_are_told_from_others(tmp_path: Path) -> None:
    known = replace(BAD, message="expected: a known error of the exporter", blame_layer="")
    page = Page(report.write(written(tmp_path / "known", [GOOD, known])))
    assert "✗ fail (all expected)" in page.text and "1 (all expected)" in page.text
    assert "Largest errors" in page.text and "Worst cases" not in page.text
    assert "failed · " not in page.text, "nor in the title"
    summary = report.summary(tmp_path / "known")
    assert "✗ 1 fail (all expected)" in summary and "a known error" not in summary

    both = written(tmp_path / "both", [GOOD, known, replace(BAD, case="Linear-0-9")])
    summary = report.summary(both)
    assert "✗ 2 fail (1 expected)" in summary
    worst = summary.partition("## Worst cases")[2]
    assert "Linear-0-9" in worst and "a known error" not in worst
    page = Page(report.write(both))
    assert "1 failed" in page.text and page.cell("Linear", "value").startswith("✗ 1/3")


def test_comparison_finds_regressions_and_fixes(tmp_path: Path) -> None:
    cases = [replace(GOOD, case=f"Linear-0-{n}") for n in range(5)]
    broken = [replace(record, verdict="fail", error_ratio=50.0) for record in cases]
    slower = replace(TIMED, speed_ratio=1.0, speed_low=0.9, speed_high=1.1)
    first = written(tmp_path / "first", [cases[0], broken[1], *cases[2:4], TIMED])
    second = written(tmp_path / "second", [broken[0], cases[1], replace(cases[2], error_ratio=1.4), cases[4], slower])
    text, regressed = report.compare(first, second)
    assert regressed == 1
    assert "1 regressed, 1 fixed, 0 changed, 1 new, 1 gone." in text
    assert re.search(r"### Regressed\n\n.*\n.*\n\| .*Linear-0-0 .*pass → fail", text)
    assert re.search(r"### Fixed\n\n.*\n.*\n\| .*Linear-0-1 .*fail → pass", text)
    assert "## Errors: 2 larger, 1 smaller" in text and "0.500 → 1.40" in text
    assert "## Speed: 1 slower, 0 faster" in text and "2.00× [1.90, 2.10] → 1.00× [0.900, 1.10]" in text
    assert "0 regressed, 0 fixed, 0 changed, 0 new, 0 gone." in report.compare(first, first).text


def test_two_converters_of_one_run_compare(tmp_path: Path) -> None:
    written(tmp_path, [GOOD, replace(BAD, converter="l4casadi"), replace(GOOD, case="Linear-0-1")])
    text, _ = report.compare_converters(tmp_path, "reference", "l4casadi")
    assert "1 regressed, 0 fixed, 0 changed, 0 new, 1 gone." in text
    with pytest.raises(ParityError, match=r"no converter 'nope' in .*: it has l4casadi, reference"):
        report.compare_converters(tmp_path, "reference", "nope")
