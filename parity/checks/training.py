"""What values cannot show: lost sharing, weights that became constants, folded layers, statistics that move otherwise.

A converted model that is to be trained further has the parameters of its source, and a step of training changes both
alike. The step's effect is read off the outputs afterwards, so that no weight need be matched with another.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from parity.checks.derivatives import projection
from parity.checks.tolerance import assess, compare
from parity.checks.verdict import Finding, judge
from parity.records import DEGENERATE, FAIL, PASS
from parity.runtimes import Arrays

STEP = 0.01
"""Of gradient descent on a mean of the outputs: as small as a user's, so that no activation saturates by it."""


def check_structure(source: Any, target: Any, inputs: Arrays, dtype: str) -> Finding:
    """Compare how many numbers are trained, and how many are kept besides: frozen parameters and statistics."""
    wanted, found = source.structure(), target.structure()
    off = [f"{found[kind]} {kind} numbers, its source {wanted[kind]}" for kind in wanted if found[kind] != wanted[kind]]
    return Finding(FAIL if off else PASS, None, f"the converted model has {' and '.join(off)}" if off else "")


def check_training(source: Any, target: Any, inputs: Arrays, dtype: str) -> Finding:
    """Compare outputs, in inference, after one step of gradient descent in training mode on the same batch."""
    outputs = source.value(inputs).shape[1]
    cotangent = STEP * np.tile(projection(outputs), (len(inputs[0]), 1)) / (len(inputs[0]) * outputs)

    def trained(runtime: Any) -> np.ndarray:
        return np.asarray(runtime.trained_value(inputs, cotangent))

    comparison, yardstick = assess(trained(target), source, dtype, lambda: trained(source))
    if not np.array_equal(yardstick.reference, trained(source), equal_nan=True):
        comparison = compare(yardstick.reference, yardstick)
        return Finding(DEGENERATE, comparison, "the model draws random numbers in training: no two steps agree")
    return judge(comparison)
