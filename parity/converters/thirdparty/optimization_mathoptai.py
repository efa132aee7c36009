"""MathOptAI.jl: https://github.com/lanl-ansi/MathOptAI.jl"""

from __future__ import annotations

import shutil
from typing import Any

from parity.converters.registry import converter
from parity.errors import Unsupported


@converter("torch", "optimization", name="mathoptai", requires=("juliacall",))
def mathoptai(model: Any, example: tuple[Any, ...]) -> Any:
    """Says why it cannot run: there was no Julia to write and test the bridge with.

    (torch and Julia in one process may crash, PythonCall.jl issues 215 and 435: it belongs into a process of its own.)
    """
    if shutil.which("julia") is None:
        raise Unsupported("no Julia here: install Julia, and in it MathOptAI, PythonCall, JuMP and a solver")
    raise Unsupported("the bridge to MathOptAI is not written: it could not be tested without Julia")
