"""Lowerings of resizing: linear along each axis, so one matrix per axis, which ONNX's own reference computes."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from parity.converters.onnx_caffe.compose import axis_map, gather
from parity.converters.onnx_caffe.graph import Node
from parity.converters.onnx_caffe.lowering import refuse
from parity.converters.onnx_caffe.writer import Blob, Writer
from parity.converters.registry import lowers

Value = Any


@lowers("Resize", to="caffe")
def resize(w: Writer, node: Node, x: Blob, roi: Value = None, scales: Value = None, sizes: Value = None) -> Blob:
    if node.opset < 11:
        roi, scales = None, roi
    if node.attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise refuse(node, "tf_crop_and_resize extrapolates by a constant: crop, then resize with half_pixel")
    if isinstance(scales, Blob) or isinstance(sizes, Blob):
        raise refuse(node, "its sizes must be constants")
    return _resize(w, node, x, None if scales is None or not scales.size else scales.tolist())


@lowers("Upsample", to="caffe")
def upsample(w: Writer, node: Node, x: Blob, scales: Value = None) -> Blob:
    """Resize's predecessor: floor(i·scale) positions, scales an attribute before opset 9."""
    return _resize(w, node, x, node.attributes["scales"] if scales is None else [float(s) for s in scales])


def _resize(w: Writer, node: Node, x: Blob, scales: list[float] | None) -> Blob:
    shape = node.shapes[0]
    assert shape is not None
    axes = node.attributes.get("axes") or list(range(x.rank))
    by_axis = {} if scales is None else dict(zip([axis % x.rank for axis in axes], scales, strict=True))
    matrices = {}
    for axis in range(x.rank):
        size, outputs = x.shape[axis], shape[axis]
        if size == outputs and by_axis.get(axis, 1.0) == 1.0:
            continue
        matrices[axis] = _matrix(node, size, outputs, by_axis.get(axis))
    if _repeats(matrices, x, shape):
        return _repeat(w, x, shape)
    for axis, matrix in matrices.items():
        ones = (matrix == 1).sum(1) == 1
        if ones.all() and (matrix != 0).sum() == len(matrix) and len(matrix) <= 2 * matrix.shape[1]:
            x = gather(w, x, axis, matrix.argmax(1).tolist())
        else:
            x = axis_map(w, x, axis, matrix)
    return x


def _matrix(node: Node, size: int, outputs: int, scale: float | None) -> np.ndarray:
    """(outputs, size): the reference's answer to each unit vector."""
    attributes = {key: value for key, value in node.attributes.items() if key != "axes"}
    operator, version = node.operator, node.opset
    if operator == "Upsample" or version < 11:
        attributes = {"mode": node.attributes.get("mode", "nearest"), "nearest_mode": "floor"}
        attributes["coordinate_transformation_mode"] = "asymmetric"
        operator, version = "Resize", 13
    policy = attributes.pop("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch" and scale is None:
        scale = outputs / size
    if version < 13:
        version = 13
    inputs = ["x", "", "scales"] if scale is not None else ["x", "", "", "sizes"]
    proto = helper.make_node("Resize", inputs, ["y"], **attributes)
    values: dict[str, np.ndarray] = {"x": np.eye(size, dtype=np.float64)}
    if scale is not None:
        values["scales"] = np.array([1, scale], np.float32)
    else:
        values["sizes"] = np.array([size, outputs], np.int64)
    infos = [helper.make_tensor_value_info("x", TensorProto.DOUBLE, None)]
    infos += [
        helper.make_tensor_value_info("scales", TensorProto.FLOAT, None)
        if scale is not None
        else helper.make_tensor_value_info("sizes", TensorProto.INT64, None)
    ]
    graph = helper.make_graph([proto], "matrix", infos, [helper.make_tensor_value_info("y", TensorProto.DOUBLE, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])
    outcome: Any = ReferenceEvaluator(model).run(None, values)
    result = np.asarray(outcome[0]).T
    if result.shape != (outputs, size):
        raise refuse(node, f"{size} to {outputs} positions: the reference makes {result.shape[0]}")
    return result.astype(np.float32)


def _repeats(matrices: dict[int, np.ndarray], x: Blob, shape: tuple[int, ...]) -> bool:
    """Whether every value is repeated a whole number of times along both image axes, the same in each."""
    if x.rank != 4 or not matrices or set(matrices) - {2, 3}:
        return False
    for axis, matrix in matrices.items():
        count, rest = divmod(shape[axis], x.shape[axis])
        if rest or not np.array_equal(matrix, np.repeat(np.eye(x.shape[axis], dtype=np.float32), count, axis=0)):
            return False
    return True


def _repeat(w: Writer, x: Blob, shape: tuple[int, ...]) -> Blob:
    """Each channel by a transposed convolution with a kernel of ones as large as its stride: Caffe's upsampling."""
    counts = [shape[axis] // x.shape[axis] for axis in (2, 3)]
    channels = x.shape[1]
    fields = {"num_output": channels, "group": channels, "bias_term": False, "kernel_size": counts, "stride": counts}
    kernel = np.ones((channels, 1, *counts), np.float32)
    return w.add("Deconvolution", [x], shape, [kernel], convolution_param=fields)
