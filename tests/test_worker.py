"""Converters that crash, hang and leave, in the process of their own: they cost their own verdicts and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import install, rows

from parity.converters.registry import Chain, Converter
from parity.paths import path
from parity.pipeline import PLAN
from parity.records import Record
from parity.worker import Worker

CONVERTERS = """
import ctypes
import os
import sys
import time

import parity


@parity.converter("torch", "casadi")
def segfaulting(model, example):
    ctypes.string_at(0)


@parity.converter("torch", "casadi")
def exiting(model, example):
    sys.exit(0)


@parity.converter("torch", "casadi")
def leaving(model, example):
    os._exit(3)


@parity.converter("torch", "casadi")
def raising(model, example):
    raise ZeroDivisionError("two\\nlines")


@parity.converter("torch", "casadi")
def refusing(model, example):
    raise parity.Unsupported("no layer is known to this converter")


@parity.converter("torch", "casadi")
def talking(model, example):
    print("to stdout", file=sys.stdout, flush=True)
    os.write(1, b"to the file descriptor")
    return parity.convert(model, "casadi", example)


@parity.converter("torch", "casadi")
def hanging_at_tiny(model, example):
    return at_tiny(model, example, lambda: time.sleep(600))


@parity.converter("torch", "casadi")
def crashing_at_tiny(model, example):
    return at_tiny(model, example, lambda: ctypes.string_at(0))


KEPT = []


def at_tiny(model, example, action):
    import casadi

    class Callback(casadi.Callback):
        def __init__(self):
            casadi.Callback.__init__(self)
            self.construct("f", {"enable_fd": True})

        def get_sparsity_in(self, number):
            return casadi.Sparsity.dense(f.size1_in(0), 1)

        def get_sparsity_out(self, number):
            return casadi.Sparsity.dense(f.size1_out(0), 1)

        def eval(self, arguments):
            if abs(arguments[0].full()).max() < 1e-4:
                action()
            return [f(arguments[0])]

    f = parity.convert(model, "casadi", example)
    KEPT.append(Callback())
    return KEPT[-1]
"""
BEFORE_TINY = [point.regime for point in PLAN].index("tiny")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the converters above are installed."""
    site = tmp_path_factory.mktemp("site")
    install(site, "bad_converters", CONVERTERS)
    return site


@pytest.fixture(scope="module")
def worker(site: Path) -> Iterator[Worker]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        worker = Worker()
        yield worker
        worker.close()


@pytest.fixture
def examine(worker: Worker) -> Callable[..., list[Record]]:
    """A function that examines a case by one of the converters above, which only the worker's process imports."""
    return lambda name, case="SELU-0-0", timeout=60.0: list(worker.examine(case, chain(name), PLAN, timeout))


def chain(name: str) -> Chain:
    edge = Converter("torch", "casadi", name, lambda model, example: None, ("float64",), ())
    return Chain(path("torch-casadi"), (edge,))


def verdicts(records: list[Record]) -> list[str]:
    assert [(record.check, record.regime, record.batch) for record in records] == [
        (point.check, point.regime, point.batch) for point in PLAN
    ]
    return [record.verdict for record in records]


def messages(records: list[Record]) -> set[str]:
    return {record.message for record in records if record.verdict != "pass"}


@pytest.mark.parametrize(
    ("name", "message"),
    {
        "segfaulting": "the process was killed by SIGSEGV",
        "exiting": "the process ended with exit code 0",
        "leaving": "the process ended with exit code 3",
    }.items(),
)
def test_a_crash_is_a_verdict(examine, name, message):
    records = examine(name)
    assert verdicts(records) == ["crash"] * len(PLAN)
    assert messages(records) == {message}
    assert {(record.case, record.converter, record.family, record.layers) for record in records} == {
        ("SELU-0-0", name, "layer", "SELU")
    }


def test_a_crash_keeps_what_was_measured_and_the_next_case_runs(examine):
    records = examine("crashing_at_tiny")
    assert verdicts(records) == ["pass"] * BEFORE_TINY + ["crash"] * (len(PLAN) - BEFORE_TINY)
    assert all(record.error_ratio is not None for record in records[:BEFORE_TINY])
    assert verdicts(examine("reference", case="Linear-0-0")) == ["pass"] * len(PLAN)


def test_a_converter_that_hangs_is_given_up(examine):
    examine("reference")  # what is imported at the first use is
    records = examine("hanging_at_tiny", timeout=2.5)
    assert verdicts(records) == ["pass"] * BEFORE_TINY + ["timeout"] * (len(PLAN) - BEFORE_TINY)
    assert messages(records) == {"no answer within 2.5 s"}


def test_exceptions_cost_no_process(examine, worker, capfd):
    assert verdicts(examine("talking")) == ["pass"] * len(PLAN)
    process = worker._process.pid
    raising = examine("raising")
    assert verdicts(raising) == ["error"] * len(PLAN)
    assert messages(raising) == {"ZeroDivisionError: two lines (bad_converters.py:27)"}
    refusing = examine("refusing")
    assert verdicts(refusing) == ["unsupported"] * len(PLAN)
    assert messages(refusing) == {"no layer is known to this converter"}
    assert verdicts(examine("reference", timeout=float("inf"))) == ["pass"] * len(PLAN)
    assert worker._process.pid == process


def test_what_is_left_unread_belongs_to_no_later_case(worker):
    first = worker.examine("Linear-0-0", chain("reference"), PLAN, 60.0)
    assert next(first).case == "Linear-0-0"
    first.close()
    second = list(worker.examine("SELU-0-0", chain("reference"), PLAN, 60.0))
    assert {record.case for record in second} == {"SELU-0-0"}
    assert verdicts(second) == ["pass"] * len(PLAN)


def test_a_process_that_died_while_idle_is_replaced(worker):
    worker._start()
    worker._process.kill()
    worker._process.join()
    assert verdicts(list(worker.examine("Linear-0-0", chain("reference"), PLAN, 60.0))) == ["pass"] * len(PLAN)


def test_a_run_with_a_crashing_converter(pytester, site, monkeypatch):
    """From the script of a user that calls pytest without a guard: it must not run once more in the new process."""
    monkeypatch.setenv("PYTHONPATH", str(site))
    script = pytester.makepyfile(
        script="""
        import pytest
        print("the script runs")
        pytest.main(["--parity", "--parity-report=report", "-p", "no:randomly", "-k", "SELU-0-0",
                     "--parity-converter=crashing_at_tiny,reference,refusing"])
        """
    )
    result = pytester.runpython(script)
    assert result.outlines.count("the script runs") == 1
    result.assert_outcomes(failed=1, passed=1, skipped=1, deselected=result.parseoutcomes()["deselected"])
    result.stdout.fnmatch_lines(
        [
            "*value tiny batch 1: crash: the process was killed by SIGSEGV",
            "again: parity repro SELU-0-0 --path torch-casadi --converter crashing_at_tiny",
            f"27 checks of 3 cases: {BEFORE_TINY + 9} pass, 9 unsupported, {9 - BEFORE_TINY} crash",
        ]
    )
    assert len(rows(pytester.path / "report")) == 3 * len(PLAN)
