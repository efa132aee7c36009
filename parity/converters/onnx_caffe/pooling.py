"""Lowerings of pooling. Caffe rounds the output size up, cuts windows at the padded border, and has no dilation."""

from __future__ import annotations

from typing import Any

import numpy as np

from parity.converters.onnx_caffe.compose import (
    LOWEST,
    axis_map,
    eltwise,
    multiply_constant,
    pad,
    reduce,
    reshape,
    take,
)
from parity.converters.onnx_caffe.contraction import images, window
from parity.converters.onnx_caffe.graph import Node
from parity.converters.onnx_caffe.lowering import refuse
from parity.converters.onnx_caffe.writer import Blob, Shape, Writer
from parity.converters.registry import lowers


def caffe_size(size: int, kernel: int, stride: int, padding: int, ceil: bool) -> int:
    """Output size by upstream's rule: rounded up or down; no window begins beyond the input and its first padding."""
    span = size + 2 * padding - kernel
    result = (-(-span // stride) if ceil else span // stride) + 1
    if padding and (result - 1) * stride >= size + padding:
        result -= 1
    return result


@lowers("GlobalAveragePool", "GlobalMaxPool", to="caffe")
def global_pool(w: Writer, node: Node, x: Blob) -> Blob:
    average = node.operator == "GlobalAveragePool"
    if x.rank == 4:
        fields = {"pool": "AVE" if average else "MAX", "global_pooling": True}
        return w.add("Pooling", [x], (*x.shape[:2], 1, 1), pooling_param=fields)
    return reduce(w, x, range(2, x.rank), "MEAN" if average else "MAX")


@lowers("MaxPool", to="caffe")
def max_pool(w: Writer, node: Node, x: Blob) -> Blob:
    return _pool(w, node, x, "MAX")


@lowers("AveragePool", to="caffe")
def average_pool(w: Writer, node: Node, x: Blob) -> Blob:
    return _pool(w, node, x, "AVE")


def _pool(w: Writer, node: Node, x: Blob, method: str) -> Blob:
    shape = node.shapes[0]
    assert shape is not None
    kernel = list(node.attributes["kernel_shape"])
    strides, dilations, pads = window(node, x.shape[2:], tuple(kernel))
    _check_windows(node, x.shape[2:], shape[2:], kernel, strides, dilations, pads, method)
    image = images(w, x)
    target: Shape = (1, shape[2]) if x.rank == 3 else shape[2:]
    if x.rank == 3:
        kernel, strides, dilations, pads = [1, *kernel], [1, *strides], [1, *dilations], [(0, 0), *pads]
    if x.rank > 4 or any(dilation > 1 for dilation in dilations):
        y = _by_axes(w, node, image, target, kernel, strides, dilations, pads, method)
    elif method == "MAX":
        y = _max_image(w, image, target, kernel, strides, pads)
    else:
        y = _average_image(w, node, image, target, kernel, strides, pads)
    return reshape(w, y, shape)


def _check_windows(
    node: Node, sizes: Shape, target: Shape, kernel: Any, strides: Any, dilations: Any, pads: Any, method: str
) -> None:
    for size, outputs, length, stride, dilation, (begin, _) in zip(
        sizes, target, kernel, strides, dilations, pads, strict=True
    ):
        for output in range(outputs):
            first = output * stride - begin
            if not any(0 <= first + dilation * offset < size for offset in range(length)):
                raise refuse(node, f"window {output} sees only padding: a smaller pad, or ceil_mode=0, works")


def _symmetric(w: Writer, image: Blob, target: Shape, kernel: Any, strides: Any, pads: Any) -> dict[str, Any] | None:
    """The fields with which Caffe's own rule gives exactly the target size, if there are any."""
    padding = [begin for begin, _ in pads]
    if any(begin >= length for begin, length in zip(padding, kernel, strict=True)):
        return None
    geometry = list(zip(image.shape[2:], kernel, strides, padding, strict=True))
    fields = {"kernel_h": kernel[0], "kernel_w": kernel[1], "stride_h": strides[0], "stride_w": strides[1]}
    fields |= {"pad_h": padding[0], "pad_w": padding[1]}
    if tuple(caffe_size(*axis, True) for axis in geometry) == target:
        return fields
    if tuple(caffe_size(*axis, False) for axis in geometry) == target and w.has("bvlc", "opencv"):
        return fields | ({"round_mode": "FLOOR"} if w.has("bvlc") else {"ceil_mode": False})
    return None


def _max_image(w: Writer, image: Blob, target: Shape, kernel: Any, strides: Any, pads: Any) -> Blob:
    """Caffe's own rule; where that gives another size, pad by the lowest number and crop, so that windows fit."""
    fields = _symmetric(w, image, target, kernel, strides, pads)
    if fields is None:
        image = _exact_extent(w, image, target, kernel, strides, pads, LOWEST)
        fields = {"kernel_h": kernel[0], "kernel_w": kernel[1], "stride_h": strides[0], "stride_w": strides[1]}
    return w.add("Pooling", [image], (*image.shape[:2], *target), pooling_param={"pool": "MAX", **_lean(fields)})


def _exact_extent(w: Writer, image: Blob, target: Shape, kernel: Any, strides: Any, pads: Any, value: float) -> Blob:
    for place, (begin, _) in enumerate(pads):
        axis = place + 2
        needed = (target[place] - 1) * strides[place] + kernel[place]
        image = pad(w, image, axis, begin, needed - begin - image.shape[axis], value)
    return image


def _lean(fields: dict[str, Any]) -> dict[str, Any]:
    """The same fields as people write them: one number for both axes, defaults left out."""
    lean = {name: value for name, value in fields.items() if name in ("round_mode", "ceil_mode")}
    for name, (height, width), default in (
        ("kernel", ("kernel_h", "kernel_w"), None),
        ("stride", ("stride_h", "stride_w"), 1),
        ("pad", ("pad_h", "pad_w"), 0),
    ):
        values = fields.get(height, default), fields.get(width, default)
        if values[0] == values[1]:
            if values[0] != default:
                lean["kernel_size" if name == "kernel" else name] = values[0]
        else:
            lean |= {height: values[0], width: values[1]}
    return lean


def _counts(
    size: int, outputs: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int], include: bool
) -> np.ndarray:
    """What ONNX divides each window's sum by: its places in the input, or in the padded input."""
    first, last = (-pads[0], size + pads[1]) if include else (0, size)
    starts = np.arange(outputs)[:, None] * stride - pads[0] + dilation * np.arange(kernel)
    return ((starts >= first) & (starts < last)).sum(1)


def _average_image(w: Writer, node: Node, image: Blob, target: Shape, kernel: Any, strides: Any, pads: Any) -> Blob:
    """Caffe's average times the ratio of the two divisors; windows placed otherwise are matrices along the axes."""
    include = bool(node.attributes.get("count_include_pad", 0))
    fields = _symmetric(w, image, target, kernel, strides, pads)
    if fields is None:
        return _average_axes(w, image, target, kernel, strides, [1, 1], pads, include)
    y = w.add("Pooling", [image], (*image.shape[:2], *target), pooling_param={"pool": "AVE", **_lean(fields)})
    ratios = []
    for size, outputs, length, stride, (begin, end) in zip(image.shape[2:], target, kernel, strides, pads, strict=True):
        starts = np.arange(outputs) * stride - begin
        caffe = np.minimum(starts + length, size + begin) - starts
        ratios.append(caffe / _counts(size, outputs, length, stride, 1, (begin, end), include))
    ratio = np.outer(*ratios)
    return y if (ratio == 1).all() else multiply_constant(w, y, ratio.astype(np.float32))


def _by_axes(
    w: Writer, node: Node, x: Blob, target: Shape, kernel: Any, strides: Any, dilations: Any, pads: Any, method: str
) -> Blob:
    """Dilated windows, and volumes: one axis after the other."""
    if method == "AVE":
        include = bool(node.attributes.get("count_include_pad", 0))
        return _average_axes(w, x, target, kernel, strides, dilations, pads, include)
    for place, outputs in enumerate(target):
        x = _max_axis(w, x, place + 2, outputs, kernel[place], strides[place], dilations[place], pads[place][0])
    return x


def _average_axes(
    w: Writer, x: Blob, target: Shape, kernel: Any, strides: Any, dilations: Any, pads: Any, include: bool
) -> Blob:
    for place, outputs in enumerate(target):
        size = x.shape[place + 2]
        geometry = (outputs, kernel[place], strides[place], dilations[place])
        matrix = np.zeros((outputs, size), np.float64)
        for output in range(outputs):
            positions = output * strides[place] - pads[place][0] + dilations[place] * np.arange(kernel[place])
            matrix[output, positions[(positions >= 0) & (positions < size)]] = 1
        matrix /= _counts(size, *geometry, pads[place], include)[:, None]
        if not (matrix.shape[0] == size and (matrix == np.eye(size)).all()):
            x = axis_map(w, x, place + 2, matrix.astype(np.float32))
    return x


def _max_axis(w: Writer, x: Blob, axis: int, outputs: int, kernel: int, stride: int, dilation: int, begin: int) -> Blob:
    """Maximum along one axis: of strided copies, one for each place of the window."""
    if kernel == 1 and stride == 1:
        return x
    needed = (outputs - 1) * stride + dilation * (kernel - 1) + 1
    x = pad(w, x, axis, begin, needed - begin - x.shape[axis], LOWEST)
    span = (outputs - 1) * stride + 1
    copies = [subsample(w, take(w, x, axis, k * dilation, k * dilation + span), axis, stride) for k in range(kernel)]
    return copies[0] if kernel == 1 else eltwise(w, "MAX", copies)


def subsample(w: Writer, x: Blob, axis: int, stride: int) -> Blob:
    """Every stride-th value along an axis, copied by pooling windows of one; the axis ends on a value kept."""
    if stride == 1:
        return x
    outputs = (x.shape[axis] - 1) // stride + 1
    shape = (*x.shape[:axis], outputs, *x.shape[axis + 1 :])
    flat = (int(np.prod(x.shape[:axis])), 1, x.shape[axis], int(np.prod(x.shape[axis + 1 :])))
    fields = {"pool": "MAX", "kernel_size": 1, "stride_h": stride, "stride_w": 1}
    image = reshape(w, x, flat)
    return reshape(w, w.add("Pooling", [image], (flat[0], 1, outputs, flat[3]), pooling_param=fields), shape)
