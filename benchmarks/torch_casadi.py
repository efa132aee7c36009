"""Times every converter torch→casadi on six networks: value, Jacobian, Hessian and the conversion itself.

    python benchmarks/torch_casadi.py --networks mlp-tanh cnn --converters l4casadi torch --output DIR

Every way is timed against the baseline (the reference converter) in interleaved pairs, `parity.timing.compare_speed`:
its time over the baseline's, median over fresh builds with their interval. All CasADi functions are called alike: on
preallocated buffers (`Function.buffer`), as a solver calls them; torch is called eagerly. Conversions are timed apart;
where one takes long, a few of them are shared by all the builds, which then differ in their derivative functions and
buffers. What a way cannot do, or does wrongly, has no time but a reason.
"""

from __future__ import annotations

import argparse
import inspect
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: one thread each (ONNX Runtime keeps its own pool)

import csv
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import torch
from networks import NETWORKS, Network

from parity.cases.weights import draw_inputs
from parity.checks.derivatives import check_hessian, check_jacobian, projection
from parity.checks.value import check_value
from parity.converters.registry import Chain, converters, find_chain
from parity.errors import ParityError
from parity.paths import path
from parity.pipeline import convert_along
from parity.records import DEGENERATE, PASS
from parity.runtimes import Arrays, runtime_for
from parity.timing import compare_speed

CHECKS = {"value": check_value, "jacobian": check_jacobian, "hessian": check_hessian}
PATH = path("torch-casadi")
CONVERSIONS, COSTLY_MS = 8, 1000.0
COSTLY_CONVERSIONS = 2


@dataclass(frozen=True)
class Way:
    """A converter with its options, under the name of its column; without a converter, torch itself."""

    name: str
    converter: str = ""
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def chain(self) -> Chain:
        return find_chain(PATH, self.converter)


def ways() -> list[Way]:
    """Every converter that is installed, the reference's compiled form if it has one, and torch."""
    installed = [converter for converter in converters("torch", "casadi") if not converter.missing()]
    known = [Way(converter.name, converter.name) for converter in installed]
    reference = next(converter for converter in installed if converter.name == "reference")
    if "form" in inspect.signature(reference.function).parameters:
        known.insert(1, Way("reference-c", "reference", (("form", "c"),)))
    return [*known, Way("torch")]


@dataclass(frozen=True)
class Row:
    """One way on one network in one check. `ratio` is its time over the baseline's: above 1, the baseline is faster."""

    network: str
    check: str
    way: str
    dtype: str
    convert_ms: float | None
    conversions: int
    microseconds: float | None = None
    baseline_us: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    builds: int | None = None
    max_abs: float | None = None
    message: str = ""


class Converted:
    """A network made ready in one way; what fails to convert says why when it is asked for.

    In the first precision of the converter that it converts this network in: float64 where it can.
    """

    def __init__(self, network: Network, way: Way) -> None:
        self.network, self.way = network, way
        self.inputs: Arrays = draw_inputs(network.name, "normal", 1, (network.shape[1:],))
        self.use(self.dtypes[0])

    @property
    def dtypes(self) -> tuple[str, ...]:
        return self.way.chain.dtypes if self.way.converter else ("float32",)

    def use(self, dtype: str) -> None:
        """Take the network in this precision."""
        self.dtype = dtype
        self.source = runtime_for(self.network.model(), dtype)

    @cached_property
    def conversions(self) -> list[tuple[Any, float]] | Exception:
        """Artifacts, each with the milliseconds it took; or what the converter raised."""
        if not self.way.converter:
            return [(self.source.model, 0.0)]
        for dtype in self.dtypes:
            self.use(dtype)
            try:
                first = self._convert()  # the first of all is slower: it imports what the converter needs
                count = CONVERSIONS if first[1] < COSTLY_MS else COSTLY_CONVERSIONS - 1
                rest = [self._convert() for _ in range(count)]
                return rest if count == CONVERSIONS else [first, *rest]
            except Exception as error:
                reason = error
        return reason

    def _convert(self) -> tuple[Any, float]:
        edge = self.way.chain.converters[0]
        function = edge.function
        if self.way.options:
            options = dict(self.way.options)
            edge = replace(edge, function=lambda model, example: function(model, example, **options))
        example = self.source.example(self.inputs)
        conversion = convert_along(Chain(PATH, (edge,)), self.source.model, example)
        return conversion.artifacts[-1], conversion.milliseconds

    @property
    def made(self) -> list[tuple[Any, float]]:
        """The conversions; raises what the converter raised."""
        if isinstance(self.conversions, Exception):
            raise self.conversions
        return self.conversions

    @property
    def milliseconds(self) -> float:
        """What a conversion takes, the median."""
        return median(milliseconds for _, milliseconds in self.made)

    def callers(self, check: str) -> Callable[[], Callable[[], object]]:
        """Gives a fresh caller of the check at every call, going round the conversions."""
        artifacts = cycle(artifact for artifact, _ in self.made)
        weights = projection(self.source.value(self.inputs).shape[1])
        return lambda: runtime_for(next(artifacts), self.dtype).caller(check, self.inputs, weights)


def measure(network: Network, chosen: list[Way], baseline: Way, seconds: float) -> Iterator[Row]:
    """Rows of one network, the baseline's own first."""
    reference = runtime_for(network.model(), "float64")
    base = Converted(network, baseline)
    every = [base, *(Converted(network, way) for way in chosen if way != baseline)]
    for check in CHECKS:
        for converted in every:
            yield _row(converted, base, reference, check, seconds)


def _row(converted: Converted, base: Converted, reference: Any, check: str, seconds: float) -> Row:
    way, network = converted.way, converted.network
    try:
        artifact, conversions = converted.made[0][0], len(converted.made)
    except Exception as error:
        return Row(network.name, check, way.name, converted.dtype, None, 0, message=_reason(error))
    known: dict[str, Any] = {"network": network.name, "check": check, "way": way.name, "dtype": converted.dtype}
    known |= {"convert_ms": converted.milliseconds if way.converter else None, "conversions": conversions}
    try:
        finding = CHECKS[check](reference, runtime_for(artifact, converted.dtype), converted.inputs, converted.dtype)
        max_abs = finding.comparison.max_abs if finding.comparison else None
        if finding.verdict not in (PASS, DEGENERATE):
            return Row(**known, max_abs=max_abs, message="wrong: not timed")
        speed = compare_speed(converted.callers(check), base.callers(check), seconds)
    except Exception as error:
        return Row(**known, message=_reason(error))
    return Row(
        **known,
        microseconds=speed.source_us,
        baseline_us=speed.target_us,
        ratio=speed.ratio,
        low=speed.low,
        high=speed.high,
        builds=speed.builds,
        max_abs=max_abs,
    )


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return (lines[0] if isinstance(error, ParityError) else f"{type(error).__name__}: {lines[-1]}")[:200]


HEADING = """# torch→casadi: how fast

Written by `benchmarks/torch_casadi.py` (`tox -e bench`): microseconds per call, and in brackets the ratio to the
baseline, `{baseline}`, with its interval: above 1, the baseline is faster. `reference-c` is the compiled form, whose
conversion includes compiling. {versions}.

"""
PACKAGES = ("torch", "casadi", "l4casadi", "torch2casadi", "onnxruntime")


def page(rows: list[Row], baseline: str) -> str:
    """The table under its heading."""
    known = {package: find_spec(package) and version(package) for package in PACKAGES}
    versions = ", ".join(f"{package} {number or 'absent'}" for package, number in known.items())
    return HEADING.format(baseline=baseline, versions=versions) + table(rows)


def table(rows: list[Row]) -> str:
    """Markdown: microseconds per call, and in brackets the ratio to the baseline with its interval."""
    names = list(dict.fromkeys(row.way for row in rows))
    cells = {(row.network, row.check, row.way): _cell(row) for row in rows}  # a running benchmark lacks some
    lines = [f"| network | check | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for network, check in dict.fromkeys((row.network, row.check) for row in rows):
        lines.append(
            f"| {network} | {check} | " + " | ".join(cells.get((network, check, name), "") for name in names) + " |"
        )
    converted = {(row.network, row.way): row.convert_ms for row in rows if row.convert_ms is not None}
    for network in dict.fromkeys(row.network for row in rows):
        times = [f"{converted[network, name]:.3g} ms" if (network, name) in converted else "–" for name in names]
        lines.append(f"| {network} | conversion | " + " | ".join(times) + " |")
    reasons = dict.fromkeys(f"- {r.network}, {r.check}, {r.way}: {r.message}" for r in rows if r.message)
    return "\n".join([*lines, "", *reasons]) + "\n"


def _cell(row: Row) -> str:
    if row.microseconds is None:
        return "–"
    return f"{row.microseconds:.3g} µs (×{row.ratio:.3g}, {row.low:.3g}–{row.high:.3g})"


def main() -> None:
    known = {way.name: way for way in ways()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=[network.name for network in NETWORKS], metavar="NAME")
    parser.add_argument("--converters", nargs="+", choices=[*known], metavar="NAME", help=", ".join(known))
    parser.add_argument("--baseline", choices=[*known], default="reference", metavar="NAME")
    parser.add_argument("--seconds", type=float, default=2.0, help="spent on one ratio; default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("reports/benchmark"), metavar="DIR")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [known[name] for name in options.converters or known]
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with (options.output / "torch_casadi.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        for network in NETWORKS:
            if options.networks and network.name not in options.networks:
                continue
            for row in measure(network, chosen, known[options.baseline], options.seconds):
                rows.append(row)
                writer.writerow(asdict(row))
                file.flush()
                print(f"{row.network} {row.check} {row.way}: {row.message or _cell(row)}", file=sys.stderr, flush=True)
                (options.output / "torch_casadi.md").write_text(page(rows, options.baseline), encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
