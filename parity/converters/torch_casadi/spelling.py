"""How torch spells one operation: as a function in several places, as an operator and as a method."""

from __future__ import annotations

import operator
from typing import Any

import torch

PLACES = (torch, torch.nn.functional, torch.special, operator)


def spelled(*names: str) -> tuple[Any, ...]:
    """Every function of those names, in place (`relu_`) or not, and the names themselves for the Tensor methods.

    Raises ValueError for a name that torch does not have at all, so that a misspelling shows.
    """
    found: dict[Any, None] = {}
    for name in names:
        functions = [getattr(place, word) for place in PLACES for word in (name, name + "_") if hasattr(place, word)]
        methods = [name] if hasattr(torch.Tensor, name) else []
        if not functions and not methods:
            raise ValueError(f"torch has no {name}")
        found.update(dict.fromkeys([*functions, *methods]))
    return tuple(found)
