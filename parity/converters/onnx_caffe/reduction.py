"""Lowerings of reductions over axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from parity.converters.onnx_caffe.compose import (
    add,
    apply,
    axis_map,
    eltwise,
    logarithm,
    negate,
    power,
    reduce,
    reshape,
)
from parity.converters.onnx_caffe.graph import Node
from parity.converters.onnx_caffe.lowering import refuse
from parity.converters.onnx_caffe.writer import Blob, Writer
from parity.converters.registry import lowers

Value = Any
REDUCTIONS = ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare"]
REDUCTIONS += ["ReduceLogSum", "ReduceLogSumExp"]


@lowers(*REDUCTIONS, to="caffe")
def reduction(w: Writer, node: Node, x: Blob, axes: Value = None) -> Blob:
    shape = node.shapes[0]
    assert shape is not None
    if isinstance(axes, Blob):
        raise refuse(node, "its axes must be constants")
    given = node.attributes.get("axes") if axes is None else axes.tolist()
    if not given and node.attributes.get("noop_with_empty_axes", 0):
        axes_ = []
    else:
        axes_ = [axis % x.rank for axis in given] if given else list(range(x.rank))
    return reshape(w, _reduce(w, node.operator.removeprefix("Reduce"), x, axes_), shape)


def _reduce(w: Writer, name: str, x: Blob, axes: list[int]) -> Blob:
    if name in ("Mean", "Sum", "Max"):
        return reduce(w, x, axes, name.upper())
    if name == "Min":
        return negate(w, reduce(w, negate(w, x), axes, "MAX"))
    if name == "L1":
        return reduce(w, apply(w, "AbsVal", x), axes, "SUM")
    if name == "LogSum":
        return logarithm(w, reduce(w, x, axes, "SUM"))
    if name == "LogSumExp":
        largest = reduce(w, x, axes, "MAX")
        return add(w, largest, logarithm(w, reduce(w, apply(w, "Exp", add(w, x, largest, -1)), axes, "SUM")))
    squares = reduce(w, eltwise(w, "PROD", [x, x]), axes, "SUM")
    return power(w, squares, 0.5) if name == "L2" else squares


@lowers("CumSum", to="caffe")
def cumulative_sum(w: Writer, node: Node, x: Blob, axis: Value) -> Blob:
    """A triangular matrix along the axis."""
    if isinstance(axis, Blob):
        raise refuse(node, "its axis must be a constant")
    place = int(np.reshape(axis, ())) % x.rank
    matrix = np.tril(np.ones((x.shape[place],) * 2, np.float32), -1 if node.attributes.get("exclusive", 0) else 0)
    return axis_map(w, x, place, matrix.T if node.attributes.get("reverse", 0) else matrix)
