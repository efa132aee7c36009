"""Outputs against outputs."""

from __future__ import annotations

from typing import Any

from parity.checks.tolerance import assess
from parity.checks.verdict import Finding, judge
from parity.runtimes import Arrays


def check_value(source: Any, target: Any, inputs: Arrays, dtype: str) -> Finding:
    """Compare outputs for a batch of inputs. `source` is the runtime of the float64 reference."""
    comparison, _ = assess(target.value(inputs), source, dtype, lambda: source.value(inputs))
    return judge(comparison)
