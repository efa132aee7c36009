"""Lowerings of operators that move values about and compute nothing."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from parity.converters.onnx_caffe.compose import (
    add_constant,
    broadcast_to,
    concat,
    constant,
    constants_like,
    gather,
    multiply_constant,
    pad,
    permute,
    reshape,
    split,
    take,
    tile,
)
from parity.converters.onnx_caffe.graph import Node
from parity.converters.onnx_caffe.lowering import refuse, scalar
from parity.converters.onnx_caffe.pooling import subsample
from parity.converters.onnx_caffe.writer import Blob, Shape, Writer
from parity.converters.registry import lowers

Value = Any


def shape_of(node: Node) -> Shape:
    shape = node.shapes[0]
    assert shape is not None
    return shape


def integers(node: Node, value: Value) -> list[int]:
    if not isinstance(value, np.ndarray):
        raise refuse(node, "its shape arguments must be constants")
    return [int(number) for number in value.reshape(-1)]


@lowers("Reshape", "Flatten", "Squeeze", "Unsqueeze", to="caffe")
def reshape_(w: Writer, node: Node, x: Blob, target: Value = None) -> Blob:
    return reshape(w, x, shape_of(node))


@lowers("Transpose", to="caffe")
def transpose(w: Writer, node: Node, x: Blob) -> Blob:
    return permute(w, x, node.attributes.get("perm") or list(range(x.rank))[::-1])


@lowers("Expand", to="caffe")
def expand(w: Writer, node: Node, x: Blob, target: Value) -> Blob:
    return broadcast_to(w, x, shape_of(node))


@lowers("Tile", to="caffe")
def tile_(w: Writer, node: Node, x: Blob, repeats: Value, *more: Value) -> Blob:
    for axis, count in enumerate(integers(node, repeats)):
        x = tile(w, x, axis, count)
    return x


@lowers("Concat", to="caffe")
def concat_(w: Writer, node: Node, *values: Value) -> Blob:
    parts = [value for value in values if np.prod(value.shape) > 0]
    axis = node.attributes["axis"] % len(parts[0].shape)
    beside = next(part for part in parts if isinstance(part, Blob))
    return concat(w, [part if isinstance(part, Blob) else _beside(w, beside, axis, part) for part in parts], axis)


def _beside(w: Writer, blob: Blob, axis: int, values: np.ndarray) -> Blob:
    """A constant to concatenate with a blob. OpenCV's Concat writes over its Const layers: zeros, plus values."""
    if not w.has("opencv"):
        return constant(w, values)
    return add_constant(w, concat(w, constants_like(w, blob, axis, values.shape[axis], 0.0), axis), values)


@lowers("Split", to="caffe")
def split_(w: Writer, node: Node, x: Blob, sizes: Value = None) -> list[Blob]:
    axis = node.attributes.get("axis", 0) % x.rank
    given = [shape[axis] for shape in node.shapes if shape is not None]
    if len(given) != len(node.shapes) or sum(given) != x.shape[axis]:
        raise refuse(node, "every output must be used: take slices instead")
    pieces = split(w, x, axis, given)
    unread = [piece for piece, name in zip(pieces, node.outputs, strict=True) if not name]
    w.silence(unread)
    return pieces


@lowers("Slice", to="caffe")
def slice_(w: Writer, node: Node, x: Blob, *given: Value) -> Blob:
    """Starts and ends are attributes before opset 10."""
    names = ("starts", "ends", "axes", "steps")
    values: dict[str, list[int] | None] = {name: node.attributes.get(name) for name in names}
    values |= {name: integers(node, value) for name, value in zip(names, given, strict=False) if value is not None}
    starts, ends = values["starts"] or [], values["ends"] or []
    axes = values["axes"] or list(range(len(starts)))
    steps = values["steps"] or [1] * len(starts)
    for axis, start, end, stride in zip(axes, starts, ends, steps, strict=True):
        axis %= x.rank
        places = range(x.shape[axis])[start:end:stride]
        if stride >= 1 and len(places) > 0:
            last = places[0] + stride * (len(places) - 1)
            x = subsample(w, take(w, x, axis, places[0], last + 1), axis, stride)
        else:
            x = gather(w, x, axis, places)
    return x


@lowers("Gather", to="caffe")
def gather_(w: Writer, node: Node, x: Value, indices: Value) -> Blob:
    if not isinstance(indices, np.ndarray):
        raise refuse(node, "only constant indices can be")
    axis = node.attributes.get("axis", 0) % x.rank
    return reshape(w, gather(w, x, axis, indices.reshape(-1).tolist()), shape_of(node))


@lowers("GatherND", to="caffe")
def gather_nd(w: Writer, node: Node, x: Value, indices: Value) -> Blob:
    """Constant index tuples: positions on the axis that their axes make when merged."""
    if not isinstance(indices, np.ndarray) or node.attributes.get("batch_dims", 0):
        raise refuse(node, "only constant indices without batch_dims can be")
    depth = indices.shape[-1]
    sizes = x.shape[:depth]
    tuples = indices.reshape(-1, depth) % np.array(sizes)
    flat = np.ravel_multi_index(tuple(tuples.T), sizes)
    merged = reshape(w, x, (prod(sizes), *(x.shape[depth:] or (1,))))
    return reshape(w, gather(w, merged, 0, flat.tolist()), shape_of(node))


@lowers("Pad", to="caffe")
def pad_(w: Writer, node: Node, x: Blob, pads: Value = None, value: Value = None, axes: Value = None) -> Blob:
    """Constants are concatenated; reflection, edges and wrapping are gathered from the input."""
    amounts = node.attributes["pads"] if pads is None else integers(node, pads)
    places = list(range(x.rank)) if axes is None else [axis % x.rank for axis in integers(node, axes)]
    mode = node.attributes.get("mode", "constant")
    fill = node.attributes.get("value", 0.0) if value is None or np.size(value) == 0 else scalar(node, value)
    for place, axis in enumerate(places):
        before, after = amounts[place], amounts[place + len(places)]
        if not before and not after:
            continue
        if mode == "constant":
            x = pad(w, x, axis, before, after, fill)
        else:
            x = gather(w, x, axis, _positions(x.shape[axis], before, after, mode))
    return x


def _positions(size: int, before: int, after: int, mode: str) -> list[int]:
    line = np.arange(size)[max(0, -before) : size - max(0, -after)]
    return [int(i) for i in np.pad(line, (max(0, before), max(0, after)), mode=mode)]  # type: ignore[call-overload]


@lowers("Trilu", to="caffe")
def triangle(w: Writer, node: Node, x: Blob, diagonal: Value = None) -> Blob:
    offset = 0 if diagonal is None else int(scalar(node, diagonal))
    ones = np.ones(x.shape[-2:], np.float32)
    return multiply_constant(w, x, np.triu(ones, offset) if node.attributes.get("upper", 1) else np.tril(ones, offset))
