"""From an ONNX graph to a torch.fx graph: one call per node."""

from __future__ import annotations

from operator import getitem
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from parity.converters.registry import find_lowering
from parity.errors import Unsupported


def convert(model: onnx.ModelProto) -> torch.fx.GraphModule:
    """The module of an ONNX model: see `parity.converters.onnx_torch.reference`."""
    import parity.converters.onnx_torch.operators  # noqa: F401 — registers the lowerings

    root, graph = torch.nn.Module(), torch.fx.Graph()
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    values: dict[str, Any] = {
        value.name: graph.placeholder(f"x{number}")
        for number, value in enumerate(value for value in model.graph.input if value.name not in arrays)
    }
    for number, (name, array) in enumerate(arrays.items()):
        values[name] = _constant(root, graph, f"weight_{number}", array)
    for node in model.graph.node:
        results = _call(graph, node, [values[name] if name else None for name in node.input])
        values.update(zip(node.output, results, strict=True))
    outputs = [values[value.name] for value in model.graph.output]
    graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
    return torch.fx.GraphModule(root, graph, class_name="FromOnnx").eval()


def _constant(root: torch.nn.Module, graph: torch.fx.Graph, name: str, array: np.ndarray) -> Any:
    """A parameter, or for integers (axes, shapes, …) and single numbers their own values."""
    if array.dtype.kind in "iu":
        return tuple(int(element) for element in array.reshape(-1))
    if array.ndim == 0:
        return float(array)
    root.register_parameter(name, torch.nn.Parameter(torch.from_numpy(array.copy())))
    return graph.get_attr(name)


def _call(graph: torch.fx.Graph, node: onnx.NodeProto, inputs: list[Any]) -> list[Any]:
    function = find_lowering(node.op_type, "torch")
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    plain = {name: list(value) if isinstance(value, list | tuple) else value for name, value in attributes.items()}
    if function is None or node.domain not in ("", "ai.onnx"):
        raise Unsupported(f"node {node.name!r}, operator {node.op_type}({plain}): no torch function is known for it")
    result = graph.call_function(function, tuple(inputs), plain)
    if len(node.output) == 1:
        return [result]
    return [graph.call_function(getitem, (result, place)) for place in range(len(node.output))]
