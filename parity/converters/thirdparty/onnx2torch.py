"""onnx2torch (ENOT): ONNX models as `torch.fx` modules of its own layers. Converts onnx→torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parity.converters.registry import converter
from parity.errors import Unsupported

if TYPE_CHECKING:
    import onnx
    import torch


@converter("onnx", "torch", name="onnx2torch", dtypes=("float32",), requires=("onnx2torch", "torchvision"))
def onnx2torch(model: onnx.ModelProto, example: tuple[Any, ...] = ()) -> torch.nn.Module:
    """`onnx2torch.convert`; raises Unsupported, in one line, for an operator that it does not know."""
    from onnx2torch import convert

    try:
        module: torch.nn.Module = convert(model)
    except NotImplementedError as error:
        raise Unsupported(f"onnx2torch refuses: {' '.join(str(error).split())}") from error
    return module.eval()
