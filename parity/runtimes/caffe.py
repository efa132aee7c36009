"""Executes Caffe models: by OpenCV's DNN module, from memory, or by upstream Caffe."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.errors import ParityError, Unsupported
from parity.runtimes import Arrays
from parity.runtimes.onnx import by_batches, flatten

if TYPE_CHECKING:
    from parity.caffe_format.model import CaffeModel


class CaffeRuntime:
    """OpenCV's importer of Caffe models, on the CPU, in float32, at the batch that the model declares.

    Raises Unsupported, in one line, for a model that OpenCV refuses: one written for another dialect may be.
    """

    representation = "caffe"
    dtype = "float32"

    def __init__(self, model: CaffeModel, dtype: str | None = None) -> None:
        import cv2

        if dtype not in (None, "float32"):
            raise ParityError(f"Caffe models compute in float32, not {dtype}")
        self.model = model
        self.outputs = list(model.outputs)
        self.shapes = model.inputs
        text = np.frombuffer(model.prototxt().encode(), np.uint8)
        stored = model.caffemodel()
        self._bytes = len(stored)
        weights = np.frombuffer(stored, np.uint8)
        try:
            self.net = cv2.dnn.readNetFromCaffe(text, weights)
        except cv2.error as error:
            raise Unsupported(f"OpenCV cannot read the {model.dialect} Caffe model: {_reason(error)}") from None
        self.net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
        self.net.enableWinograd(False)  # trades digits for speed, unasked

    @property
    def batch(self) -> int:
        return next(iter(self.shapes.values()))[0]

    @property
    def artifact_bytes(self) -> int:
        """Size of the `.caffemodel`."""
        return self._bytes

    def value(self, inputs: Arrays) -> np.ndarray:
        return by_batches(self._value, inputs, self.batch)

    def _value(self, inputs: Arrays) -> np.ndarray:
        import cv2

        try:
            self._feed(inputs)
            outputs = [np.array(output) for output in self.net.forward(self.outputs)]
        except cv2.error as error:
            raise Unsupported(f"OpenCV cannot run the {self.model.dialect} Caffe model: {_reason(error)}") from None
        return flatten(outputs, inputs[0].shape[0])

    def _feed(self, inputs: Arrays) -> None:
        for name, array in zip(self.shapes, inputs, strict=True):
            self.net.setInput(np.ascontiguousarray(array, np.float32), name)

    def caller(self, check: str, inputs: Arrays, projection: np.ndarray) -> Callable[[], object]:
        """OpenCV computes anew only after `setInput`, which is therefore part of the call."""
        arrays = [np.ascontiguousarray(array, np.float32) for array in inputs]
        net, names, outputs = self.net, list(self.shapes), self.outputs

        def call() -> object:
            for name, array in zip(names, arrays, strict=True):
                net.setInput(array, name)
            return net.forward(outputs)

        return call

    def caller_description(self, check: str) -> str:
        import cv2

        return f"cv2.dnn {cv2.__version__} setInput and forward, float32, {cv2.getNumThreads()} thread(s)"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text.split("error: ", 1)[-1][:200]


def runtime(model: CaffeModel, dtype: str | None = None) -> Any:
    """Upstream Caffe for its own dialects, where it can be imported; else OpenCV."""
    if model.dialect != "opencv" and find_spec("caffe"):
        from parity.runtimes.pycaffe import PycaffeRuntime

        return PycaffeRuntime(model, dtype)
    return CaffeRuntime(model, dtype)
