"""Runs cases in a process of its own: a converter that crashes or hangs there costs its own verdicts and no others.

The process is started once and kept. It sends every record as soon as it is made, so what was measured before a
crash is kept.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

from parity.cases.case import case_from_id
from parity.converters.registry import Chain, find_chain
from parity.errors import ParityError
from parity.paths import path as path_named
from parity.pipeline import Point, examine, identity
from parity.records import CRASH, TIMEOUT, Record

THREADS = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"),
)
"""One thread per framework: their pools disturb one another, and speed ratios with them."""
ENVIRONMENT = {**dict.fromkeys(THREADS, "1"), "KERAS_BACKEND": "tensorflow"}
"""Keras reads its backend while it is imported; its models are judged on TensorFlow."""
START_SECONDS = 120.0
"""The process imports frameworks before its first answer: that is not the converter's time."""
LONGEST_POLL = 1e6
"""What the operating system takes for a time limit, in seconds."""


class Worker:
    """A process that examines cases; started at the first of them, and again after a crash."""

    def __init__(self) -> None:
        self._process: Any = None
        self._connection: Connection | None = None

    def examine(self, case_id: str, chain: Chain, plan: Sequence[Point], timeout: float) -> Iterator[Record]:
        """The records of a shipped case through an installed chain, and one per point left if the process ends.

        `timeout` is in seconds, for one record. Raises `ParityError` where the source itself cannot be judged.
        """
        connection = self._start()
        patience = max(timeout, START_SECONDS)
        done, answered = 0, False
        content: Any
        try:
            with suppress(ConnectionError):  # it died while idle: reading says so
                connection.send((case_id, chain.path.name, chain.name, tuple(plan)))
            while not answered:
                try:
                    ready = connection.poll(min(patience, LONGEST_POLL))
                    kind, content = connection.recv() if ready else (TIMEOUT, None)
                except (EOFError, ConnectionError):
                    kind, content = CRASH, None
                patience = timeout
                answered = kind in ("done", "error")
                if kind == "record":
                    done += 1
                    yield content
                elif kind == "error":
                    raise ParityError(content)
                elif kind in (CRASH, TIMEOUT):
                    yield from self._lost(kind, case_id, chain, plan, done, timeout)
                    return
        finally:
            if not answered:  # left early, by a time limit on tests say: what it still sends belongs to no later case
                self.close()

    def close(self) -> None:
        """End the process."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.join(0.5)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
        self._process = self._connection = None

    def _start(self) -> Connection:
        if self._connection is None or not self._process.is_alive():
            context = get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=serve, args=(theirs,), daemon=True, name="parity-worker")
            with _main_module_hidden(), _environment():
                self._process.start()
            theirs.close()
        return self._connection

    def _lost(
        self, verdict: str, case_id: str, chain: Chain, plan: Sequence[Point], done: int, timeout: float
    ) -> Iterator[Record]:
        """A record for every point that the process did not get to."""
        if verdict == TIMEOUT:
            self._process.kill()
        self._process.join()
        message = f"no answer within {timeout:g} s" if verdict == TIMEOUT else _death(self._process.exitcode)
        self.close()
        base = replace(identity(case_from_id(case_id, chain.path.source), chain), verdict=verdict, message=message)
        points = [(dtype, point) for dtype in chain.dtypes for point in plan]
        for dtype, point in points[done:]:
            yield replace(base, dtype=dtype, check=point.check, regime=point.regime, batch=point.batch)


@contextmanager
def _environment() -> Iterator[None]:
    """Frameworks read it when they are loaded, which the new process does at once."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Otherwise the new process first runs the script that called `pytest.main()`, once more."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def serve(connection: Connection) -> None:
    """The process's own loop: a request in, its records out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    while True:
        try:
            case_id, path, chain_name, plan = connection.recv()
        except EOFError:
            return
        try:
            for representation in path_named(path).representations:
                import_module(f"parity.runtimes.{representation.replace('-', '_')}")  # and with it, its framework
            connection.send(("ready", None))
            chain = find_chain(path_named(path), chain_name)
            for record in examine(case_from_id(case_id, chain.path.source), chain, plan):
                connection.send(("record", record))
            connection.send(("done", None))
        except ParityError as error:
            connection.send(("error", str(error)))
        except (BrokenPipeError, KeyboardInterrupt):
            return
        except Exception as error:
            connection.send(("error", f"{type(error).__name__}: {error}"))


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"the process was killed by {signal.Signals(-exitcode).name}"
    return f"the process ended with exit code {exitcode}"
