"""How far off a result is, measured by the source's own rounding, and how far off it may be.

The yardstick of an output element is the spread that rounding alone gives it: the source runs in float64 a few times
while each of its operators rounds at random as `dtype` would (Monte Carlo arithmetic, see `parity.runtimes.rounding`).
An error of 1 rounding unit is thus as good as the source itself, whatever the model, its outputs' size, the check
or the precision. The score is the larger of

- the root mean square error over the root mean square yardstick, and
- a quarter of the largest element's error over its own yardstick (at least a tenth of the pooled one),

so one limit serves both. Four runs estimate a spread roughly: where they leave a doubt, 32 decide (`assess`). The
limits were set on correct conversions and on planted bugs (`tests/test_tolerance.py`, and CONTRIBUTING.md for the
numbers); they are never raised to make a case pass.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

RUNS = 4
"""Randomly rounded runs that a yardstick is made of."""
CLOSER_RUNS, DOUBT = 32, 10.0
"""Runs that decide where a score is beyond its limit by less than this factor: the spread of four runs is itself off,
now and then by a factor of three."""
LIMITS = {"float32": 2.0, "float64": 10.0}
"""The largest score that passes."""
ELEMENT_ALLOWANCE = 4.0
"""How much further off than the mean the worst of many elements may be."""
MANY = 256
"""Elements from which on the worst is expected further off: over a spread estimated from `RUNS` runs, errors have the
tail of Student's t with as many degrees of freedom, whose largest of n grows as the `RUNS`-th root of n."""
POOL_FLOOR = 0.1
"""The least share of the pooled yardstick that an element has: four runs can miss an element's spread by luck."""
DEFAULTS = {"float32": (1.3e-6, 1e-5), "float64": (1e-7, 1e-7)}
"""`rtol` and `atol` that `torch.testing.assert_close` takes where the user gives none."""
TYPES: dict[str, Any] = {"float32": np.float32, "float64": np.float64}


class RoundingSource(Protocol):
    """A reference that can round at random; see `parity.runtimes.SourceRuntime`."""

    def rounding(self, dtype: str, seed: int) -> AbstractContextManager[float]: ...


@dataclass(frozen=True)
class Yardstick:
    """The truth and, per element, the standard deviation that rounding to `dtype` gives it. Both float64, one shape."""

    reference: np.ndarray
    deviation: np.ndarray
    dtype: str

    def at(self, mask: np.ndarray) -> Yardstick:
        """The same for the masked elements alone."""
        return Yardstick(self.reference[mask], self.deviation[mask], self.dtype)


@dataclass(frozen=True)
class Comparison:
    """A result's errors against the reference, in the units that users think in; see `parity.records.Record`."""

    error_ratio: float
    max_abs: float
    max_rel: float
    max_ulp: float
    rtol_needed: float
    atol_needed: float
    passed: bool


def assess(
    result: np.ndarray, source: RoundingSource, dtype: str, evaluate: Callable[[], np.ndarray]
) -> tuple[Comparison, Yardstick]:
    """Score `result` against what `evaluate` gives, of the float64 source; in doubt, by a closer yardstick."""
    yardstick = measure(source, dtype, evaluate)
    comparison = compare(result, yardstick)
    if LIMITS[dtype] < comparison.error_ratio < DOUBT * LIMITS[dtype]:
        yardstick = measure(source, dtype, evaluate, CLOSER_RUNS)
        comparison = compare(result, yardstick)
    return comparison, yardstick


def measure(source: RoundingSource, dtype: str, evaluate: Callable[[], np.ndarray], runs: int = RUNS) -> Yardstick:
    """Evaluate the float64 source exactly, and so many times with random rounding."""
    reference = evaluate()
    squares = np.zeros_like(reference)
    for seed in range(runs):
        with source.rounding(dtype, seed) as amplification:
            noisy = evaluate()
        with np.errstate(all="ignore"):
            squares += ((noisy - reference) / amplification) ** 2 / runs
    unit = np.finfo(TYPES[dtype]).eps / 2
    with np.errstate(all="ignore"):
        deviation = np.sqrt(squares + (unit * reference) ** 2)
    return Yardstick(reference, deviation, dtype)


def compare(result: np.ndarray, yardstick: Yardstick) -> Comparison:
    """Score `result` against the yardstick's reference. NaN and infinities pass only where the reference has them."""
    truth, dtype = yardstick.reference, yardstick.dtype
    if result.shape != truth.shape:
        raise ValueError(f"the converted model gives shape {result.shape}, its source {truth.shape}")
    if truth.size == 0:
        return Comparison(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, True)
    with np.errstate(all="ignore"):
        same = (result == truth) | (np.isnan(result) & np.isnan(truth))
        error = np.where(same, 0.0, np.abs(result - truth))
        magnitude = np.abs(truth)
        rtol, atol = DEFAULTS[dtype]
        ratio = _score(error, yardstick)
        return Comparison(
            error_ratio=ratio,
            max_abs=float(error.max()),
            max_rel=_largest_ratio(error, magnitude),
            max_ulp=_largest_ratio(error, np.spacing(magnitude.astype(TYPES[dtype])).astype(np.float64)),
            rtol_needed=_largest_ratio(np.where(error <= atol, 0.0, error - atol), magnitude),
            atol_needed=float(np.where(error <= rtol * magnitude, 0.0, error - rtol * magnitude).max()),
            passed=bool(ratio <= LIMITS[dtype]),
        )


def _score(error: np.ndarray, yardstick: Yardstick) -> float:
    # Below the root of the smallest number, products of two results underflow: no formula can do better there.
    smallest = float(np.sqrt(np.finfo(TYPES[yardstick.dtype]).tiny))
    deviation = np.where(np.isfinite(yardstick.reference), yardstick.deviation, 0.0)
    pool = max(_root_mean_square(deviation), smallest)
    mean = _root_mean_square(error) / pool
    worst = float((error / np.maximum(deviation, POOL_FLOOR * pool)).max())
    allowance = ELEMENT_ALLOWANCE * max(1.0, error.size / MANY) ** (1 / RUNS)
    return max(mean, worst / allowance) if worst == worst else worst


def _root_mean_square(values: np.ndarray) -> float:
    largest = float(np.abs(values).max())  # squares of very large or very small numbers would leave the range
    return largest * float(np.sqrt(np.mean((values / largest) ** 2))) if 0 < largest < np.inf else largest


def _largest_ratio(error: np.ndarray, unit: np.ndarray) -> float:
    """max(error / unit), where no error over no unit is 0, and an error over none is infinite."""
    return float(np.where(error == 0, 0.0, error / unit).max())
