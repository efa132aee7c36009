"""Is the converted model still the same function, how far off is it, and is it faster?

The public API. Its names are loaded when they are used: importing `parity` imports no framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.api import assert_parity, check, convert
    from parity.converters.registry import converter, lowers
    from parity.errors import MissingPackage, ParityError, Unsupported
    from parity.ocp_layer import OcpLayer
    from parity.records import Record, load

_WHERE = {
    "parity.api": ("assert_parity", "check", "convert"),
    "parity.converters.registry": ("converter", "lowers"),
    "parity.errors": ("MissingPackage", "ParityError", "Unsupported"),
    "parity.ocp_layer": ("OcpLayer",),
    "parity.records": ("Record", "load"),
}
_MODULES = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "MissingPackage",
    "OcpLayer",
    "ParityError",
    "Record",
    "Unsupported",
    "assert_parity",
    "check",
    "convert",
    "converter",
    "load",
    "lowers",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'parity' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
