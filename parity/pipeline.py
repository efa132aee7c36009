"""One model through one converter chain: convert, run, check, time. Records come out one by one.

This is where the parts meet: cases → converters → runtimes → checks → timing → records.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from statistics import median
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from parity.checks.blame import first_diverging
from parity.checks.derivatives import check_hessian, check_jacobian, check_vjp, projection
from parity.checks.optimum import check_fixed, check_optimum, search_call
from parity.checks.sensitivity import check_sensitivity
from parity.checks.solution import check_solution
from parity.checks.steps import check_steps
from parity.checks.trace import check_trace
from parity.checks.training import check_structure, check_training
from parity.checks.value import check_value
from parity.checks.verdict import Finding
from parity.converters.registry import Chain
from parity.errors import MissingPackage, ParityError, Unsupported
from parity.records import DEGENERATE, ERROR, FAIL, UNSUPPORTED, Record
from parity.runtimes import Arrays, runtime_for
from parity.timing import compare_speed

BLAME_MS = 2000.0
"""Where a conversion takes longer, the first layer that diverges is not looked for: it takes one for every layer."""
CHECKS = {
    "value": check_value,
    "jacobian": check_jacobian,
    "hessian": check_hessian,
    "vjp": check_vjp,
    "structure": check_structure,
    "training": check_training,
    "trace": check_trace,
    "fixed": check_fixed,
    "optimum": check_optimum,
    "solution": check_solution,
    "sensitivity": check_sensitivity,
    "steps": check_steps,
}
SOURCE_CALLS = {"optimum": search_call}
"""How the source does the work of a check, where that is no evaluation."""


class Subject(Protocol):
    """What is converted: a case, or a model of the user's (`parity.api.OwnModel`)."""

    @property
    def id(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def layers(self) -> str: ...
    def model(self) -> Any: ...
    def inputs(self, regime: str, batch: int) -> Arrays: ...


@dataclass(frozen=True)
class Point:
    """One check at one kind of inputs."""

    check: str
    regime: str = "normal"
    batch: int = 1
    timed: int = 0
    """How many samples a call takes whose time is measured; 0 for none."""


PLAN = (
    *(Point("value", regime) for regime in ("normal", "large", "tiny", "zeros", "saturating")),
    Point("value", "normal", batch=4),
    Point("jacobian"),
    Point("jacobian", "zeros"),
    Point("hessian"),
)
"""What every case goes through: derivatives only where inputs are of a size that users differentiate at."""
VALUE = tuple(point for point in PLAN if point.check == "value")
PLANS = {
    "ocp-sensitivity": (Point("solution", batch=3), Point("sensitivity"), Point("sensitivity", "another")),
    "ocp-sensitivity steps": (Point("steps"),),
    "ocp-sensitivity batch": (Point("solution", batch=16),),
    "torch-onnx": VALUE,
    "torch-onnx-caffe": VALUE,
    "torch-onnx-caffe-onnx-torch": VALUE,
    "keras-torch": (
        *(Point("value", regime, batch=4) for regime in ("normal", "tiny", "saturating")),
        Point("vjp", batch=4),
        Point("structure"),
        Point("training", batch=4),
    ),
    "keras-torch application": (Point("value"), Point("value", batch=4), Point("structure")),
    "torch-optimization": (
        *(Point("value", regime, batch=8) for regime in ("unit", "corner")),
        *(Point("trace", regime, batch=8) for regime in ("unit", "corner")),
        Point("jacobian", "unit"),
        Point("hessian", "unit"),
        *(Point("fixed", regime) for regime in ("unit", "corner")),
        Point("optimum", "unit"),
    ),
}
"""Where it is another: on a path, or in one family there. A gradient replaces Jacobians where outputs are many and
batches large. Whole applications are costly, and deep enough for rounding to flip a ReLU, which a gradient shows. A
network inside a solver's model holds for inputs in [-1, 1]: it is checked without a solver first, then with it."""
SPEED_BATCHES = {"keras-torch": (1, 64), "ocp-sensitivity": (1, 16)}
"""Sizes of the batches that speed is measured for; elsewhere 1."""
SPEED_REGIMES = {"torch-optimization": "unit"}
"""The inputs that speed is measured at; elsewhere `normal`."""


def plan_of(path: str, family: str = "") -> tuple[Point, ...]:
    """What a case of a family goes through on a path."""
    return PLANS.get(f"{path} {family}") or PLANS.get(path) or PLAN


def timed(plan: Sequence[Point], path: str = "") -> tuple[Point, ...]:
    """The same plan with every check timed at usual inputs, for batches of the path's sizes."""
    batches, regime = SPEED_BATCHES.get(path, (1,)), SPEED_REGIMES.get(path, "normal")
    values = [Point("value", regime, batch) for batch in batches]
    if any(point.check in ("solution", "sensitivity") for point in plan):  # a solution map has no cheaper call
        values = []
    points = (*plan, *(point for point in values if point not in plan))
    calls = ("value", "jacobian", "hessian", "vjp", "fixed", "optimum", "solution", "sensitivity")
    chosen = {p for p in points if p.check in calls and p.regime == regime and p.batch in batches}
    return tuple(replace(point, timed=point.batch if point in chosen else 0) for point in points)


@dataclass(frozen=True)
class Conversion:
    """What a chain made of a model: the artifact after each of its converters, and the time that took."""

    artifacts: tuple[Any, ...]
    milliseconds: float


def convert_along(chain: Chain, model: Any, example: tuple[Any, ...]) -> Conversion:
    """Convert step by step. Raises what the converters raise."""
    start = perf_counter()
    artifacts = []
    for converter in chain.converters:
        model = converter.function(model, example)
        artifacts.append(model)
    return Conversion(tuple(artifacts), (perf_counter() - start) * 1e3)


def examine(subject: Subject, chain: Chain, plan: Sequence[Point] | None = None) -> Iterator[Record]:
    """Records of one subject and chain: one per point of the plan, in each precision that the chain computes in.

    Without a plan, the path's own is taken.

    The converter is given the source in that precision, in eval mode, on the CPU; the truth is the same source in
    float64. A converter that fails costs its own verdicts: only a source that cannot be judged (`ParityError`) raises.
    """
    model, base = subject.model(), identity(subject, chain)
    plan = plan or plan_of(chain.path.name, subject.family)
    for dtype in chain.dtypes:
        yield from _Examination(subject, chain, model, replace(base, dtype=dtype)).records(plan)


def identity(subject: Subject, chain: Chain) -> Record:
    """A record that says what is examined, and nothing yet about what was found."""
    return Record(
        path=chain.path.name,
        converter=chain.name,
        case=subject.id,
        family=subject.family,
        layers=subject.layers,
        seed=subject.seed,
    )


class _Examination:
    """One subject through one chain in one precision."""

    def __init__(self, subject: Subject, chain: Chain, model: Any, base: Record) -> None:
        self.subject, self.chain, self.base = subject, chain, base
        self.source = runtime_for(model, base.dtype)
        self.reference = runtime_for(self.source.model, "float64")

    def records(self, plan: Sequence[Point]) -> Iterator[Record]:
        first = plan[0]
        inputs = self.subject.inputs(first.regime, first.batch)
        self.reference.validate(inputs)
        self.example = self.source.example(tuple(array[:1] for array in inputs))
        try:
            conversion = convert_along(self.chain, self.source.model, self.example)
            target = runtime_for(conversion.artifacts[-1], self.base.dtype)
            known = {"convert_ms": conversion.milliseconds, "artifact_bytes": target.artifact_bytes}
            known |= getattr(target, "model_size", {})
        except Exception as error:
            for point in plan:
                yield self._record(point, **_refusal(error))
            return
        for point in plan:
            yield self._record(point, **(known | self._check(point, conversion, target)))

    def _record(self, point: Point, **columns: Any) -> Record:
        return replace(self.base, check=point.check, regime=point.regime, batch=point.batch, **columns)

    def _check(self, point: Point, conversion: Conversion, target: Any) -> dict[str, Any]:
        inputs = self.subject.inputs(point.regime, point.batch)
        try:
            finding = self._find(point, self.reference, target, inputs)
            if finding.verdict == FAIL and finding.comparison and self._overflows(inputs):
                message = f"the source itself leaves the range of {self.base.dtype} here"
                finding = replace(finding, verdict=DEGENERATE, message=message)
            columns = _columns(finding)
            if finding.verdict == FAIL:
                with suppress(Exception):  # that it is wrong stands, also where it cannot be said what is to blame
                    blame = {"blame_layer": finding.layer} if finding.layer else {}
                    columns |= blame or self._blame(point, conversion, inputs)
            elif point.timed and finding.comparison and not finding.cut_short:
                columns |= self._speed(point, tuple(array[: point.timed] for array in inputs), target, finding.message)
        except Exception as error:
            return _refusal(error)
        return columns

    def _find(self, point: Point, reference: Any, target: Any, inputs: Arrays) -> Finding:
        return CHECKS[point.check](reference, target, inputs, self.base.dtype)

    def _overflows(self, inputs: Arrays) -> bool:
        """Whether the source, in this precision, gives infinities or NaN where it does not in float64."""
        with np.errstate(all="ignore"):
            return bool(np.any(~np.isfinite(self.source.value(inputs)) & np.isfinite(self.reference.value(inputs))))

    def _blame(self, point: Point, conversion: Conversion, inputs: Arrays) -> dict[str, str]:
        """The first stage of the chain and the first layer of the model whose result is off."""
        if point.check == "structure" or not all(converter.repeatable for converter in self.chain.converters):
            return {}

        def agrees(model: Any) -> bool:
            source = runtime_for(model, self.base.dtype)
            artifact = convert_along(self.chain, source.model, self.example).artifacts[-1]
            target = runtime_for(artifact, self.base.dtype)
            return self._find(point, runtime_for(source.model, "float64"), target, inputs).verdict != FAIL

        stage = ""
        for converter, artifact in zip(self.chain.converters, conversion.artifacts, strict=True):
            stage = f"{converter.source}→{converter.target}"
            runtime = runtime_for(artifact, self.base.dtype)
            last = artifact is conversion.artifacts[-1]
            if not last and self._find(point, self.reference, runtime, inputs).verdict == FAIL:
                break
        if conversion.milliseconds > BLAME_MS:
            return {"blame_stage": stage}
        layer = first_diverging(self.reference.prefixes(inputs), agrees)
        remark = self.reference.remark(layer)
        return {"blame_stage": stage, "blame_layer": layer, **({"message": remark} if remark else {})}

    def _speed(self, point: Point, inputs: Arrays, target: Any, message: str) -> dict[str, Any]:
        weights = projection(self.reference.value(inputs).shape[1])
        model, check = self.source.model, point.check
        own_baseline = hasattr(target, "baseline")  # a target that is compared with another use of itself
        conversions = []

        def build_source() -> Any:
            if own_baseline:
                return target.baseline(check, inputs)
            runtime = runtime_for(model, self.base.dtype)
            if check in SOURCE_CALLS:
                return SOURCE_CALLS[check](runtime, target, inputs, weights)
            return runtime.caller(check, inputs, weights)

        def build_target() -> Any:
            if own_baseline:
                return target.caller(check, inputs, weights)
            conversion = convert_along(self.chain, model, self.example)
            conversions.append(conversion.milliseconds)
            return runtime_for(conversion.artifacts[-1], self.base.dtype).caller(check, inputs, weights)

        speed = compare_speed(build_source, build_target)
        if check in SOURCE_CALLS:
            against = "random search by the source"
        else:
            against = (target.baseline_description if own_baseline else self.source.caller_description)(check)
        ways = f"{target.caller_description(check)} against {against}"
        return {
            "message": "; ".join(filter(None, (message, f"{speed.verdict}: {ways}; {speed.builds} fresh builds"))),
            "source_us": speed.source_us,
            "target_us": speed.target_us,
            "speed_ratio": speed.ratio,
            "speed_low": speed.low,
            "speed_high": speed.high,
            **({"convert_ms": median(conversions)} if conversions else {}),
        }


def _columns(finding: Finding) -> dict[str, Any]:
    errors, columns = finding.comparison, {"verdict": finding.verdict, "message": finding.message}
    if errors is None:
        return columns
    return {
        **columns,
        "error_ratio": errors.error_ratio,
        "max_abs": errors.max_abs,
        "max_rel": errors.max_rel,
        "max_ulp": errors.max_ulp,
        "rtol_needed": errors.rtol_needed,
        "atol_needed": errors.atol_needed,
    }


def _refusal(error: Exception) -> dict[str, str]:
    if isinstance(error, Unsupported | MissingPackage):
        return {"verdict": UNSUPPORTED, "message": str(error)}
    text = " ".join(str(error).split())[:500]
    if isinstance(error, ParityError):
        return {"verdict": ERROR, "message": text}
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{FilePath(frame.filename).name}:{frame.lineno}"
    return {"verdict": ERROR, "message": f"{type(error).__name__}: {text} ({where})"}
