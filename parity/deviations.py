"""Known errors of runtimes and exporters that no converter of ours can mend: listed with a reason, and strict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from parity.records import FAIL, UNSUPPORTED, Record

if TYPE_CHECKING:
    from parity.cases.case import Case


@dataclass(frozen=True)
class Deviation:
    """A `fail` that is expected where the blamed stage and layer, the regime and the size of the error are as said.

    The record keeps its verdict and says why; the test is an expected failure (pytest's xfail).
    """

    reason: str
    layers: tuple[str, ...]
    """Names of the vocabulary; empty for any."""
    stages: tuple[str, ...]
    """Such as `torch→onnx`."""
    converters: tuple[str, ...] = ()
    """Of which one is part of the chain; empty for any."""
    regimes: tuple[str, ...] = ()
    """Empty for any."""
    largest: float = math.inf
    """Error ratio, in rounding units."""
    certain: Callable[[Case], bool] = lambda case: False
    """Cases where it must show: once it does not, the entry has had its day, and the test fails."""

    def concerns(self, converter: str) -> bool:
        """Whether it is about this chain, named by its converters joined by `+`."""
        return not self.converters or bool({*self.converters} & {*converter.split("+")})

    def explains(self, record: Record) -> bool:
        # Where converting is slow no layer is blamed: then it may be any of the model's.
        blamed = {record.blame_layer.rpartition("_")[0]} if record.blame_layer else {*record.layers.lower().split(">")}
        return (
            record.verdict == FAIL
            and (not self.layers or bool(blamed & {name.lower() for name in self.layers}))
            and record.blame_stage in self.stages
            and self.concerns(record.converter)
            and (not self.regimes or record.regime in self.regimes)
            and record.error_ratio is not None
            and record.error_ratio <= self.largest
        )


def explanation(deviations: Sequence[Deviation], record: Record) -> str:
    """The reason that the list gives for a failure; empty if there is none."""
    return next((deviation.reason for deviation in deviations if deviation.explains(record)), "")


def overdue(deviations: Sequence[Deviation], case: Case, converter: str, records: Sequence[Record]) -> list[Deviation]:
    """The entries that should have shown in this case and did not, where the converter could run at all."""
    if all(record.verdict == UNSUPPORTED for record in records):
        return []
    return [
        deviation
        for deviation in deviations
        if deviation.concerns(converter)
        and deviation.certain(case)
        and not any(deviation.explains(record) for record in records)
    ]
