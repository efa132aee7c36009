"""Speed ratios: right about which of two is faster, and modest where there is nothing to say. No absolute times."""

from __future__ import annotations

import pytest

from parity.timing import BUILDS, COSTLY_BUILDS, Call, Speed, compare_speed


def work(amount: int) -> Call:
    numbers = list(range(amount))
    return lambda: sum(numbers)


def test_more_work_is_slower() -> None:
    speed = compare_speed(lambda: work(3000), lambda: work(30_000), seconds=0.2)
    assert speed.ratio < 0.5 and speed.verdict == "slower"
    assert speed.builds == BUILDS


def test_less_work_is_faster() -> None:
    speed = compare_speed(lambda: work(30_000), lambda: work(3000), seconds=0.2)
    assert speed.ratio > 2 and speed.verdict == "faster"
    assert speed.low <= speed.ratio <= speed.high
    assert speed.source_us > speed.target_us > 0


def test_the_same_is_not_said_to_differ() -> None:
    verdicts = [compare_speed(lambda: work(5000), lambda: work(5000), seconds=0.2).verdict for _ in range(5)]
    assert verdicts.count("faster") + verdicts.count("slower") <= 1


def test_costly_builds_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parity.timing.COSTLY_SECONDS", 0.0)
    assert compare_speed(lambda: work(10), lambda: work(10), seconds=0.01).builds == COSTLY_BUILDS


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(1.2, 1.5, "faster"), (0.5, 0.8, "slower"), (0.98, 1.02, "same"), (0.9, 1.2, "unclear"), (1.0, 1.3, "unclear")],
)
def test_a_verdict_needs_a_margin(low: float, high: float, verdict: str) -> None:
    assert Speed((low + high) / 2, low, high, 1.0, 1.0, BUILDS).verdict == verdict
