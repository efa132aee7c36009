"""Lowerings of convolutions and matrix products."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from parity.converters.onnx_caffe.compose import (
    add,
    add_constant,
    axis_map,
    broadcast_to,
    permute,
    power,
    reshape,
    take,
)
from parity.converters.onnx_caffe.graph import Node
from parity.converters.onnx_caffe.lowering import constants, refuse
from parity.converters.onnx_caffe.writer import Blob, Shape, Writer
from parity.converters.registry import lowers

Value = Any


def window(node: Node, spatial: Shape, kernel: Shape) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Strides, dilations and (begin, end) pads per axis of a convolution or pooling, `auto_pad` resolved."""
    axes = len(kernel)
    strides = node.attributes.get("strides") or [1] * axes
    dilations = node.attributes.get("dilations") or [1] * axes
    pads = node.attributes.get("pads") or [0] * 2 * axes
    pairs = list(zip(pads[:axes], pads[axes:], strict=True))
    mode = node.attributes.get("auto_pad", "NOTSET")
    if mode == "VALID":
        pairs = [(0, 0)] * axes
    elif mode.startswith("SAME"):
        pairs = []
        for size, length, stride, dilation in zip(spatial, kernel, strides, dilations, strict=True):
            total = max(0, (-(-size // stride) - 1) * stride + dilation * (length - 1) + 1 - size)
            half = total // 2
            pairs.append((half, total - half) if mode == "SAME_UPPER" else (total - half, half))
    return strides, dilations, pairs


def dilate(kernel: np.ndarray, axis: int, dilation: int) -> np.ndarray:
    """The kernel with its holes filled by zeros."""
    shape = list(kernel.shape)
    shape[axis] = dilation * (shape[axis] - 1) + 1
    dense = np.zeros(shape, kernel.dtype)
    places: list[slice] = [slice(None)] * kernel.ndim
    places[axis] = slice(None, None, dilation)
    dense[tuple(places)] = kernel
    return dense


def extend(kernel: np.ndarray, axis: int, before: int, after: int) -> np.ndarray:
    """The kernel with zeros around it along one axis."""
    widths = [(0, 0)] * kernel.ndim
    widths[axis] = (before, after)
    return np.pad(kernel, widths)


def images(w: Writer, x: Blob) -> Blob:
    """(N, C, L) as (N, C, 1, L): Caffe's convolution and pooling are made for images."""
    return reshape(w, x, (*x.shape[:2], 1, x.shape[2])) if x.rank == 3 else x


@lowers("Conv", to="caffe")
def conv(w: Writer, node: Node, x: Blob, kernel: Value, bias: Value = None) -> Blob:
    """Caffe pads both ends alike: where ONNX does not, zeros at one end of the kernel make up for it."""
    kernel, *biases = constants(node, kernel, bias)
    shape = node.shapes[0]
    assert shape is not None
    strides, dilations, pads = window(node, x.shape[2:], kernel.shape[2:])
    if x.rank == 3:
        kernel, strides, dilations, pads = kernel[:, :, None], [1, *strides], [1, *dilations], [(0, 0), *pads]
    padding = []
    for place, (begin, end) in enumerate(pads):
        if min(begin, end) < 0:
            raise refuse(node, "negative pads: slice the input first")
        if begin != end:
            kernel = extend(dilate(kernel, place + 2, dilations[place]), place + 2, *_excess(end, begin))
            dilations[place] = 1
        padding.append(max(begin, end))
    image = images(w, x)
    result = (*shape[:2], 1, shape[2]) if x.rank == 3 else shape
    fields = _fields(kernel.shape[0], kernel.shape[2:], strides, padding, dilations, node, bool(biases))
    y = w.add("Convolution", [image], result, [kernel, *biases], convolution_param=fields)
    return reshape(w, y, shape)


def _excess(end: int, begin: int) -> tuple[int, int]:
    return max(0, end - begin), max(0, begin - end)


def _fields(
    outputs: int, kernel: Shape, strides: Any, padding: Any, dilations: Any, node: Node, biased: bool
) -> dict[str, Any]:
    fields: dict[str, Any] = {"num_output": outputs}
    if not biased:
        fields["bias_term"] = False
    if any(padding):
        fields["pad"] = _once(padding)
    fields["kernel_size"] = _once(kernel)
    if (group := node.attributes.get("group", 1)) != 1:
        fields["group"] = group
    if any(stride != 1 for stride in strides):
        fields["stride"] = _once(strides)
    if any(dilation != 1 for dilation in dilations):
        fields["dilation"] = _once(dilations)
    return fields


def _once(values: Any) -> list[int]:
    """One number for all axes where they agree, as Caffe's files have it."""
    return [int(values[0])] if len(set(values)) == 1 else [int(value) for value in values]


@lowers("ConvTranspose", to="caffe")
def conv_transpose(w: Writer, node: Node, x: Blob, kernel: Value, bias: Value = None) -> Blob:
    """A Deconvolution, cropped where pads differ; output padding is zeros at the kernel's end."""
    kernel, *biases = constants(node, kernel, bias)
    shape = node.shapes[0]
    assert shape is not None
    if x.rank > 4:
        raise refuse(node, "Caffe's deconvolution of volumes has no runtime here; one and two spatial axes work")
    begins = _begins(node, x.shape[2:], kernel.shape[2:], shape[2:])
    strides = node.attributes.get("strides") or [1] * (x.rank - 2)
    dilations = node.attributes.get("dilations") or [1] * (x.rank - 2)
    if x.rank == 3:
        kernel, strides, dilations, begins = kernel[:, :, None], [1, *strides], [1, *dilations], [0, *begins]
    image = images(w, x)
    target = (1, *shape[2:]) if x.rank == 3 else shape[2:]
    padding, full, crops = [], [], []
    for place, begin in enumerate(begins):
        axis = place + 2
        length = dilations[place] * (kernel.shape[axis] - 1) + 1
        end = strides[place] * (image.shape[axis] - 1) + length - begin - target[place]
        if (dilations[place] > 1 and w.has("opencv")) or end < 0:  # OpenCV ignores a deconvolution's dilation
            kernel, dilations[place] = dilate(kernel, axis, dilations[place]), 1
        if end < 0:
            kernel, end = extend(kernel, axis, 0, -end), 0
        pad = max(0, min(begin, end))
        padding.append(pad)
        crops.append(begin - pad)
        full.append(target[place] + begin + end - 2 * pad)
    if min(crops) < 0:
        raise refuse(node, "negative pads: pad the output instead")
    fields = _fields(shape[1], kernel.shape[2:], strides, padding, dilations, node, bool(biases))
    y = w.add("Deconvolution", [image], (*shape[:2], *full), [kernel, *biases], convolution_param=fields)
    for place, crop in enumerate(crops):
        y = take(w, y, place + 2, crop, crop + target[place])
    return reshape(w, y, shape)


def _begins(node: Node, spatial: Shape, kernel: Shape, target: Shape) -> list[int]:
    """Where the output begins in the full transposed convolution, per axis."""
    axes = len(spatial)
    mode = node.attributes.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID") and not node.attributes.get("output_shape"):
        return list(node.attributes.get("pads") or [0] * axes)[:axes] if mode == "NOTSET" else [0] * axes
    strides = node.attributes.get("strides") or [1] * axes
    dilations = node.attributes.get("dilations") or [1] * axes
    extra = node.attributes.get("output_padding") or [0] * axes
    begins = []
    for place in range(axes):
        length = dilations[place] * (kernel[place] - 1) + 1
        total = max(0, strides[place] * (spatial[place] - 1) + extra[place] + length - target[place])
        begins.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
    return begins


@lowers("Gemm", to="caffe")
def gemm(w: Writer, node: Node, first: Value, second: Value, third: Value = None) -> Blob:
    """alpha·A·B + beta·C."""
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    shape = node.shapes[0]
    assert shape is not None
    first, second = (
        _transposed(w, value) if node.attributes.get(name) else value
        for name, value in (("transA", first), ("transB", second))
    )
    bias = None
    if isinstance(third, np.ndarray):
        bias = np.asarray(beta * third, np.float32)
    if isinstance(first, Blob) and isinstance(second, np.ndarray):
        row = bias if bias is not None and (bias.ndim < 2 or bias.shape[0] == 1) else None
        weights = np.asarray(alpha * second.T, np.float32)
        y = inner_product(w, first, weights, None if row is None else np.broadcast_to(row.reshape(-1), shape[1:]))
        bias = bias if row is None else None
    else:
        y = power(w, product(w, node, first, second, shape), scale=alpha)
    if bias is not None:
        y = add_constant(w, y, bias)
    if isinstance(third, Blob):
        y = add(w, y, broadcast_to(w, power(w, third, scale=beta), shape))
    return y


def _transposed(w: Writer, value: Value) -> Value:
    return value.T if isinstance(value, np.ndarray) else permute(w, value, (1, 0))


def inner_product(w: Writer, x: Blob, weights: np.ndarray, bias: np.ndarray | None = None) -> Blob:
    """x times (outputs, inputs) weights along the last axis."""
    outputs = weights.shape[0]
    fields: dict[str, Any] = {"num_output": outputs}
    if bias is None:
        fields["bias_term"] = False
    if x.rank > 2:
        fields["axis"] = x.rank - 1
    blobs = [weights] if bias is None else [weights, bias]
    return w.add("InnerProduct", [x], (*x.shape[:-1], outputs), blobs, inner_product_param=fields)


@lowers("MatMul", to="caffe")
def matmul(w: Writer, node: Node, first: Value, second: Value) -> Blob:
    shape = node.shapes[0]
    assert shape is not None
    return reshape(w, product(w, node, first, second, shape), shape)


def product(w: Writer, node: Node, first: Value, second: Value, shape: Shape) -> Blob:
    """The matrix product, as a layer with weights where one side is a constant matrix."""
    if isinstance(second, np.ndarray) and prod(second.shape[:-2]) == 1 and first.rank > 1:
        matrix = second.reshape(second.shape[-2:]) if second.ndim > 1 else second[:, None]
        lead = (1,) * (second.ndim - first.rank)
        return inner_product(w, reshape(w, first, lead + first.shape), np.ascontiguousarray(matrix.T))
    if isinstance(first, np.ndarray) and prod(first.shape[:-2]) == 1 and second.rank > 1:
        matrix = first.reshape(first.shape[-2:]) if first.ndim > 1 else first[None]
        second = reshape(w, second, (1,) * (first.ndim - second.rank) + second.shape)
        return axis_map(w, second, second.rank - 2, matrix)
    both = isinstance(first, Blob) and isinstance(second, Blob)
    if both and w.has("opencv") and first.rank > 1 and second.rank > 1:
        batch = shape[:-2]
        first, second = (broadcast_to(w, x, (*batch, *x.shape[-2:])) for x in (first, second))
        return w.add("MatMul", [first, second], shape)
    raise refuse(node, "a product with a constant matrix works; of two computed matrices, only in dialect opencv")
