"""The converters torch→onnx: torch's two exporters.

They export float64 models too, but ONNX keeps slopes and epsilons as float32: such a model is right to 1e-8 only, and
the suites check float32.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

from parity.converters.registry import converter
from parity.errors import Unsupported

if TYPE_CHECKING:
    import onnx
    import torch

OPSET = 18
"""The opset both exporters write unless told otherwise: the first that the dynamo exporter writes by itself."""


@converter("torch", "onnx", name="dynamo", dtypes=("float32",), requires=("onnxscript",))
def dynamo(model: torch.nn.Module, example: tuple[torch.Tensor, ...], *, opset: int = OPSET) -> onnx.ModelProto:
    """Export by `torch.onnx.export(dynamo=True)`: the graph that `torch.export` captures, at the example's shapes.

    `example` holds one tensor for each argument of `model.forward`, batch axis first. Inputs are named as the
    exporter names them, outputs `y0`, `y1`, …; the precision is the model's. Raises Unsupported in one line for what
    the exporter refuses.
    """
    import torch

    with _quiet(), _refusing(model, "dynamo"):
        program = torch.onnx.export(
            model, example, dynamo=True, opset_version=opset, verbose=False, external_data=False
        )
        assert program is not None
        return program.model_proto


@converter("torch", "onnx", name="torchscript", dtypes=("float32",))
def torchscript(
    model: torch.nn.Module, example: tuple[torch.Tensor, ...], *, opset: int = OPSET, dynamic_batch: bool = False
) -> onnx.ModelProto:
    """Export by the TorchScript exporter (`dynamo=False`): a trace of one call, at the example's shapes.

    `dynamic_batch=True` leaves the first axis of every input open. Otherwise as `dynamo`.
    """
    import onnx
    import torch

    names = [f"x{number}" for number in range(len(example))] if len(example) > 1 else ["x"]
    axes: dict[str, Any] = {name: {0: "batch"} for name in names} if dynamic_batch else {}
    file: Any = io.BytesIO()
    with _quiet(), _refusing(model, "torchscript"):
        torch.onnx.export(model, example, file, dynamo=False, opset_version=opset, input_names=names, dynamic_axes=axes)
    return onnx.load_from_string(file.getvalue())


@contextmanager
def _refusing(model: torch.nn.Module, exporter: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        root = error
        while root.__cause__ is not None and isinstance(root.__cause__, Exception):
            root = root.__cause__  # the exporters wrap the reason in pages of their own
        lines = [line.strip() for line in str(root).splitlines() if line.strip()]
        reason = lines[0] if lines else type(root).__name__
        raise Unsupported(f"torch's {exporter} exporter refuses {type(model).__name__}: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters talk on every channel there is."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
