"""The pytest face: options, the marker, fixtures, and the shipped suites. It imports no framework."""

from __future__ import annotations

import importlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from parity.errors import MissingPackage, ParityError

if TYPE_CHECKING:
    from parity.cases.case import Case
    from parity.converters.registry import Chain, Converter
    from parity.fixture import Parity
    from parity.paths import Path as ConversionPath

SUITES = "parity/suites/"
"""How the node ids of shipped tests begin, wherever the package is installed."""


@dataclass(frozen=True)
class Settings:
    """What the options say."""

    enabled: bool
    paths: tuple[ConversionPath, ...]
    converters: tuple[str, ...]
    cases: int | None
    seed: int
    report: str
    timeout: float

    def chains(self, path: ConversionPath) -> list[Chain]:
        """The converter chains along `path` that the options let run."""
        from parity.converters.registry import chains

        return [chain for chain in chains(path) if self.wants(chain.on_request, _names(chain))]

    def wants(self, on_request: bool, names: set[str]) -> bool:
        """Whether a converter, or a chain, with any of these names is to run."""
        return bool({ALL, *names} & set(self.converters)) if self.converters else not on_request

    def absent(self, path: ConversionPath) -> list[Converter]:
        """The converters along `path` that are to run, and cannot: packages of theirs are missing."""
        from parity.converters.registry import not_installed

        return [each for each in not_installed(path) if self.wants(each.on_request, {each.name})]

    def on_request(self, path: ConversionPath) -> list[str]:
        """Names of the chains along `path` that would run if they were asked for."""
        from parity.converters.registry import chains

        return [chain.name for chain in chains(path) if chain.on_request and not self.wants(True, _names(chain))]


def _names(chain: Chain) -> set[str]:
    return {chain.name, *(edge.name for edge in chain.converters)}


ALL = "all"
"""Stands for every converter, in `--parity-converter all`."""
SETTINGS = pytest.StashKey[Settings]()
DESELECTED = pytest.StashKey[int]()
DESELECTED_BY_WORKER = "parity_deselected"
OPTIONS = {
    "path": ("NAME", "Run only this path (may be repeated), such as torch-casadi."),
    "converter": ("NAME", "Run only this converter, or chain joined by + (may be repeated); all: other projects' too."),
    "cases": ("N", "Number of random models per path."),
    "seed": ("N", "Seed that all random models come from. Default: 0."),
    "report": ("DIR", "Folder that the report is written to. Default: reports/<date-time>/."),
    "timeout": ("SECONDS", "Longest time for one check before it is given up; 0 runs converters in this process."),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("parity", "is the converted model still the same function?")
    group.addoption("--parity", action="store_true", help="Also run parity tests: the shipped suites and your own.")
    for name, (metavar, text) in OPTIONS.items():
        repeated = name in ("path", "converter")
        group.addoption(f"--parity-{name}", metavar=metavar, help=text, action="append" if repeated else "store")
        kind: Literal["args", "string"] = "args" if repeated else "string"
        parser.addini(f"parity_{name}", text, type=kind)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Let a printed node id (`parity/suites/test_x.py::test_y[z]`) be pasted back on the command line."""
    named = early_config.known_args_namespace.file_or_dir  # not --deselect's ids: these stay as they are printed
    for number, argument in enumerate(args):
        file, separator, rest = argument.partition("::")
        _, ours, name = file.rpartition(SUITES)
        if argument in named and ours and name.endswith(".py") and not Path(file).exists():
            args[number] = f"{_suites_folder()}/{name}{separator}{rest}"


def _suites_folder() -> Path:
    spec = find_spec("parity.suites")
    assert spec is not None and spec.submodule_search_locations, "parity.suites is part of the installation"
    return Path(spec.submodule_search_locations[0])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "parity(path=…, families=…, cases=…, without=…): a parity test, run with --parity only; "
        "gives the fixtures parity_case and parity_chain one random case and converter each.",
    )
    config.stash[SETTINGS] = settings = _settings(config)
    config.stash[DESELECTED] = 0
    if not config.pluginmanager.hasplugin("benchmark"):
        config.pluginmanager.register(WithoutBenchmark(), "parity-without-benchmark")
    if settings.enabled:
        _show_to_last_failed(config, _suites(settings))


def _settings(config: pytest.Config) -> Settings:
    from parity.paths import PATHS, path

    def option(name: str) -> Any:
        given = config.getoption(f"parity_{name}")
        return config.getini(f"parity_{name}") if given is None else given

    def number(name: str, kind: type, default: Any) -> Any:
        given = option(name)
        try:
            value = kind(given) if given else default
        except ValueError:
            value = -1
        if value is not None and not value >= 0:  # written so that nan fails
            raise pytest.UsageError(f"--parity-{name} takes a number from 0 on, not {given!r}")
        return value

    try:
        paths = tuple(dict.fromkeys(path(name) for word in option("path") for name in word.split(","))) or PATHS
    except ParityError as error:
        raise pytest.UsageError(str(error)) from None
    return Settings(
        enabled=config.getoption("parity"),
        paths=paths,
        converters=tuple(name for word in option("converter") for name in word.split(",")),
        cases=number("cases", int, None),
        seed=number("seed", int, 0),
        report=option("report"),
        timeout=number("timeout", float, 120.0),
    )


def _names_files(config: pytest.Config) -> bool:
    """The user asks for certain files or tests: the suites are not added to them."""
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        return False
    return any("::" in argument or (config.invocation_params.dir / argument).is_file() for argument in config.args)


def _suites(settings: Settings) -> list[Path]:
    return [_suites_folder() / f"test_{path.name.replace('-', '_')}.py" for path in settings.paths]


def _show_to_last_failed(config: pytest.Config, files: list[Path]) -> None:
    """`--lf` skips files without a failed test, and looks for ours where their ids point, not where they lie."""
    paths = getattr(config.pluginmanager.get_plugin("lfplugin"), "_last_failed_paths", None)
    if paths is not None:
        paths.update(files)


# --- collection -------------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, Any]:
    """Add the shipped suites to whatever the command line collects.

    Not as arguments of it: pytest drops those that lie in a folder it walks through already, and then does not enter
    a virtual environment there.
    """
    report = yield
    config = collector.config
    if isinstance(collector, pytest.Session) and config.stash[SETTINGS].enabled and not _names_files(config):
        report.result += [_suite_module(collector, file) for file in _suites(config.stash[SETTINGS])]
    return report


class SuiteModule(pytest.Module):
    """A shipped suite: its node id and its naming rules are its own, whatever the host's settings are."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.add_marker(pytest.mark.parity)
        self.add_marker(pytest.mark.filterwarnings("default"))

    def _getobj(self) -> Any:
        return importlib.import_module(f"parity.suites.{self.path.stem}")

    def funcnamefilter(self, name: str) -> bool:
        return name.startswith("test_")

    def classnamefilter(self, name: str) -> bool:
        return False


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if module_path.name.startswith("test_") and module_path.parent == _suites_folder():
        return _suite_module(parent, module_path)
    return None


def _suite_module(parent: pytest.Collector, file: Path) -> pytest.Module:
    module: pytest.Module = SuiteModule.from_parent(parent, path=file, nodeid=SUITES + file.name)
    return module


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give `parity_case` and `parity_chain` one parameter per random case and converter chain."""
    names = [name for name in ("parity_chain", "parity_case") if name in metafunc.fixturenames]
    if not names:
        return
    marker = metafunc.definition.get_closest_marker("parity")
    try:
        if marker is None or "path" not in marker.kwargs:
            raise ParityError(f"{' and '.join(names)} need a mark such as @pytest.mark.parity(path='torch-casadi')")
        parameters = _parameters(metafunc.config.stash[SETTINGS], names, **marker.kwargs)
    except (ParityError, TypeError) as error:
        pytest.fail(f"{metafunc.definition.nodeid}: {error}", pytrace=False)
    metafunc.parametrize(names, parameters, indirect=True)


def _parameters(
    settings: Settings,
    names: Sequence[str],
    path: str,
    families: Any = None,
    cases: int | None = None,
    without: Any = None,
) -> list[Any]:
    from parity.cases.case import case_ids
    from parity.paths import path as path_named

    way = path_named(path)
    if way.missing():  # skipped later
        return [pytest.param(*[None] * len(names), id="not-installed")]
    families, without = ((each,) if isinstance(each, str) else each for each in (families, without))
    count = settings.cases if settings.cases is not None else cases
    ids = case_ids(families, settings.seed, count, way.source)
    chains: list[Any] = settings.chains(way) if "parity_chain" in names else [None]
    if without:
        chains = [chain for chain in chains if chain is None or not _names(chain) & set(without)]
    options = [(chain, case) for chain in chains for case in (ids if "parity_case" in names else [None])]
    return [
        pytest.param(*(value for value in (chain, case) if value is not None), id="-".join(
            filter(None, (chain and chain.name, case))))
        for chain, case in options
    ]  # fmt: skip


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    shipped: dict[str, pytest.Item] = {}  # once, also where the walk comes through their folder
    items[:] = [
        item
        for item in items
        if not isinstance(item.parent, SuiteModule) or shipped.setdefault(item.nodeid, item) is item
    ]
    if config.stash[SETTINGS].enabled:
        _skip_what_is_not_installed(items)
        return
    parity = [item for item in items if item.get_closest_marker("parity")]
    if parity:
        config.hook.pytest_deselected(items=parity)
        config.stash[DESELECTED] = len(parity)
        items[:] = [item for item in items if not item.get_closest_marker("parity")]
        if hasattr(config, "workeroutput"):
            config.workeroutput[DESELECTED_BY_WORKER] = len(parity)


def _skip_what_is_not_installed(items: list[pytest.Item]) -> None:
    from parity.paths import PATHS

    reasons = {}
    for way in PATHS:
        try:
            way.require()
        except MissingPackage as missing:
            reasons[way.name] = reasons[way.title] = str(missing)
    for item in items:
        marker = item.get_closest_marker("parity")
        if marker and marker.kwargs.get("path") in reasons:
            item.add_marker(pytest.mark.skip(reason=reasons[marker.kwargs["path"]]))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """pytest-xdist: the workers deselect, the main process tells."""
    count = getattr(node, "workeroutput", {}).get(DESELECTED_BY_WORKER, 0)
    node.config.stash[DESELECTED] = max(node.config.stash[DESELECTED], count)


# --- fixtures ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def parity_case(request: pytest.FixtureRequest) -> Case:
    """A random case: `.model()`, `.inputs(regime, batch)`, `.id`, `.spec`; see the marker `parity`."""
    from parity.cases.case import case_from_id
    from parity.paths import path

    marker = request.node.get_closest_marker("parity")
    return case_from_id(request.param, path(marker.kwargs["path"]).source)


@pytest.fixture
def parity_chain(request: pytest.FixtureRequest) -> Chain:
    """A chain of converters along the path of the marker `parity`."""
    chain: Chain = request.param
    return chain


@pytest.fixture(scope="session")
def _parity_worker() -> Iterator[Any]:
    from parity.worker import Worker

    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture
def parity(request: pytest.FixtureRequest, _parity_worker: Any) -> Parity:
    """Compare a model with what it was converted to: `parity.check(source, converted, inputs)`, `parity.convert(…)`."""
    from parity.fixture import Parity

    return Parity(request, _parity_worker, request.config.stash[SETTINGS].timeout)


class WithoutBenchmark:
    """Stands in where pytest-benchmark is switched off (`-p no:benchmark`)."""

    @pytest.fixture
    def benchmark(self) -> None:
        return None


# --- the run's report -------------------------------------------------------------------------------------------------


def pytest_report_header(config: pytest.Config) -> list[str]:
    settings = config.stash[SETTINGS]
    if not settings.enabled:
        return []
    lines = [f"parity: seed {settings.seed}"]
    for path in settings.paths:
        if path.missing():
            lines.append(f"parity: {path.name} cannot run here: it needs {', '.join(path.missing())}: "
                         f"{path.install_command}")  # fmt: skip
        else:
            names = ", ".join(chain.name for chain in settings.chains(path))
            lines.append(f"parity: {path.name} by {names or 'no converter'}")
            lines += [
                f"parity: {path.name} by {absent.name} cannot run here: it needs {', '.join(absent.missing())}: "
                f"{absent.install_command}"
                for absent in settings.absent(path)
            ]
            if others := settings.on_request(path):
                lines.append(f"parity: {path.name} on request (--parity-converter NAME, or all): {', '.join(others)}")
    return lines + [f"parity: {notice}" for notice in _broken()]


def _broken() -> list[str]:
    from parity.converters.registry import BROKEN, load_converters

    load_converters()
    lines = {name: " ".join(reason.split()) for name, reason in BROKEN.items()}
    return [f"converters of entry point {name!r} cannot be loaded: {reason}" for name, reason in lines.items()]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    settings = config.stash[SETTINGS]
    if not settings.enabled or hasattr(config, "workerinput"):
        return
    try:
        _require_something_to_run(settings)
    except ParityError as error:  # two converters of one name
        raise pytest.UsageError(str(error)) from None
    if config.option.collectonly:
        return
    from parity.recorder import Recorder
    from parity.run_folder import RunFolder, describe_environment, run_id

    run = run_id()
    folder = config.invocation_params.dir / (settings.report or f"reports/{run}")
    packages = dict.fromkeys(package for path in settings.paths for package in (*path.packages, *(
        package for chain in settings.chains(path) for step in chain.converters for package in step.requires
    )))  # fmt: skip
    notices = [line.removeprefix("parity: ") for line in pytest_report_header(config) if "cannot" in line]
    environment = describe_environment(run, settings.seed, [*packages])
    try:
        config.pluginmanager.register(Recorder(RunFolder(folder, run, environment, notices)), "parity-recorder")
    except ParityError as error:
        raise pytest.UsageError(str(error)) from None


def _require_something_to_run(settings: Settings) -> None:
    runnable = [path for path in settings.paths if not path.missing()]
    if not runnable:
        raise pytest.UsageError("; ".join(
            f"path {path.name} needs {', '.join(path.missing())}: {path.install_command}" for path in settings.paths
        ))  # fmt: skip
    from parity.converters.registry import chains, not_installed

    names = {name for path in runnable for chain in chains(path)
             for name in (chain.name, *(edge.name for edge in chain.converters))}  # fmt: skip
    absent = {converter.name: converter for path in runnable for converter in not_installed(path)}
    for name in set(settings.converters) - {ALL}:
        if name in absent:
            needs = f"{', '.join(absent[name].missing())}: {absent[name].install_command}"
            raise pytest.UsageError(f"converter {name} needs {needs}")
        if name not in names:
            raise pytest.UsageError(f"no converter is named {name!r}: {', '.join(sorted(names))}")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if count := config.stash[DESELECTED]:
        terminalreporter.write_line(f"{count} parity test(s) deselected: run them with --parity")
