"""The reference converter onnx→caffe, and Caffe's files: `load`, `save`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.converters.registry import converter

if TYPE_CHECKING:
    import onnx

    from parity.caffe_format.model import CaffeModel


@converter("onnx", "caffe", name="reference", dtypes=("float32",))
def reference(
    model: onnx.ModelProto | str | Path | bytes,
    example: tuple[Any, ...] = (),
    *,
    dialect: str = "opencv",
    fold_batch_norm: bool = False,
) -> CaffeModel:
    """Express an ONNX model as a Caffe network with its weights.

    `model` is an `onnx.ModelProto`, the path of an `.onnx` file or its bytes. `example` holds an array or tensor for
    each input, batch axis first; only their shapes matter, and only where the model leaves axes open: Caffe's shapes
    are static. `dialect` says which Caffe the files are for: `bvlc` (upstream, no other layers), `ssd` (with Permute)
    or `opencv` (what `cv2.dnn.readNetFromCaffe` runs, the default, as it is the runtime here). Everything is float32.
    `fold_batch_norm=True` makes normalizations by constants part of the convolution or linear layer before them.

    Raises Unsupported, in one line, for a node that Caffe cannot express: it names the node, its operator and
    attributes, and the nearest thing that works. Raises ParityError for a file that is no valid ONNX model. An operator
    is added with `@parity.lowers("<Operator>", to="caffe")`: a function of the `Writer`, the node and its values.
    """
    from parity.converters.onnx_caffe.lowering import convert, parse_shapes

    return convert(model, parse_shapes(example), dialect, fold_batch_norm)


def save(model: CaffeModel, prototxt: str | Path, caffemodel: str | Path) -> None:
    """Write a model's two files."""
    from parity.caffe_format import model as files

    files.save(model, prototxt, caffemodel)


def load(prototxt: str | Path, caffemodel: str | Path | None = None, dialect: str = "bvlc") -> CaffeModel:
    """Read a model from its two files; raises ParityError, in one line, for files that are not what they should be."""
    from parity.caffe_format import model as files

    return files.load(prototxt, caffemodel, dialect)
