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
    installed: bool
    """Found again by a fresh process (shipped or by entry point); False for one registered by a test or a script."""
    expected_wrong: str = ""
    """Why its results are known to be wrong: a failing check then reddens nothing, and is still shown."""
    repeatable: bool = True
    """Converts whatever model it is given; False for an artifact that the user converted beforehand."""

    def missing(self) -> list[str]:
        return [package for package in self.requires if find_spec(package) is None]


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
    def expected_wrong(self) -> str:
        """Why the results of one of its converters are known to be wrong; empty if they are not."""
        return "; ".join(filter(None, (converter.expected_wrong for converter in self.converters)))


_CONVERTERS: dict[tuple[str, str, str], Converter] = {}
_LOWERINGS: dict[tuple[str, Any], Callable[..., Any]] = {}
_loading = False
BROKEN: dict[str, str] = {}
"""Entry points whose module could not be imported, with the reason: shown, never silently dropped."""


def converter(
    source: str,
    target: str,
    *,
    name: str | None = None,
    dtypes: Sequence[str] = ("float64",),
    requires: Sequence[str] = (),
    expected_wrong: str = "",
) -> Callable[[Function], Function]:
    """Register the decorated function as a converter from `source` to `target`; its name is the function's own.

    Raises ParityError if another function already has that name on that edge.
    """

    def register(function: Function) -> Function:
        own = name or function.__name__
        new = Converter(source, target, own, function, tuple(dtypes), tuple(requires), _loading, expected_wrong)
        old = _CONVERTERS.setdefault((source, target, new.name), new)
        if old is not new and old.function.__qualname__ != function.__qualname__:
            raise ParityError(f"two converters {source}→{target} are named {new.name!r}: rename one with name=")
        _CONVERTERS[source, target, new.name] = new
        return function

    return register


@cache
def load_converters() -> None:
    """Import every module that registers converters: ours, and those of installed packages."""
    global _loading
    _loading = True
    try:
        for module in pkgutil.iter_modules(parity.converters.__path__, "parity.converters."):
            importlib.import_module(module.name)
        for entry in entry_points(group=ENTRY_POINT_GROUP):
            try:
                entry.load()
            except Exception as error:
                BROKEN[entry.name] = f"{type(error).__name__}: {error}"
    finally:
        _loading = False


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
                raise MissingPackage(f"converter {name} needs {', '.join(missing)}: pip install {' '.join(missing)}")
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


def find_chain(path: Path, name: str) -> Chain:
    """The chain along `path` with that name, its converters joined by `+`; raises ParityError."""
    known = chains(path)
    for chain in known:
        if chain.name == name:
            return chain
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
