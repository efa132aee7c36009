"""How fast is one callable against another, on a machine that does other things too.

Both are timed in interleaved pairs, so that a drifting machine hits both, and over several fresh builds of each: two
instances of the very same model differ by up to 4 % (where their memory lies), which no number of repetitions of one
instance shows. The figure is the median over builds of each build's median ratio; the interval goes from the second
smallest to the second largest of 8 builds and covers the true median with 93 % (order statistics).
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from statistics import median
from time import perf_counter

Call = Callable[[], object]

BUILDS = 8
COSTLY_BUILDS = 3
"""Builds where one takes longer than `COSTLY_SECONDS`; the interval is then the whole range."""
COSTLY_SECONDS = 1.0
SECONDS = 0.6
"""Time spent on one ratio, without the builds."""
LEAST_PAIRS = 5
BLOCK_SECONDS = 50e-6
"""Calls are timed in blocks of at least this length: the clock itself costs some tens of nanoseconds."""
MARGIN = 0.05
"""A difference within this share is none."""


@dataclass(frozen=True)
class Speed:
    """Source time / target time (above 1: the converted model is faster), its interval, and medians per call."""

    ratio: float
    low: float
    high: float
    source_us: float
    target_us: float
    builds: int

    @property
    def verdict(self) -> str:
        """`faster` or `slower` (the target, by more than the margin), `same`, or `unclear`."""
        if self.low > 1 + MARGIN:
            return "faster"
        if self.high < 1 / (1 + MARGIN):
            return "slower"
        return "same" if self.low > 1 / (1 + MARGIN) and self.high < 1 + MARGIN else "unclear"


def compare_speed(source: Callable[[], Call], target: Callable[[], Call], seconds: float = SECONDS) -> Speed:
    """Time what `source` and `target` build. Each gives a fresh, ready-made call without arguments."""
    ratios, source_times, target_times = [], [], []
    builds, number = BUILDS, 0
    while number < builds:
        start = perf_counter()
        calls = (source(), target()) if number % 2 else (target(), source())[::-1]  # neither is always built last
        if number == 0 and perf_counter() - start > COSTLY_SECONDS:
            builds = COSTLY_BUILDS
        pairs = _time_pairs(*calls, seconds / builds, Random(number))
        ratios.append(median(of_source / of_target for of_source, of_target in pairs))
        source_times.append(median(of_source for of_source, _ in pairs))
        target_times.append(median(of_target for _, of_target in pairs))
        number += 1
    ratios.sort()
    low, high = (ratios[1], ratios[-2]) if builds == BUILDS else (ratios[0], ratios[-1])
    return Speed(median(ratios), low, high, median(source_times) * 1e6, median(target_times) * 1e6, builds)


def _time_pairs(source: Call, target: Call, seconds: float, rng: Random) -> list[tuple[float, float]]:
    """Seconds per call of both, block by block, in random order within each pair."""
    repeats = {call: _repeats(call) for call in (source, target)}
    collecting = gc.isenabled()
    gc.disable()
    try:
        pairs: list[tuple[float, float]] = []
        end = perf_counter() + seconds
        while perf_counter() < end or len(pairs) < LEAST_PAIRS:
            spent = {}
            for call in (source, target) if rng.random() < 0.5 else (target, source):
                spent[call] = _time(call, repeats[call])
            pairs.append((spent[source], spent[target]))
        return pairs
    finally:
        if collecting:
            gc.enable()


def _repeats(call: Call) -> int:
    """How many calls make a block. Warms up on the way."""
    call()
    repeats = 1
    while _time(call, repeats) * repeats < BLOCK_SECONDS:
        repeats *= 2
    return repeats


def _time(call: Call, repeats: int) -> float:
    start = perf_counter()
    for _ in range(repeats):
        call()
    return (perf_counter() - start) / repeats
