"""The converter caffe→onnx: our own reader of Caffe models, by upstream's definitions of the layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parity.converters.registry import converter

if TYPE_CHECKING:
    import onnx

    from parity.caffe_format.model import CaffeModel


@converter("caffe", "onnx", name="reference", dtypes=("float32",))
def reference(model: CaffeModel, example: tuple[Any, ...] = ()) -> onnx.ModelProto:
    """Express a Caffe model (`parity.converters.onnx_caffe.load`) as an ONNX model of opset 17, in float32.

    Shapes are those that the files declare; `example` is not looked at. Inputs and outputs keep their blobs' names.
    Raises Unsupported, in one line, for a layer that is not known, and ParityError for a net that breaks Caffe's rules.
    """
    from parity.converters.caffe_onnx.reading import convert

    return convert(model)
