"""The graph of converters, and the lowerings that a converter is made of. Imports no framework.

A converter registers itself by decorator when its module is imported. The modules of this package are found by
themselves; a converter of another package is found through the entry-point group `parity.converters`, whose entries
name a module to import. Such modules import their frameworks inside their functions, so that listing costs nothing.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from itertools import pairwise, product
from typing import Any, TypeVar

import parity.converters
from parity.errors import MissingPackage, ParityError
from parity.paths import Path

ENTRY_POINT_GROUP = "parity.converters"
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Converter:
    """A named function `(model, example, **options) -> artifact`: an edge of the graph.

    `example` is a tuple of the source's own tensors, with the batch axis first. `dtypes` are the precisions in which
    the artifact can compute; the suites convert and check the model in each of them.
    """

    source: str
    target: str
    name: str
    function: Callable[..., Any]
    dtypes: tuple[str, ...]
    requires: tuple[str, ...]
    """Packages it needs besides the two representations' own."""
    repeatable: bool = True
    """Converts whatever model it is given; False for an artifact that the user converted beforehand."""
    on_request: bool = False
    """Runs in the suites only where the user names it."""
    install: str = ""
    """What installs `requires`, where a plain `pip install` of these does not."""

    @property
    def installed(self) -> bool:
        """Found again by a fresh process (shipped or by entry point), unlike one that a test or a script registers."""
        module = f"{self.function.__module__}."
        return any(module.startswith(f"{known}.") for known in ("parity.converters", *_entry_modules()))

    def missing(self) -> list[str]:
        """The packages that it needs and that are not installed."""
        return [package for package in self.requires if find_spec(package) is None]

    @property
    def install_command(self) -> str:
        return self.install or f"pip install {' '.join(self.missing())}"


@dataclass(frozen=True)
class Chain:
    """One way along a path: a converter for each edge."""

    path: Path
    converters: tuple[Converter, ...]

    @property
    def name(self) -> str:
        return "+".join(converter.name for converter in self.converters)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The precisions in which every converter of the chain can work."""
        first, *rest = (converter.dtypes for converter in self.converters)
        return tuple(dtype for dtype in first if all(dtype in dtypes for dtypes in rest))

    @property
    def installed(self) -> bool:
        return all(converter.installed for converter in self.converters)

    @property
    def on_request(self) -> bool:
        return any(converter.on_request for converter in self.converters)


_CONVERTERS: dict[tuple[str, str, str], Converter] = {}
_LOWERINGS: dict[tuple[str, Any], Callable[..., Any]] = {}
BROKEN: dict[str, str] = {}
"""Entry points whose module could not be imported, with the reason: shown, never silently dropped."""


def converter(
    source: str,
    target: str,
    *,
    name: str | None = None,
    dtypes: Sequence[str] = ("float64",),
    requires: Sequence[str] = (),
    on_request: bool = False,
    install: str = "",
) -> Callable[[Function], Function]:
    """Register the decorated function as a converter from `source` to `target`; its name is the function's own.

    `requires` are the packages it needs besides the representations' own, and `install` the command that installs
    them, where a plain `pip install` does not. With `on_request`, the suites run it only where the user names it.
    Raises ParityError if another function already has that name on that edge.
    """

    def register(function: Function) -> Function:
        label = name or function.__name__
        new = Converter(
            source,
            target,
            label,
            function,
            tuple(dtypes),
            tuple(requires),
            on_request=on_request or function.__module__.startswith("parity.converters.thirdparty."),
            install=install,
        )
        old = _CONVERTERS.setdefault((source, target, new.name), new)
        if old is not new and old.function.__qualname__ != function.__qualname__:
            raise ParityError(f"two converters {source}→{target} are named {new.name!r}: rename one with name=")
        _CONVERTERS[source, target, new.name] = new
        return function

    return register


@cache
def load_converters() -> None:
    """Import every module that registers converters: ours, and those of installed packages."""
    for module in pkgutil.iter_modules(parity.converters.__path__, "parity.converters."):
        importlib.import_module(module.name)
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry.load()
        except (Exception, SystemExit) as error:
            BROKEN[entry.name] = f"{type(error).__name__}: {error}"


@cache
def _entry_modules() -> tuple[str, ...]:
    return tuple(entry.module for entry in entry_points(group=ENTRY_POINT_GROUP))


def converters(source: str | None = None, target: str | None = None) -> list[Converter]:
    """All registered converters, or those of one edge, `reference` first and then by name."""
    load_converters()
    found = [c for c in _CONVERTERS.values() if source in (None, c.source) and target in (None, c.target)]
    return sorted(found, key=lambda c: (c.source, c.target, c.name != "reference", c.name))


def find_converter(source: str, target: str, name: str = "reference") -> Converter:
    """The converter of that name on that edge; raises ParityError (unknown) or MissingPackage (not installed)."""
    known = converters(source, target)
    for candidate in known:
        if candidate.name == name:
            if missing := candidate.missing():
                raise MissingPackage(f"converter {name} needs {', '.join(missing)}: {candidate.install_command}")
            return candidate
    raise ParityError(f"no converter {source}→{target} is named {name!r}: {_names(known) or 'none is registered'}")


def _names(known: Sequence[Converter]) -> str:
    return ", ".join(candidate.name for candidate in known)


def chains(path: Path) -> list[Chain]:
    """Every way along `path` whose packages are installed: a converter for each edge, or one for the whole path."""
    nodes = path.representations
    edges = [converters(source, target) for source, target in pairwise(nodes)]
    ways = [tuple(way) for way in product(*edges)]
    if len(edges) > 1:
        ways += [(direct,) for direct in converters(nodes[0], nodes[-1])]
    return [Chain(path, way) for way in ways if not any(step.missing() for step in way)]


def not_installed(path: Path) -> list[Converter]:
    """The converters along `path` that are left out of its chains, because packages of theirs are missing."""
    nodes = path.representations
    edges = dict.fromkeys([*pairwise(nodes), (nodes[0], nodes[-1])])
    return [step for edge in edges for step in converters(*edge) if step.missing()]


def find_chain(path: Path, name: str) -> Chain:
    """The chain along `path` with that name, its converters joined by `+`; raises ParityError or MissingPackage.

    `reference` stands for the first chain where none has that very name.
    """
    known = chains(path)
    for chain in known:
        if chain.name == name:
            return chain
    if name == "reference" and known:
        return known[0]
    for absent in not_installed(path):
        if absent.name in name.split("+"):
            find_converter(absent.source, absent.target, absent.name)
    raise ParityError(f"no converter {name!r} on path {path.name}: {', '.join(c.name for c in known) or 'none'}")


def lowers(*operators: Any, to: str, replace: bool = False) -> Callable[[Function], Function]:
    """Register the decorated function as the way to express `operators` in the representation `to`.

    An operator is what the source representation calls one: a `torch.nn.Module` class, a torch function, the name of
    a Tensor method, an ONNX operator name. What the function is given is said by the converter to `to`. Raises
    ParityError if an operator already has a lowering, unless `replace=True`.
    """

    def register(function: Function) -> Function:
        for operator in operators:
            known = _LOWERINGS.get((to, operator))
            if known and _shipped(function) and not _shipped(known):
                continue  # the user's came first: ours is loaded when a model is first converted
            if known and not replace:
                raise ParityError(f"{operator!r} already has a lowering to {to}: pass replace=True to replace it")
            _LOWERINGS[to, operator] = function
        return function

    return register


def _shipped(function: Callable[..., Any]) -> bool:
    return function.__module__.startswith("parity.converters.")


def find_lowering(operator: Any, to: str) -> Callable[..., Any] | None:
    """The lowering of exactly this operator: a subclass may compute something else than its base class."""
    return _LOWERINGS.get((to, operator))
