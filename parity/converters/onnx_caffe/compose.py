"""What lowerings are made of: Caffe's plain layers, and compositions of them that exist in every dialect.

Each function adds layers to a `Writer` and returns the resulting `Blob`. Where a layer is missing in a dialect, or
computes something else there, the choice is made here, once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from parity.converters.onnx_caffe.writer import Blob, Shape, Writer
from parity.errors import Unsupported

MOST_PIECES = 64
"""Slices that a gather or a transposition may be made of."""
LARGEST_MAP = 1 << 24
"""Elements of the largest matrix that a linear map along an axis may take (64 MB of weights)."""
LOWEST = -3.0e38
"""Stands for minus infinity: Caffe's own maximum starts at the lowest finite number."""


def apply(w: Writer, kind: str, x: Blob, **parameters: Any) -> Blob:
    """A layer that keeps the shape."""
    return w.add(kind, [x], x.shape, **parameters)


def power(w: Writer, x: Blob, power: float = 1.0, scale: float = 1.0, shift: float = 0.0) -> Blob:
    """(shift + scale·x)^power; no layer where that is x."""
    given = {"power": float(power), "scale": float(scale), "shift": float(shift)}
    fields = {name: value for name, value in given.items() if value != (name != "shift")}
    return apply(w, "Power", x, power_param=fields) if fields else x


def negate(w: Writer, x: Blob) -> Blob:
    return power(w, x, scale=-1)


def relu(w: Writer, x: Blob) -> Blob:
    return apply(w, "ReLU", x)


def logarithm(w: Writer, x: Blob) -> Blob:
    """Natural logarithm; OpenCV ignores the layer's scale and shift, so they are never used."""
    return apply(w, "Log", x)


def constant(w: Writer, values: np.ndarray) -> Blob:
    """A blob that holds an array: upstream's Parameter layer, OpenCV's Const."""
    array = np.asarray(values, np.float32)
    if w.has("opencv"):
        return w.add("Const", [], array.shape, [array])
    return w.add("Parameter", [], array.shape, [array], parameter_param={"shape": {"dim": list(array.shape)}})


def as_blob(w: Writer, value: Blob | np.ndarray) -> Blob:
    return value if isinstance(value, Blob) else constant(w, value)


def eltwise(w: Writer, operation: str, blobs: Sequence[Blob], coefficients: Sequence[float] = ()) -> Blob:
    """SUM (with coefficients), PROD or MAX of blobs of one shape."""
    fields = {"operation": operation, **({"coeff": list(coefficients)} if coefficients else {})}
    return w.add("Eltwise", blobs, blobs[0].shape, eltwise_param=fields)


def minimum(w: Writer, first: Blob, second: Blob) -> Blob:
    return negate(w, eltwise(w, "MAX", [negate(w, first), negate(w, second)]))


def clip(w: Writer, x: Blob, low: float | None, high: float | None) -> Blob:
    """x limited to [low, high]; exact, for limits are taken by MAX and never added."""
    if low is not None and high is not None and low <= high:
        if (low, high) == (0, 6) and w.has("opencv"):
            return apply(w, "ReLU6", x)
        if w.has("bvlc"):
            return apply(w, "Clip", x, clip_param={"min": low, "max": high})
    if low is not None:
        x = relu(w, x) if low == 0 else eltwise(w, "MAX", [x, power(w, x, scale=0, shift=low)])
    return x if high is None else minimum(w, x, power(w, x, scale=0, shift=high))


def step(w: Writer, x: Blob) -> Blob:
    """1 where x > 0, else 0."""
    return relu(w, apply(w, "Sign", x)) if w.has("opencv") else apply(w, "Threshold", x)


# --- shapes -----------------------------------------------------------------------------------------------------------


def reshape(w: Writer, x: Blob, shape: Shape) -> Blob:
    """The same values in another shape. The batch axis is copied or inferred, so that any batch can flow through."""
    if x.shape == tuple(shape):
        return x
    dims = list(shape) if not shape or not x.shape else [0 if shape[0] == x.shape[0] else -1, *shape[1:]]
    return w.add("Reshape", [x], tuple(shape), reshape_param={"shape": {"dim": dims}})


def concat(w: Writer, blobs: Sequence[Blob], axis: int) -> Blob:
    if len(blobs) == 1:
        return blobs[0]
    shape = list(blobs[0].shape)
    shape[axis] = sum(blob.shape[axis] for blob in blobs)
    return w.add("Concat", blobs, tuple(shape), concat_param={"axis": axis})


def split(w: Writer, x: Blob, axis: int, sizes: Sequence[int]) -> list[Blob]:
    """Consecutive pieces of the given sizes."""
    if len(sizes) == 1:
        return [x]
    shapes = [(*x.shape[:axis], size, *x.shape[axis + 1 :]) for size in sizes]
    points = [int(point) for point in np.cumsum(sizes)[:-1]]
    return w.add_many("Slice", [x], shapes, slice_param={"axis": axis, "slice_point": points})


def take(w: Writer, x: Blob, axis: int, start: int, stop: int) -> Blob:
    """x[start:stop] along an axis. What is cut off is silenced: an unread top would be an output of the net."""
    sizes = [size for size in (start, stop - start, x.shape[axis] - stop) if size]
    pieces = split(w, x, axis, sizes)
    kept = pieces[1 if start else 0]
    unread = [piece for piece in pieces if piece is not kept]
    if unread:
        w.silence(unread)
    return kept


def gather(w: Writer, x: Blob, axis: int, indices: Sequence[int]) -> Blob:
    """x at constant positions along an axis: by slices where few suffice, else by a matrix of zeros and ones."""
    indices = [int(index) % x.shape[axis] for index in indices]
    if not indices:
        raise Unsupported("an empty selection: Caffe has no empty blobs")
    breaks = [place for place in range(1, len(indices)) if indices[place] != indices[place - 1] + 1]
    bounds = [0, *breaks, len(indices)]
    runs = [(indices[a], indices[b - 1] + 1) for a, b in itertools.pairwise(bounds)]
    if len(runs) <= MOST_PIECES:
        return concat(w, [take(w, x, axis, start, stop) for start, stop in runs], axis)
    return axis_map(w, x, axis, _selection(indices, x.shape[axis]))


def _selection(indices: Sequence[int], size: int) -> np.ndarray:
    if len(indices) * size > LARGEST_MAP:
        raise Unsupported(f"a selection of {len(indices)} among {size} positions is too large a matrix")
    return np.eye(size, dtype=np.float32)[list(indices)]


def axis_map(w: Writer, x: Blob, axis: int, matrix: np.ndarray) -> Blob:
    """Multiply along an axis by a (new size, size) matrix, in every dialect: InnerProduct, or a 1×1 Convolution."""
    outputs, size = matrix.shape
    if matrix.size > LARGEST_MAP:
        raise Unsupported(f"a {outputs}×{size} matrix along axis {axis} is too large")
    shape = (*x.shape[:axis], outputs, *x.shape[axis + 1 :])
    if axis == x.rank - 1 and axis > 0:
        fields = {"num_output": outputs, "bias_term": False, "axis": axis}
        return w.add("InnerProduct", [x], shape, [matrix], inner_product_param=fields)
    flat = reshape(w, x, (prod(x.shape[:axis]), size, 1, prod(x.shape[axis + 1 :])))
    fields = {"num_output": outputs, "bias_term": False, "kernel_size": [1]}
    kernel = np.asarray(matrix, np.float32)[:, :, None, None]
    mapped = w.add("Convolution", [flat], (flat.shape[0], outputs, *flat.shape[2:]), [kernel], convolution_param=fields)
    return reshape(w, mapped, shape)


def permute(w: Writer, x: Blob, order: Sequence[int]) -> Blob:
    """Transpose axes: the Permute layer, or, upstream, slices put together the other way round."""
    shape = tuple(x.shape[axis] for axis in order)
    moved = [axis for axis in order if x.shape[axis] != 1]
    if moved == sorted(moved):
        return reshape(w, x, shape)
    if w.has("ssd", "opencv"):
        return w.add("Permute", [x], shape, permute_param={"order": list(order)})
    sizes, current = x.shape, list(range(x.rank))
    for place, axis in enumerate(order):
        source = current.index(axis)
        if source == place:
            continue
        between = prod(sizes[other] for other in current[place:source])
        behind = prod(sizes[other] for other in current[source + 1 :])
        x = _swap(w, x, place, between, sizes[axis], behind)
        current.insert(place, current.pop(source))
        x = reshape(w, x, tuple(sizes[other] for other in current))
    return x


def _swap(w: Writer, x: Blob, place: int, first: int, second: int, rest: int) -> Blob:
    """(…, first, second, rest) to (…, second, first, rest), the shapes behind `place` being merged."""
    before = x.shape[:place] or (1,)
    at = len(before)
    if first == 1 or second == 1:
        return reshape(w, x, (*before, second, first, rest))
    if min(first, second) > MOST_PIECES:
        raise Unsupported(
            f"a transposition of {first}×{second}: upstream Caffe has no Permute; use dialect ssd or opencv"
        )
    x = reshape(w, x, (*before, first, second, rest))
    axis, count = (at, first) if first <= second else (at + 1, second)
    pieces = [reshape(w, piece, _swapped(piece.shape, at)) for piece in split(w, x, axis, [1] * count)]
    return concat(w, pieces, at + 1 if axis == at else at)


def _swapped(shape: Shape, at: int) -> Shape:
    return (*shape[:at], shape[at + 1], shape[at], *shape[at + 2 :])


def pad(w: Writer, x: Blob, axis: int, before: int, after: int, value: float) -> Blob:
    """Constant padding along an axis (negative: cropping), as a concatenation: exact, for any value."""
    x = take(w, x, axis, max(0, -before), x.shape[axis] - max(0, -after))
    pieces = [*constants_like(w, x, axis, before, value), x, *constants_like(w, x, axis, after, value)]
    return concat(w, pieces, axis)


def constants_like(w: Writer, x: Blob, axis: int, length: int, value: float) -> list[Blob]:
    """Blobs of one number, shaped like x but along the axis, where they add up to `length`."""
    pieces = []
    while length > 0:
        part = min(length, x.shape[axis])
        pieces.append(power(w, take(w, x, axis, 0, part), scale=0, shift=value))
        length -= part
    return pieces


# --- broadcasting -----------------------------------------------------------------------------------------------------


def broadcast_to(w: Writer, x: Blob, shape: Shape) -> Blob:
    """The blob repeated along the axes where it has size 1 or none."""
    x = reshape(w, x, (1,) * (len(shape) - x.rank) + x.shape)
    for first, last in groups([axis for axis, size in enumerate(shape) if size != x.shape[axis]]):
        flat = reshape(w, x, (*x.shape[:first], 1, *x.shape[last:]))
        x = tile(w, flat, first, prod(shape[first:last]))
        x = reshape(w, x, (*x.shape[:first], *shape[first:last], *x.shape[first + 1 :]))
    return x


def tile(w: Writer, x: Blob, axis: int, count: int) -> Blob:
    """The blob `count` times along an axis; OpenCV has no Tile, a matrix of ones and zeros does it."""
    if count == 1:
        return x
    if w.has("opencv"):
        return axis_map(w, x, axis, np.tile(np.eye(x.shape[axis], dtype=np.float32), (count, 1)))
    shape = (*x.shape[:axis], x.shape[axis] * count, *x.shape[axis + 1 :])
    return w.add("Tile", [x], shape, tile_param={"axis": axis, "tiles": count})


def block(shape: Shape, whole: Shape) -> tuple[int, int] | None:
    """Axes [first, last) of `whole` outside of which an operand of `shape` has size 1; None if it does not fit.

    `shape` is aligned to the right, as broadcasting does; within the block, every size must be the whole's.
    """
    if len(shape) > len(whole):
        return None
    shape = (1,) * (len(whole) - len(shape)) + shape
    full = [axis for axis, size in enumerate(shape) if size != 1]
    if not full:
        return (0, 0)
    first, last = full[0], full[-1] + 1
    return (first, last) if shape[first:last] == whole[first:last] else None


def multiply_constant(w: Writer, x: Blob, values: np.ndarray) -> Blob:
    """x·values with broadcasting."""
    return _with_constant(w, x, values, scaling=True)


def add_constant(w: Writer, x: Blob, values: np.ndarray) -> Blob:
    """x + values with broadcasting. OpenCV has no Bias layer: a Scale by ones does it, exactly."""
    return _with_constant(w, x, values, scaling=False)


def _with_constant(w: Writer, x: Blob, values: np.ndarray, scaling: bool) -> Blob:
    values = np.asarray(values, np.float32)
    shape = np.broadcast_shapes(x.shape, values.shape)
    if values.size == 1:
        x = reshape(w, x, shape)
        number = float(values.reshape(()))
        return power(w, x, scale=number) if scaling else power(w, x, shift=number)
    if shape != x.shape:
        x = broadcast_to(w, x, shape)
    aligned = values.reshape((1,) * (x.rank - values.ndim) + values.shape)
    full = [axis for axis, size in enumerate(aligned.shape) if size != 1]
    first, last = full[0], full[-1] + 1
    weights = np.broadcast_to(aligned, (*aligned.shape[:first], *x.shape[first:last], *aligned.shape[last:]))
    weights = weights.reshape(x.shape[first:last])
    if scaling:
        return affine(w, x, first, weights)
    if w.has("opencv"):
        return affine(w, x, first, np.ones_like(weights), weights)
    return w.add("Bias", [x], x.shape, [weights], bias_param={"axis": first, "num_axes": last - first})


def affine(w: Writer, x: Blob, axis: int, weights: np.ndarray, bias: np.ndarray | None = None) -> Blob:
    """A Scale layer: x·weights (+ bias), the weights' axes beginning at `axis`."""
    fields = {"axis": axis, "num_axes": weights.ndim, **({"bias_term": True} if bias is not None else {})}
    return w.add("Scale", [x], x.shape, [weights] if bias is None else [weights, bias], scale_param=fields)


def _block_of_any_batch(shape: Shape, whole: Shape) -> tuple[int, int] | None:
    """`block`, but an operand that has the batch axis keeps it: so that a net of batch 1 is right for others too."""
    found = block(shape, whole)
    if found is None or len(shape) < len(whole) or found[0] == 0:
        return found
    return (0, found[1]) if shape[: found[0]] == whole[: found[0]] else None


def multiply(w: Writer, first: Blob, second: Blob) -> Blob:
    """The product with broadcasting: a Scale with two bottoms where one is a block of the other, as in a gate."""
    shape = np.broadcast_shapes(first.shape, second.shape)
    for large, small in ((first, second), (second, first)):
        found = _block_of_any_batch(small.shape, large.shape) if large.shape == shape != small.shape else None
        if found and found[1] - found[0] >= (2 if w.has("opencv") else 1):
            reduced = reshape(w, small, shape[found[0] : found[1]])
            return w.add("Scale", [large, reduced], shape, scale_param={"axis": found[0]})
    return eltwise(w, "PROD", [broadcast_to(w, first, shape), broadcast_to(w, second, shape)])


def add(w: Writer, first: Blob, second: Blob, sign: float = 1.0) -> Blob:
    """first + sign·second with broadcasting."""
    shape = np.broadcast_shapes(first.shape, second.shape)
    blobs = [broadcast_to(w, first, shape), broadcast_to(w, second, shape)]
    return eltwise(w, "SUM", blobs, () if sign == 1 else (1.0, sign))


# --- reductions -------------------------------------------------------------------------------------------------------


def groups(axes: Sequence[int]) -> list[tuple[int, int]]:
    """Runs [first, last) of consecutive axes."""
    runs: list[tuple[int, int]] = []
    for axis in sorted(axes):
        if runs and runs[-1][1] == axis:
            runs[-1] = (runs[-1][0], axis + 1)
        else:
            runs.append((axis, axis + 1))
    return runs


def reduce(w: Writer, x: Blob, axes: Sequence[int], operation: str) -> Blob:
    """MEAN, SUM or MAX over axes, which keep size 1."""
    for first, last in groups(axes):
        length = prod(x.shape[first:last])
        shape = (*x.shape[:first], *(1,) * (last - first), *x.shape[last:])
        if length > 1:
            flat = reshape(w, x, (prod(x.shape[:first]), 1, length, prod(x.shape[last:])))
            x = _reduce_column(w, flat, operation)
        x = reshape(w, x, shape)
    return x


def _reduce_column(w: Writer, flat: Blob, operation: str) -> Blob:
    n, _, length, width = flat.shape
    if operation == "SUM":
        return axis_map(w, flat, 2, np.ones((1, length), np.float32))
    fields = {"pool": {"MEAN": "AVE", "MAX": "MAX"}[operation], "kernel_h": length, "kernel_w": 1}
    return w.add("Pooling", [flat], (n, 1, 1, width), pooling_param=fields)


def normalize(w: Writer, x: Blob, epsilon: float) -> Blob:
    """(x − mean)/√(variance + ε) over the last axis of a (rows, size) blob.

    Upstream's MVN divides by √variance + ε instead: there the variance is computed by layers of its own.
    """
    rows, size = x.shape
    flat = reshape(w, x, (rows, 1, 1, size))
    if w.has("opencv"):
        return reshape(w, apply(w, "MVN", flat, mvn_param={"eps": epsilon}), x.shape)
    centred = apply(w, "MVN", flat, mvn_param={"normalize_variance": False})
    variance = reduce(w, power(w, centred, 2), [3], "MEAN")
    deviation = reshape(w, power(w, variance, -0.5, shift=epsilon), (rows, 1))
    scaled = w.add("Scale", [centred, deviation], flat.shape, scale_param={"axis": 0})
    return reshape(w, scaled, x.shape)
