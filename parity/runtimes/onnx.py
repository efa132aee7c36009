"""Executes `onnx.ModelProto`s: by onnxruntime, and, for a second opinion, by ONNX's own reference evaluator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from parity.errors import ParityError, Unsupported
from parity.runtimes import Arrays

DTYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.DOUBLE: "float64"}


class OnnxRuntime:
    """onnxruntime on the CPU with one thread, in the precision of the model's first input.

    A model exported for a fixed batch is called batch by batch.
    """

    representation = "onnx"

    def __init__(self, model: onnx.ModelProto, dtype: str | None = None) -> None:
        import onnxruntime

        self._read(model, dtype)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise Unsupported(f"onnxruntime cannot load the model: {_reason(error)}") from None

    def _read(self, model: onnx.ModelProto, dtype: str | None) -> None:
        held = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in held]
        self._bytes = int(model.ByteSize())
        self.names = [value.name for value in inputs]
        self.dtype = DTYPES.get(inputs[0].type.tensor_type.elem_type, "float32")
        if dtype not in (None, self.dtype):
            raise ParityError(f"the ONNX model computes in {self.dtype}: convert a {dtype} model for {dtype}")
        axes = inputs[0].type.tensor_type.shape.dim
        self.batch = axes[0].dim_value if len(axes) and axes[0].HasField("dim_value") else None

    @property
    def artifact_bytes(self) -> int:
        """Size of the `.onnx` file."""
        return self._bytes

    def value(self, inputs: Arrays) -> np.ndarray:
        return by_batches(self._value, inputs, self.batch)

    def _value(self, inputs: Arrays) -> np.ndarray:
        try:
            outputs = self.session.run(None, self._feed(inputs))
        except Exception as error:
            raise Unsupported(f"{type(self).__name__} cannot run the model: {_reason(error)}") from None
        return flatten(outputs, inputs[0].shape[0])

    def example(self, inputs: Arrays) -> Arrays:
        """The inputs as arrays of the model's precision."""
        return tuple(np.ascontiguousarray(array, self.dtype) for array in inputs)

    def caller(self, check: str, inputs: Arrays, projection: np.ndarray) -> Callable[[], object]:
        feed, run = self._feed(inputs), self.session.run
        return lambda: run(None, feed)

    def caller_description(self, check: str) -> str:
        return f"onnxruntime session.run, {self.dtype}, 1 thread"

    def _feed(self, inputs: Arrays) -> dict[str, np.ndarray]:
        return {name: np.ascontiguousarray(array, self.dtype) for name, array in zip(self.names, inputs, strict=True)}


class ReferenceRuntime(OnnxRuntime):
    """ONNX's reference evaluator: slow, written for clarity, independent of onnxruntime."""

    def __init__(self, model: onnx.ModelProto, dtype: str | None = None) -> None:
        from onnx.reference import ReferenceEvaluator

        self._read(model, dtype)
        self.session: Any = ReferenceEvaluator(model)

    def caller_description(self, check: str) -> str:
        return f"onnx.reference, {self.dtype}"


def _reason(error: Exception) -> str:
    lines = str(error).split("[0m")[0].strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def flatten(outputs: Any, batch: int) -> np.ndarray:
    """Output tensors as one float64 matrix (batch, outputs)."""
    return np.concatenate([np.asarray(output, np.float64).reshape(batch, -1) for output in outputs], axis=1)


def by_batches(value: Callable[[Arrays], np.ndarray], inputs: Arrays, batch: int | None) -> np.ndarray:
    """The value of any batch by a model whose batch is fixed; raises ParityError where it does not divide."""
    size = inputs[0].shape[0]
    if batch is None or batch == size:
        return value(inputs)
    if batch < 1 or size % batch:
        raise ParityError(f"the model takes batches of {batch}: {size} samples are no multiple of it")
    parts = [value(tuple(a[start : start + batch] for a in inputs)) for start in range(0, size, batch)]
    return np.concatenate(parts)
