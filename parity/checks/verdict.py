"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass

from parity.checks.tolerance import Comparison
from parity.records import FAIL, PASS


@dataclass(frozen=True)
class Finding:
    """A verdict with the numbers it rests on."""

    verdict: str
    comparison: Comparison | None
    """None where no arrays are compared."""
    message: str = ""


def judge(comparison: Comparison) -> Finding:
    """`pass` or `fail`, by the comparison alone."""
    return Finding(PASS if comparison.passed else FAIL, comparison)
