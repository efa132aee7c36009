"""Adapters of converters that other projects publish: they run through the same suites as the reference.

An adapter does what the project's own documentation tells its user to do, and nothing more. Each is a module of its
own in this folder, found by itself. What a converter says no to, clearly, is raised as `Unsupported`; everything else
that it raises is its own.
"""

from importlib import import_module as _import
from pkgutil import iter_modules as _modules

for _module in _modules(__path__, f"{__name__}."):
    _import(_module.name)
