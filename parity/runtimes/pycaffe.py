"""Executes Caffe models by upstream Caffe's own Python module (`import caffe`), where the user has built it.

Written from Caffe's documentation. It has never met a real Caffe here: there is none that installs from a package.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from parity.caffe_format.model import CaffeModel, save
from parity.errors import ParityError, Unsupported
from parity.runtimes import Arrays
from parity.runtimes.onnx import by_batches, flatten


class PycaffeRuntime:
    """`caffe.Net` on the CPU, in float32, at the batch that the model declares."""

    representation = "caffe"
    dtype = "float32"

    def __init__(self, model: CaffeModel, dtype: str | None = None) -> None:
        import caffe

        if dtype not in (None, "float32"):
            raise ParityError(f"Caffe models compute in float32, not {dtype}")
        caffe.set_mode_cpu()
        self.model = model
        with TemporaryDirectory() as folder:
            files = Path(folder) / "net.prototxt", Path(folder) / "net.caffemodel"
            save(model, *files)
            try:
                self.net = caffe.Net(*map(str, files), caffe.TEST)
            except RuntimeError as error:
                raise Unsupported(f"Caffe cannot read the {model.dialect} model: {error}") from None

    @property
    def artifact_bytes(self) -> int:
        """Size of the `.caffemodel`."""
        return len(self.model.caffemodel())

    def value(self, inputs: Arrays) -> np.ndarray:
        return by_batches(self._value, inputs, next(iter(self.model.inputs.values()))[0])

    def _value(self, inputs: Arrays) -> np.ndarray:
        for name, array in zip(self.model.inputs, inputs, strict=True):
            self.net.blobs[name].data[...] = array
        self.net.forward()
        return flatten([self.net.blobs[name].data for name in self.model.outputs], inputs[0].shape[0])

    def caller(self, check: str, inputs: Arrays, projection: np.ndarray) -> Callable[[], object]:
        for name, array in zip(self.model.inputs, inputs, strict=True):
            self.net.blobs[name].data[...] = array
        forward: Callable[[], object] = self.net.forward
        return forward

    def caller_description(self, check: str) -> str:
        return "caffe.Net.forward, float32"
