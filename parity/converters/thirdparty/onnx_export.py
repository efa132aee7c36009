"""What the converters by way of ONNX share: a quiet export, its clear no, and where ONNX Runtime's library is."""

from __future__ import annotations

import io
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

NO = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'|Exporting the operator '([^']+)'")
"""How torch's two exporters name an operator that they do not know."""


def find_onnxruntime() -> None:
    """Tell CasADi where ONNX Runtime's shared library is, unless the user has; must come before its plugin loads."""
    spec = find_spec("onnxruntime")
    folders = [Path(folder) / "capi" for folder in (spec and spec.submodule_search_locations) or ()]
    names = ("libonnxruntime.so*", "libonnxruntime*.dylib", "onnxruntime.dll")
    libraries = [file for folder in folders for name in names for file in sorted(folder.glob(name))]
    if libraries:
        os.environ.setdefault("CASADI_ONNXRUNTIME_LIB", str(libraries[0]))


def no_of_onnx(error: BaseException | None) -> str:
    """The operator that torch's ONNX exporter does not know, in one line; empty for any other error."""
    while error is not None:
        if found := NO.search(str(error)):
            return f"torch.onnx cannot export the operator {found[1] or found[2]}"
        error = error.__cause__ or error.__context__
    return ""


def innermost(error: BaseException) -> BaseException:
    """What went wrong first: the exporters wrap it in advice."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' progress reports and warnings."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
