"""What the fixture `parity` gives a test."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from parity.deviations import Deviation, explanation, overdue
from parity.errors import ParityError
from parity.records import EXPECTED, UNSUPPORTED, Record

if TYPE_CHECKING:
    from parity.cases.case import Case
    from parity.converters.registry import Chain
    from parity.worker import Worker

PROPERTY = "parity"
"""The user property by which records travel on test reports, also from pytest-xdist's workers."""


class Parity:
    """Compares models with what they were converted to; every record goes into the run's report."""

    def __init__(self, request: pytest.FixtureRequest, worker: Worker, timeout: float) -> None:
        self._request, self._worker, self._timeout = request, worker, timeout

    def check(self, source: Any, converted: Any, inputs: Any, **options: Any) -> list[Record]:
        """`parity.assert_parity`: AssertionError unless every check passes. Gives the records."""
        __tracebackhide__ = True
        from parity import api

        options.setdefault("name", self._request.node.name)
        return api.require(self._keep(api.check(source, converted, inputs, **options)))

    def convert(self, model: Any, target: str, example: Any, **options: Any) -> Any:
        """`parity.convert`."""
        from parity import api

        return api.convert(model, target, example, **options)

    def run(
        self,
        case: Case,
        chain: Chain,
        *,
        checks: Sequence[str] | None = None,
        regimes: Sequence[str] | None = None,
        deviations: Sequence[Deviation] = (),
        speed: bool = False,
        benchmark: Any = None,
    ) -> list[Record]:
        """Send a case through a chain of converters and check it at every kind of inputs; `speed` times it too.

        `checks` (`value`, `jacobian`, …) and `regimes` (`normal`, `large`, …) are those that are made, by default all
        that the path has. `deviations` lists failures that are expected; see `parity.deviations`. `benchmark`,
        pytest-benchmark's fixture, also gets the converted model's evaluation, if it agrees.

        A shipped or installed converter runs in a process of its own, one registered by a test runs in this one.
        The test fails if any check does, is an expected failure where the list explains all that do, and is skipped
        where the converter says no to all of them.
        """
        __tracebackhide__ = True
        from parity.api import failed
        from parity.pipeline import examine, plan_of, timed

        plan = tuple(
            point
            for point in plan_of(chain.path.name, case.family)
            if (checks is None or point.check in checks) and (regimes is None or point.regime in regimes)
        )
        plan = timed(plan, chain.path.name) if speed else plan
        try:
            if chain.installed and self._timeout:
                records = self._keep(self._worker.examine(case.id, chain, plan, self._timeout), deviations)
            else:
                records = self._keep(examine(case, chain, plan), deviations)
        except ParityError as error:
            pytest.fail(str(error), pytrace=False)
        failures = failed(records)
        if bad := [record for record in failures if not explanation(deviations, record)]:
            again = f"again: {bad[0].reproducer}"
            pytest.fail("\n".join([*(record.summary() for record in bad), again]), pytrace=False)
        if gone := overdue(deviations, case, chain.name, records):
            pytest.fail(f"agrees now, take it off the list of deviations: {gone[0].reason}", pytrace=False)
        if failures:
            pytest.xfail("; ".join(dict.fromkeys(explanation(deviations, record) for record in failures)))
        if all(record.verdict == UNSUPPORTED for record in records):
            pytest.skip(records[0].message)
        if benchmark is not None:
            _benchmark(benchmark, case, chain)
        return records

    def _keep(self, records: Iterable[Record], deviations: Sequence[Deviation] = ()) -> list[Record]:
        """Attach the records to the test's report one by one: those before an exception are kept."""
        kept = []
        for record in records:
            if record.family != "own":
                record = replace(record, reproducer=reproducer(record))
            if reason := explanation(deviations, record):
                record = replace(record, message="; ".join(filter(None, [EXPECTED + reason, record.message])))
            if record.speed_ratio is not None and "PYTEST_XDIST_WORKER" in os.environ:
                record = replace(record, message=f"{record.message}; timed under pytest-xdist, beside other tests")
            self._request.node.user_properties.append((PROPERTY, record.to_plain()))
            kept.append(record)
        return kept


def _benchmark(benchmark: Any, case: Case, chain: Chain) -> None:
    """Time the value by pytest-benchmark, for its JSON and its comparisons; the report has the paired ratio."""
    if not benchmark.enabled:  # by an option or under xdist; the fixture warns unless it is used
        benchmark(lambda: None)
        return
    import numpy as np

    from parity.pipeline import convert_along
    from parity.runtimes import runtime_for

    inputs, dtype = case.inputs(), chain.dtypes[0]
    source = runtime_for(case.model(), dtype)
    target = runtime_for(convert_along(chain, source.model, source.example(inputs)).artifacts[-1], dtype)
    benchmark.group = f"{chain.path.name} {case.id}"
    benchmark.extra_info.update(converter=chain.name, call=target.caller_description("value"))
    call = target.caller("value", inputs, np.ones(source.value(inputs).shape[1]))
    benchmark.pedantic(call, rounds=50, iterations=20, warmup_rounds=2)


def reproducer(record: Record) -> str:
    """The command that runs the record's case through the same converters again."""
    return f"parity repro {record.case} --path {record.path} --converter {record.converter}"
