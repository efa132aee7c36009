"""keras→onnx by Keras and tf2onnx, then onnx→torch by onnx2torch (https://github.com/ENOT-AutoDL/onnx2torch)."""

from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from parity.converters.registry import converter
from parity.converters.thirdparty.folders import fresh_folder
from parity.errors import Unsupported

if TYPE_CHECKING:
    import torch

NO = re.compile(r"Converter is not implemented \(OperationDescription\(domain='[^']*', operation_type='([^']+)'")


@converter(
    "keras",
    "torch",
    name="onnx2torch",
    dtypes=("float32",),
    requires=("tf2onnx", "onnx", "onnx2torch"),
    install="pip install onnx && pip install --no-deps tf2onnx onnx2torch",
)
def onnx2torch(model: Any, example: tuple[Any, ...]) -> torch.nn.Module:
    """The model as `model.export(format="onnx")` writes it, read back as a `torch.fx.GraphModule`.

    Raises `Unsupported` for ONNX operators that onnx2torch does not know, else what the three projects raise.
    """
    import onnx

    file = str(fresh_folder() / "model.onnx")
    with _quiet():
        model(list(example) if len(example) > 1 else example[0], training=False)  # or Keras refuses to export
        model.export(file, format="onnx", verbose=False)
        with _torchvision():
            from onnx2torch import convert
        try:
            return convert(onnx.load(file))
        except NotImplementedError as error:
            if found := NO.search(str(error)):
                raise Unsupported(f"onnx2torch does not know the ONNX operator {found[1]}") from error
            raise


@contextmanager
def _torchvision() -> Iterator[None]:
    """onnx2torch imports it for two operators that Keras has not; an empty one does where none is installed."""
    names = ("torchvision", "torchvision.ops") if find_spec("torchvision") is None else ()
    for name in names:
        module = ModuleType(name)
        module.__dict__["__getattr__"] = lambda name: None  # whatever is asked for
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
