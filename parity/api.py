"""Parity of the user's own model: `convert`, `check`, `assert_parity`. Usable without pytest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity.converters.registry import Chain, Converter, chains, find_chain, find_converter
from parity.errors import ParityError
from parity.paths import PATHS, Path
from parity.paths import path as path_named
from parity.pipeline import CHECKS, Point, examine, plan_of
from parity.records import BAD_VERDICTS, DEGENERATE, PASS, Record
from parity.runtimes import Arrays, representation_of, runtime_for

DERIVATIVE_SAMPLES = 4
"""Of how many samples of the user's batch the derivatives are compared."""


@dataclass(frozen=True)
class OwnModel:
    """A model and inputs that the user brought, in the place of a case."""

    source: Any
    arrays: Arrays
    id: str
    layers: str
    family: str = "own"
    seed: None = None

    def model(self) -> Any:
        return self.source

    def inputs(self, regime: str, batch: int) -> Arrays:
        return tuple(array[:batch] for array in self.arrays)


def convert(model: Any, target: str, example: Any, *, converter: str = "reference", **options: Any) -> Any:
    """Convert `model` to the representation `target` (`"casadi"`, …) and return the artifact.

    `example` is one input, or a tuple of them, batch axis first: tensors of the source's own framework, or arrays.
    `converter` names one along the path, or several joined by `+`; `options` are handed to it (the last of them).
    Raises `ParityError` (unknown names), `MissingPackage`, or `Unsupported`.
    """
    source = _representation(model)
    examples = tuple(example) if isinstance(example, tuple | list) else (example,)
    tensors = tuple(
        each if type(each).__module__.split(".")[0] == source else runtime_for(model).example((np.asarray(each),))[0]
        for each in examples
    )
    chain = _chain(source, target, converter)
    for edge in chain.converters:
        model = edge.function(model, tensors, **(options if edge is chain.converters[-1] else {}))
    return model


def check(
    source: Any,
    converted: Any,
    inputs: Any,
    *,
    checks: Sequence[str] | None = None,
    path: str | None = None,
    speed: bool = False,
    name: str | None = None,
) -> list[Record]:
    """Compare a model with what it was converted to, and return one record per check. Raises no AssertionError.

    `converted` is the converted model itself (a `casadi.Function`, …), the name of a registered converter, or a
    function `(model, example) -> artifact`. `inputs` is one array or tensor, or a tuple of them: floating point,
    batch axis first. The value is compared for the whole batch, derivatives for its first samples. `checks` names what
    to compare (`value`, `jacobian`, `hessian`, `vjp`), by default what the path's suite does. `path` says which path is
    meant where the converter's name leaves it open; `speed` also times every check, on the first sample.

    The truth is `source` evaluated in float64, in eval mode, on the CPU; see `parity.checks.tolerance`. Raises
    `ParityError` for NaN weights, or inputs that the source does not take.
    """
    if unknown := [each for each in checks or () if each not in CHECKS]:
        raise ParityError(f"unknown check {unknown[0]!r}: one of {', '.join(CHECKS)}")
    arrays = _arrays(inputs)
    chain = _chain_of(source, converted, arrays, path)
    checks = checks or tuple(dict.fromkeys(point.check for point in plan_of(chain.path.name)))
    batch = len(arrays[0])
    samples = {each: batch if each == "value" else min(batch, DERIVATIVE_SAMPLES) for each in checks}
    plan = [Point(each, "given", samples[each], timed=int(speed)) for each in checks]
    label = name or type(source).__name__
    return list(examine(OwnModel(source, arrays, label, type(source).__name__), chain, plan))


def assert_parity(source: Any, converted: Any, inputs: Any, **options: Any) -> list[Record]:
    """`check`, raising AssertionError unless every check passed; see there for the arguments."""
    __tracebackhide__ = True
    return require(check(source, converted, inputs, **options))


def require(records: list[Record]) -> list[Record]:
    """Give the records back, or raise AssertionError naming those that are neither `pass` nor `degenerate`."""
    __tracebackhide__ = True
    off = [record for record in records if record.verdict not in (PASS, DEGENERATE)]
    if off:
        raise AssertionError("\n".join(record.summary() for record in off))
    return records


def failed(records: Sequence[Record]) -> list[Record]:
    """The records that make a run red."""
    return [record for record in records if record.verdict in BAD_VERDICTS]


def _representation(model: Any) -> str:
    found = representation_of(model)
    if found is None:
        raise ParityError(f"no path starts from a {type(model).__module__}.{type(model).__qualname__}")
    return found


def _chain(source: str, target: str, name: str) -> Chain:
    for known in PATHS:
        if (known.source, known.representations[-1]) == (source, target):
            known.require()
            return find_chain(known, name)
    edge = find_converter(source, target, name)
    return Chain(_path_between(source, target), (edge,))


def _path_between(source: str, target: str) -> Path:
    """The path of these ends, or one that nobody has named: any edge is a path."""
    name = f"{source}-{target}"
    return next((known for known in PATHS if known.name == name), Path(name, packages=(), extra=target))


def _chain_of(source: Any, converted: Any, arrays: Arrays, path: str | None) -> Chain:
    """The chain that the user means by `converted`."""
    start = _representation(source)
    if isinstance(converted, str):
        possible = [path_named(path)] if path else [known for known in PATHS if known.source == start]
        for known in possible:
            if any(chain.name == converted for chain in chains(known)) or (path and converted == "reference"):
                known.require()
                return find_chain(known, converted)
        names = [chain.name for known in possible for chain in chains(known)]
        raise ParityError(f"no converter {converted!r} starts from {start}: {', '.join(names) or 'none is installed'}")
    if representation_of(converted) is not None:
        return _single(start, converted, "given", lambda model, example: converted, repeatable=False)
    if callable(converted):
        name = getattr(converted, "__name__", type(converted).__name__)
        example = runtime_for(source).example(tuple(array[:1] for array in arrays))
        try:
            artifact = converted(runtime_for(source).model, example)
        except Exception:  # it will raise again, and be recorded
            edge = Converter(start, "", name, converted, ("float64",), ())
            return Chain(Path(path or f"{start}-{name}", packages=(), extra=start), (edge,))
        return _single(start, artifact, name, converted, repeatable=True)
    raise ParityError(f"a {type(converted).__qualname__} is neither a converted model, nor a converter or its name")


def _single(start: str, artifact: Any, name: str, function: Callable[..., Any], *, repeatable: bool) -> Chain:
    target = representation_of(artifact)
    if target is None:
        raise ParityError(f"{name} gives a {type(artifact).__qualname__}, which no runtime executes")
    dtype = runtime_for(artifact).dtype
    edge = Converter(start, target, name, function, (dtype,), (), repeatable)
    return Chain(_path_between(start, target), (edge,))


def _arrays(inputs: Any) -> Arrays:
    arrays = []
    for number, each in enumerate(inputs if isinstance(inputs, tuple | list) else (inputs,)):
        array = np.asarray(each.detach().cpu().numpy() if hasattr(each, "detach") else each)
        if not np.issubdtype(array.dtype, np.floating):
            raise ParityError(f"input {number} is of dtype {array.dtype}: give floating-point inputs")
        if array.ndim == 0 or len(array) == 0:
            raise ParityError(f"input {number} has shape {array.shape}: give at least one sample, batch axis first")
        arrays.append(array.astype(np.float64))
    return tuple(arrays)
