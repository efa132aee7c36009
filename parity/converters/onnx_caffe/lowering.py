"""From an ONNX model to a Caffe net: every node goes to the lowering that is registered for its operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from parity.caffe_format.model import CaffeModel
from parity.caffe_format.schema import check_dialect
from parity.converters.onnx_caffe.fusing import fold_batch_norm, stable_log_sigmoid
from parity.converters.onnx_caffe.graph import Graph, Node, Shape, prepare, read
from parity.converters.onnx_caffe.writer import Blob, Writer
from parity.converters.registry import find_lowering
from parity.errors import ParityError, Unsupported

FINITE = {
    *("Add", "Sub", "Mul", "Sum", "Mean", "Max", "Min", "Neg", "Abs", "Relu", "LeakyRelu", "PRelu", "Elu", "Celu"),
    *("Selu", "Sigmoid", "Tanh", "Softplus", "Softsign", "HardSigmoid", "HardSwish", "Mish", "Gelu", "Erf", "Swish"),
    *("Clip", "Softmax", "Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool", "MaxPool", "Concat", "Split", "Pad"),
    *("GlobalAveragePool", "GlobalMaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Cast"),
    *("Gather", "Expand", "Tile", "Resize", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Where", "Not", "And"),
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "GatherND"),
    *("CumSum", "Trilu", "LogSoftmax", "LRN", "Upsample", "Sign", "Floor", "Ceil", "Round", "Sin", "Cos", "Atan"),
    *("Or", "Equal", "BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization"),
}
"""Operators whose result is finite (barring overflow) where their operands are: a `Where` may choose between them."""


def refuse(node: Node, nearest: str) -> Unsupported:
    """The error for a node that Caffe cannot express; `nearest` says what would work."""
    return Unsupported(f"{node}: {nearest}")


def scalar(node: Node, value: Any) -> float:
    """The number in a constant of one element; raises Unsupported for anything else."""
    if isinstance(value, Blob) or np.size(value) != 1:
        raise refuse(node, "only a constant number can be, here")
    return float(np.reshape(value, ()))


def constants(node: Node, *values: Any) -> list[np.ndarray]:
    """The values, if they are all constants; raises Unsupported otherwise. What is left out is left out."""
    if any(isinstance(value, Blob) for value in values):
        raise refuse(node, "its weights must be constants: Caffe's layers own theirs")
    return [value for value in values if value is not None]


def convert(source: Any, shapes: Sequence[Shape], dialect: str, fold: bool = False) -> CaffeModel:
    """The Caffe model of an ONNX model: see `parity.converters.onnx_caffe.reference`."""
    import parity.converters.onnx_caffe.operators  # noqa: F401 — registers the lowerings

    check_dialect(dialect)
    graph = prepare(read(source), shapes, lambda operator: find_lowering(operator, "caffe") is not None)
    graph = stable_log_sigmoid(fold_batch_norm(graph) if fold else graph)
    w = Writer(graph.name, dialect)
    blobs: dict[str, Any] = {name: _declare(w, name, shape) for name, shape in graph.inputs.items()}
    finite = {*graph.inputs}
    for node in graph.nodes:
        _check_choice(node, graph, finite)
        for name, blob in zip(node.outputs, _lower(w, node, graph, blobs), strict=False):
            blobs[name] = blob
        if node.operator in FINITE or _finite_division(node, graph):
            operands = {name for name in node.inputs if name and name not in graph.constants}
            if operands <= finite:
                finite.update(node.outputs)
    outputs = tuple(_output(w, graph, blobs, name).name for name in graph.outputs)
    return CaffeModel(w.net, dialect, outputs)


def _declare(w: Writer, name: str, shape: Shape) -> Blob:
    try:
        return w.input(name, shape)
    except Unsupported as error:
        raise Unsupported(f"input {name!r}: {error}") from None


def _lower(w: Writer, node: Node, graph: Graph, blobs: dict[str, Any]) -> Sequence[Blob]:
    lowering = find_lowering(node.operator, "caffe")
    if lowering is None:
        raise refuse(node, 'Caffe has no such layer; add one with @parity.lowers("…", to="caffe")')
    w.stem = node.outputs[0] or node.name
    values = [_value(graph, blobs, name) for name in node.inputs]
    try:
        result = lowering(w, node, *values)
    except Unsupported as error:
        if str(error).startswith("node "):
            raise
        raise refuse(node, str(error)) from None
    results = [result] if isinstance(result, Blob) else list(result)
    for blob, shape, name in zip(results, node.shapes, node.outputs, strict=False):
        if name and blob.shape != shape:
            raise ParityError(f"{node}: its lowering gave shape {blob.shape} in place of {shape}; please report it")
    missing = [name for name in node.outputs[len(results) :] if name]
    if missing:
        raise refuse(node, f"output {missing[0]!r} has no counterpart; use the first output alone")
    return results


def _value(graph: Graph, blobs: dict[str, Any], name: str) -> Any:
    if not name:
        return None
    return graph.constants[name] if name in graph.constants else blobs[name]


def _check_choice(node: Node, graph: Graph, finite: set[str]) -> None:
    if node.operator != "Where":
        return
    for name in node.inputs[1:]:
        certain = bool(np.isfinite(graph.constants[name]).all()) if name in graph.constants else name in finite
        if not certain:
            raise refuse(node, f"{name!r} may be infinite and 0·∞ is no number; clip it first")


def _finite_division(node: Node, graph: Graph) -> bool:
    if node.operator not in ("Div", "Pow") or node.inputs[1] not in graph.constants:
        return False
    second = graph.constants[node.inputs[1]]
    return bool(np.all(second != 0) if node.operator == "Div" else np.all((second > 0) & (second % 1 == 0)))


def _output(w: Writer, graph: Graph, blobs: dict[str, Any], name: str) -> Blob:
    """The blob of a graph output, as a top that no layer reads and that is the first of its layer."""
    if name in graph.constants:
        raise Unsupported(f"output {name!r} does not depend on the input: a Caffe net has nothing to compute it from")
    blob = blobs[name]
    read = {bottom for layer in w.net.layer for bottom in layer.bottom}
    first = {layer.top[0] for layer in w.net.layer if layer.top}
    if blob.name in read or blob.name not in first:
        w.stem = name
        blob = w.add("Power", [blob], blob.shape, power_param={})
    return blob


def parse_shapes(example: Sequence[Any]) -> list[Shape]:
    """Shapes of an example's tensors, of whatever framework."""
    return [tuple(int(size) for size in tensor.shape) for tensor in example]
