"""What the tests of the plugin, the worker, the command and the downstream face share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from parity.records import Record

pytest_plugins = "pytester"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """For processes that tests start: the threads of several would disturb one another."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def frameworks(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Everything that a run imports, imported once: pytester forgets what is imported during an in-process run."""
    import hypothesis  # noqa: F401  # its plugin imports it at the end of every run
    import torch

    from parity import api
    from parity.run_folder import RunFolder

    torch.set_num_threads(1)
    records = api.check(torch.nn.Linear(2, 1), "reference", torch.ones(1, 2))
    folder = RunFolder(tmp_path_factory.mktemp("warm"), "warm", {})
    folder.append(records[0])
    folder.close()
    import parity.recorder
    import parity.worker  # noqa: F401


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, frameworks: None) -> None:
    """Converters that a test registers are gone after it."""
    from parity.converters import registry

    registry.load_converters()
    monkeypatch.setattr(registry, "_CONVERTERS", dict(registry._CONVERTERS))


@pytest.fixture
def one_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch→casadi were the only path: the plugin's ways are the same for all of them, and this one is fast."""
    from parity import paths

    monkeypatch.setattr(paths, "PATHS", (paths.path("torch-casadi"),))


@pytest.fixture
def run(pytester: pytest.Pytester, registry: None, one_path: None) -> Callable[..., pytest.RunResult]:
    """Run pytest in the host repository `pytester.path`, in this process, in the order in which tests are written."""

    def run(*arguments: str) -> pytest.RunResult:
        return pytester.runpytest_inprocess("-p", "no:randomly", *arguments)

    return run


@pytest.fixture
def run_parity(run: Callable[..., pytest.RunResult]) -> Callable[..., pytest.RunResult]:
    """The same with `--parity`, converters in this process too, the report in the folder `report`."""
    return lambda *arguments: run("--parity", "--parity-timeout=0", "--parity-report=report", *arguments)


def install(site: Path, name: str, source: str) -> None:
    """Install a package of converters in a folder, as pip would: a module, and an entry point that names it."""
    metadata = site / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (site / f"{name}.py").write_text(source, encoding="utf-8")
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(f"[parity.converters]\n{name} = {name}\n", encoding="utf-8")


def rows(folder: Path) -> list[Record]:
    """The records of a report folder."""
    from parity.report.reading import read_records

    records, cut = read_records(folder / "results.csv")
    assert not cut
    return records


def node_ids(result: pytest.RunResult) -> list[str]:
    """What `--collect-only -q` listed."""
    return [line for line in result.outlines if "::" in line]
