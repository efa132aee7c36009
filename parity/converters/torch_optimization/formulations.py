"""How max(u, 0), and what is made of it, is told to a solver. A `config` maps layers to one of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parity.errors import ParityError


@dataclass(frozen=True)
class Direct:
    """The function itself, kink and all: for solvers of smooth problems, which may get stuck at the kink."""


@dataclass(frozen=True)
class BigM:
    """A binary per neuron whose sign the bounds leave open. Exact, and global, if the bounds hold.

    y ≥ u, y ≥ 0, y ≤ u - L (1 - z), y ≤ U z, with L ≤ u ≤ U from interval arithmetic over the box of inputs.
    `bound` puts ±bound in the place of L and U.
    """

    bound: float | None = None


@dataclass(frozen=True)
class Sos1:
    """y - s = u, y ≥ 0, s ≥ 0, and {y, s} a special ordered set of type 1: exact without a big number."""


@dataclass(frozen=True)
class Complementarity:
    """y - s = u, y ≥ 0, s ≥ 0, y s ≤ 0. Exact; a solver of smooth problems finds a local optimum of it."""


@dataclass(frozen=True)
class Smooth:
    """(u + √(u² + ε²)) / 2: an approximation from above, by at most ε / 2."""

    epsilon: float = 1e-6


Formulation = Direct | BigM | Sos1 | Complementarity | Smooth
NAMES: dict[str, Formulation] = {
    "direct": Direct(),
    "big-m": BigM(),
    "sos1": Sos1(),
    "complementarity": Complementarity(),
    "smooth": Smooth(),
}
Config = Mapping[Any, "Formulation | str"]
"""From a layer's type or its name in the model to a formulation; `"default"` for all others."""


def formulation(value: Formulation | str) -> Formulation:
    """The formulation of that name; raises ParityError for another word."""
    if not isinstance(value, str):
        return value
    if value not in NAMES:
        raise ParityError(f"unknown formulation {value!r}: one of {', '.join(NAMES)}, or an object such as BigM(10.0)")
    return NAMES[value]
