"""Where does it first go wrong? Growing prefixes of a model, converted like the whole: no hook into a converter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def first_diverging(prefixes: Iterable[tuple[str, Any]], agrees: Callable[[Any], bool]) -> str:
    """The name of the layer whose prefix is the first that does not agree with its source; empty if all do.

    A prefix that cannot be converted or run diverges too: that is where the trouble begins.
    """
    for name, model in prefixes:
        try:
            if not agrees(model):
                return name
        except Exception:
            return name
    return ""
