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
    layer: str = ""
    """The layer that it blames, where the check itself can tell."""
    cut_short: bool = False
    """A time limit ended it: to time it would measure that limit."""


def judge(comparison: Comparison) -> Finding:
    """`pass` or `fail`, by the comparison alone."""
    return Finding(PASS if comparison.passed else FAIL, comparison)
