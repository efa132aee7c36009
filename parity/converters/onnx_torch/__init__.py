"""The converter onnx→torch, for the operators that `caffe→onnx` writes: the last step from Caffe back to torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parity.converters.registry import converter

if TYPE_CHECKING:
    import onnx
    import torch


@converter("onnx", "torch", name="reference", dtypes=("float32",))
def reference(model: onnx.ModelProto, example: tuple[Any, ...] = ()) -> torch.fx.GraphModule:
    """Express an ONNX model of static shapes as a `torch.fx.GraphModule` in eval mode; `example` is not looked at.

    Weights are parameters, in the model's own precision. Any batch can flow through, where the model's own reshapes
    copy or infer the first axis. Raises Unsupported, in one line, for an operator that is not known: those are known
    that `caffe→onnx` writes, and more are added with `@parity.lowers("<Operator>", to="torch")`: a function of tensors
    (integer constants as tuples) and the node's attributes as keywords.
    """
    from parity.converters.onnx_torch.building import convert

    return convert(model)
