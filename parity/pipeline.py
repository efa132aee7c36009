"""One model through one converter chain: convert, run, check, time. Records come out one by one.

This is where the parts meet: cases → converters → runtimes → checks → timing → records.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from time import perf_counter
from typing import Any, Protocol

from parity.checks.blame import first_diverging
from parity.checks.derivatives import check_hessian, check_jacobian, projection
from parity.checks.optimum import check_optimum
from parity.checks.sensitivity import check_sensitivity
from parity.checks.value import check_value
from parity.checks.verdict import Finding
from parity.converters.registry import Chain
from parity.errors import MissingPackage, ParityError, Unsupported
from parity.records import ERROR, EXPECTED_WRONG, FAIL, UNSUPPORTED, Record
from parity.runtimes import Arrays, runtime_for
from parity.timing import compare_speed

CHECKS = {
    "value": check_value,
    "jacobian": check_jacobian,
    "hessian": check_hessian,
    "optimum": check_optimum,
    "sensitivity": check_sensitivity,
}


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
    timed: bool = False


PLAN = (
    *(Point("value", regime) for regime in ("normal", "large", "tiny", "zeros", "saturating")),
    Point("value", "normal", batch=4),
    Point("jacobian"),
    Point("jacobian", "zeros"),
    Point("hessian"),
)
"""What every case goes through: derivatives only where inputs are of a size that users differentiate at."""

SOLUTION_PLAN = (Point("optimum", batch=3), Point("sensitivity"), Point("sensitivity", "another"))
"""What every optimal control problem goes through: solutions at three points, derivatives at two others."""


def plan_for(chain: Chain) -> tuple[Point, ...]:
    """The plan of the path that a chain follows."""
    return SOLUTION_PLAN if chain.path.source == "ocp" else PLAN


def timed(plan: Sequence[Point]) -> tuple[Point, ...]:
    """The same plan with every check timed at normal inputs, batch 1."""
    return tuple(replace(point, timed=point.regime == "normal" and point.batch == 1) for point in plan)


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


def examine(subject: Subject, chain: Chain, plan: Sequence[Point] = PLAN) -> Iterator[Record]:
    """Records of one subject and chain: one per point of the plan, in each precision that the chain computes in.

    The converter is given the source in that precision, in eval mode, on the CPU; the truth is the same source in
    float64. A converter that fails costs its own verdicts: only a source that cannot be judged (`ParityError`) raises.
    """
    model, base = subject.model(), identity(subject, chain)
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
        except Exception as error:
            for point in plan:
                yield self._record(point, **_refusal(error))
            return
        known = {"convert_ms": conversion.milliseconds, "artifact_bytes": target.artifact_bytes}
        for point in plan:
            yield self._record(point, **known, **self._check(point, conversion, target))

    def _record(self, point: Point, **columns: Any) -> Record:
        return replace(self.base, check=point.check, regime=point.regime, batch=point.batch, **columns)

    def _check(self, point: Point, conversion: Conversion, target: Any) -> dict[str, Any]:
        inputs = self.subject.inputs(point.regime, point.batch)
        try:
            finding = self._find(point, self.reference, target, inputs)
            columns = _columns(finding)
            if finding.verdict == FAIL and self.chain.expected_wrong:
                columns |= {"verdict": EXPECTED_WRONG, "message": f"{self.chain.expected_wrong}: {finding.message}"}
            elif finding.verdict == FAIL:
                columns |= self._blame(point, conversion, inputs)
            elif point.timed:
                columns |= self._speed(point, tuple(array[:1] for array in inputs), target)
        except Exception as error:
            return _refusal(error)
        return columns

    def _find(self, point: Point, reference: Any, target: Any, inputs: Arrays) -> Finding:
        return CHECKS[point.check](reference, target, inputs, self.base.dtype)

    def _blame(self, point: Point, conversion: Conversion, inputs: Arrays) -> dict[str, str]:
        """The first stage of the chain and the first layer of the model whose result is off."""
        if not all(converter.repeatable for converter in self.chain.converters):
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
        return {"blame_stage": stage, "blame_layer": first_diverging(self.reference.prefixes(inputs), agrees)}

    def _speed(self, point: Point, inputs: Arrays, target: Any) -> dict[str, Any]:
        weights = projection(self.reference.value(inputs).shape[1])
        model, check = self.source.model, point.check
        own_baseline = hasattr(target, "baseline")  # a target that is compared with another use of itself

        def build_source() -> Any:
            if own_baseline:
                return target.baseline(check, inputs)
            return runtime_for(model, self.base.dtype).caller(check, inputs, weights)

        def build_target() -> Any:
            if own_baseline:
                return target.caller(check, inputs, weights)
            artifact = convert_along(self.chain, model, self.example).artifacts[-1]
            return runtime_for(artifact, self.base.dtype).caller(check, inputs, weights)

        speed = compare_speed(build_source, build_target)
        against = (target.baseline_description if own_baseline else self.source.caller_description)(check)
        ways = f"{target.caller_description(check)} against {against}"
        return {
            "message": f"{speed.verdict}: {ways}; {speed.builds} fresh builds",
            "source_us": speed.source_us,
            "target_us": speed.target_us,
            "speed_ratio": speed.ratio,
            "speed_low": speed.low,
            "speed_high": speed.high,
        }


def _columns(finding: Finding) -> dict[str, Any]:
    errors = finding.comparison
    return {
        "verdict": finding.verdict,
        "message": finding.message,
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
