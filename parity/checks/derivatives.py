"""Jacobians, Hessians and vector-Jacobian products against those of the float64 source, where they exist.

At a kink (ReLU at 0, a tie of maxima) the derivative is not unique, and two right programs may differ. So when a
comparison fails, the source's own derivative is taken at nearby points on both sides: elements that jump there are
left out, and if the rest agrees the verdict is `degenerate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parity.checks.tolerance import assess, compare
from parity.checks.verdict import Finding, judge
from parity.records import DEGENERATE, PASS
from parity.runtimes import Arrays

STEP = 1e-6
"""Relative distance of the nearby points: far above rounding, far below what bends a smooth derivative."""
JUMP = 1e-3
"""A change by more than this share of the largest element is a jump: a smooth one changes by about `STEP`."""
DIRECTIONS = 4

Derivative = Callable[[Any, Arrays], np.ndarray]


def check_jacobian(source: Any, target: Any, inputs: Arrays, dtype: str) -> Finding:
    """Compare the Jacobians (outputs x inputs) of every sample of a batch."""
    return _check(source, target, inputs, dtype, lambda runtime, sample: runtime.jacobian(sample))


def check_hessian(source: Any, target: Any, inputs: Arrays, dtype: str) -> Finding:
    """Compare the Hessians (inputs x inputs) of a random projection of the outputs, for every sample of a batch."""
    weights = projection(source.value(inputs).shape[1])
    return _check(source, target, inputs, dtype, lambda runtime, sample: runtime.hessian(sample, weights))


def check_vjp(source: Any, target: Any, inputs: Arrays, dtype: str) -> Finding:
    """Compare the derivatives of a random projection of the outputs by the inputs, for a whole batch at once."""
    weights = projection(source.value(inputs).shape[1])
    signs = np.random.RandomState(1).choice((-1.0, 1.0), (len(inputs[0]), 1))  # so that samples differ

    def of_batch(runtime: Any, batch: Arrays) -> np.ndarray:
        return np.asarray(runtime.vjp(batch, signs * weights))

    return _compare(source, target, inputs, dtype, of_batch)


def projection(outputs: int) -> np.ndarray:
    """Weights that make one scalar of the outputs, none of them near zero, always the same."""
    rng = np.random.RandomState(outputs)
    return rng.uniform(0.5, 1.5, outputs) * rng.choice((-1.0, 1.0), outputs)


def _check(source: Any, target: Any, inputs: Arrays, dtype: str, derivative: Derivative) -> Finding:
    def of_all(runtime: Any, batch: Arrays) -> np.ndarray:
        samples = [tuple(array[index : index + 1] for array in batch) for index in range(len(batch[0]))]
        return np.stack([derivative(runtime, sample) for sample in samples])

    return _compare(source, target, inputs, dtype, of_all)


def _compare(source: Any, target: Any, inputs: Arrays, dtype: str, of_all: Derivative) -> Finding:
    result = of_all(target, inputs)
    comparison, yardstick = assess(result, source, dtype, lambda: of_all(source, inputs))
    finding = judge(comparison)
    if finding.verdict == PASS:
        return finding
    jumps = _jumps(lambda batch: of_all(source, batch), inputs, yardstick.reference)
    smooth = compare(result[~jumps], yardstick.at(~jumps))
    if not jumps.any() or not smooth.passed:
        return finding
    message = f"{int(jumps.sum())} of {jumps.size} elements jump at this point and are left out; the others agree"
    return Finding(DEGENERATE, smooth, message)


def _jumps(derivative: Callable[[Arrays], np.ndarray], inputs: Arrays, here: np.ndarray) -> np.ndarray:
    """Which elements of the derivative `here` are not the limit of those nearby."""
    rng = np.random.RandomState(0)
    jumps = np.zeros(here.shape, dtype=bool)
    for _ in range(DIRECTIONS):
        steps = [STEP * np.maximum(1.0, np.abs(array)) * rng.choice((-1.0, 1.0), array.shape) for array in inputs]
        for sign in (1.0, -1.0):
            there = derivative(tuple(array + sign * step for array, step in zip(inputs, steps, strict=True)))
            scale = max(float(np.abs(here).max()), float(np.abs(there).max()))
            jumps |= np.abs(there - here) > JUMP * scale
    return jumps
