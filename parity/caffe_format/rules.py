"""What upstream Caffe demands of a net: required fields, numbers of bottoms and tops, and the shapes of all blobs.

Written from the layers' documented rules, apart from the converter, to check its files: another Caffe will read them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from parity.caffe_format.model import CaffeModel, blob_shape
from parity.errors import ParityError

Shape = tuple[int, ...]
Rule = Callable[[Any, list[Shape], list[Shape], str], list[Shape]]
"""(layer, shapes of its bottoms, shapes of its weights, dialect) to the shapes of its tops; raises `Breach`."""

ELEMENTWISE = ("AbsVal", "BNLL", "Dropout", "ELU", "Exp", "Log", "Power", "ReLU", "Sigmoid", "TanH")
DIALECT_ELEMENTWISE = {
    "bvlc": ("Clip", "Swish", "Threshold"),
    "ssd": ("Threshold",),
    "opencv": (
        *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Erf", "Floor", "HardSwish"),
        *("Mish", "ReLU6", "Round", "Sign", "Sin", "Sinh", "Softsign", "Tan"),
    ),
}
ABSENT = {
    "bvlc": ("Permute", "Normalize"),
    "ssd": ("Clip", "Swish"),
    "opencv": ("Bias", "Tile", "Reduction", "Threshold", "ArgMax", "Parameter"),
}


class Breach(Exception):
    """A rule that a layer breaks."""


def check(model: CaffeModel) -> dict[str, Shape]:
    """Shapes of all blobs of a legal net; raises ParityError in one line, naming the first layer that breaks a rule."""
    shapes: dict[str, Shape] = {}
    names: set[str] = set()
    for name, shape in model.inputs.items():
        if shape and min(shape) < 1:
            raise ParityError(f"input {name!r} has shape {shape}")
        shapes[name] = shape
    for layer in model.net.layer:
        try:
            if not layer.name or layer.name in names:
                raise Breach("its name is empty or taken")
            names.add(layer.name)
            _apply(layer, shapes, model.dialect)
        except Breach as breach:
            raise ParityError(f"layer {layer.name!r} of type {layer.type}: {breach}") from None
    return shapes


def _apply(layer: Any, shapes: dict[str, Shape], dialect: str) -> None:
    unknown = [name for name in layer.bottom if name not in shapes]
    if unknown:
        raise Breach(f"its bottom {unknown[0]!r} is made by no layer before it")
    taken = [name for name in layer.top if name in shapes and name not in layer.bottom]
    if taken and layer.type != "Input":
        raise Breach(f"its top {taken[0]!r} is made already")
    rule = _RULES.get(layer.type)
    elementwise = (*ELEMENTWISE, *DIALECT_ELEMENTWISE[dialect])
    if layer.type in ABSENT[dialect] or (rule is None and layer.type not in elementwise):
        raise Breach(f"{dialect} Caffe has no such layer")
    bottoms = [shapes[name] for name in layer.bottom]
    tops = (rule or _same)(layer, bottoms, [blob_shape(blob) for blob in layer.blobs], dialect)
    for blob in layer.blobs:
        demand(len(blob.data) == prod(blob_shape(blob)), "a weight blob's data does not fill its shape")
    demand(len(tops) == len(layer.top), f"it has {len(layer.top)} tops, not {len(tops)}")
    for name, shape in zip(layer.top, tops, strict=True):
        demand(all(size > 0 for size in shape), f"its top {name!r} would have shape {shape}")
        demand(prod(shape) < 2**31, f"its top {name!r} has more than 2³¹ elements")
        shapes[name] = shape


def demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Breach(otherwise)


def _count(layer: Any, bottoms: Sequence[Shape], least: int, most: int | None = None) -> None:
    fits = least <= len(bottoms) <= (least if most is None else most)
    demand(fits, f"it has {len(bottoms)} bottoms")


def _weights(weights: Sequence[Shape], *wanted: Shape) -> None:
    demand([tuple(shape) for shape in weights] == list(wanted), f"its weights are {weights}, not {list(wanted)}")


def _axis(axis: int, rank: int) -> int:
    demand(-rank <= axis < rank, f"axis {axis} of {rank}")
    return axis % rank


def _same(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    _count(layer, bottoms, 1)
    _weights(weights)
    if layer.type == "Clip":
        demand(layer.clip_param.HasField("min") and layer.clip_param.HasField("max"), "clip_param needs min and max")
    return bottoms


def _input(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    _count(layer, bottoms, 0)
    declared = [tuple(shape.dim) for shape in layer.input_param.shape]
    demand(len(declared) in (1, len(layer.top)), "input_param needs one shape, or one for each top")
    return declared * (len(layer.top) if len(declared) == 1 else 1)


def geometry(parameter: Any, name: str, axes: int, default: int) -> list[int]:
    """Kernel, stride, pad or dilation per spatial axis: repeated, or `_h` and `_w` for images."""
    by_axis = [field for field in (f"{name}_h", f"{name}_w") if field in parameter.DESCRIPTOR.fields_by_name]
    if any(parameter.HasField(field) for field in by_axis):
        demand(axes == 2, f"{by_axis[0]} is for images alone")
        return [int(getattr(parameter, field)) for field in by_axis]
    values = list(getattr(parameter, "kernel_size" if name == "kernel" else name)) or [default]
    demand(len(values) in (1, axes), f"{name} is given {len(values)} times for {axes} axes")
    return [int(value) for value in values] * (axes if len(values) == 1 else 1)


def _convolution(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    parameter = layer.convolution_param
    _count(layer, bottoms, 1)
    shape, axes, outputs, group = bottoms[0], len(bottoms[0]) - 2, parameter.num_output, parameter.group
    demand(axes > 0, f"its bottom has shape {shape}")
    kernel = geometry(parameter, "kernel", axes, 0)
    stride, pad = geometry(parameter, "stride", axes, 1), geometry(parameter, "pad", axes, 0)
    dilation = geometry(parameter, "dilation", axes, 1)
    demand(outputs > 0 and min(kernel) > 0 and min(stride) > 0 and min(dilation) > 0, "a size is 0")
    demand(shape[1] % group == 0 and outputs % group == 0, f"group {group} does not divide its channels")
    forward = layer.type == "Convolution"
    sides = (outputs, shape[1] // group) if forward else (shape[1], outputs // group)
    _weights(weights, (*sides, *kernel), *([(outputs,)] if parameter.bias_term else []))
    if not forward and dialect == "opencv":
        demand(set(dilation) == {1}, "OpenCV ignores a deconvolution's dilation")
    sizes = []
    for size, k, s, p, d in zip(shape[2:], kernel, stride, pad, dilation, strict=True):
        extent = d * (k - 1) + 1
        demand(not forward or size + 2 * p >= extent, "its kernel is larger than the padded input")
        sizes.append((size + 2 * p - extent) // s + 1 if forward else s * (size - 1) + extent - 2 * p)
    return [(shape[0], outputs, *sizes)]


def _pooling(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    """Sizes are rounded up unless the dialect's field says otherwise; the last window must begin in the input."""
    parameter = layer.pooling_param
    _count(layer, bottoms, 1)
    shape = bottoms[0]
    demand(len(shape) == 4, f"its bottom has shape {shape}: pooling takes images")
    if parameter.global_pooling:
        demand(not (parameter.HasField("kernel_size") or parameter.HasField("kernel_h")), "global, yet with a kernel")
        return [(*shape[:2], 1, 1)]
    square = parameter.HasField("kernel_size")
    by_side = parameter.HasField("kernel_h") and parameter.HasField("kernel_w")
    demand(square != by_side, "it needs kernel_size, or kernel_h and kernel_w")
    sizes = []
    for axis, letter in ((2, "h"), (3, "w")):
        k, s, p = (pair(parameter, name, letter) for name in ("kernel", "stride", "pad"))
        demand(k > 0 and s > 0, "a size is 0")
        demand(p < k, f"pad {p} is not less than kernel {k}")
        down = (dialect == "bvlc" and parameter.round_mode == 1) or (dialect == "opencv" and not parameter.ceil_mode)
        span = shape[axis] + 2 * p - k
        demand(span >= 0 or not down, "its kernel is larger than the padded input")
        size = (span // s if down else -(-span // s)) + 1
        if p and (size - 1) * s >= shape[axis] + p:
            size -= 1
        sizes.append(size)
    return [(*shape[:2], *sizes)]


def pair(parameter: Any, name: str, letter: str) -> int:
    """Kernel, stride or pad of a pooling along `h` or `w`."""
    if parameter.HasField(f"{name}_{letter}"):
        return int(getattr(parameter, f"{name}_{letter}"))
    return int(getattr(parameter, "kernel_size" if name == "kernel" else name))


def _inner_product(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    parameter = layer.inner_product_param
    _count(layer, bottoms, 1)
    axis = _axis(parameter.axis, len(bottoms[0]))
    inputs, outputs = prod(bottoms[0][axis:]), parameter.num_output
    matrix = (inputs, outputs) if parameter.transpose else (outputs, inputs)
    _weights(weights, matrix, *([(outputs,)] if parameter.bias_term else []))
    return [(*bottoms[0][:axis], outputs)]


def _eltwise(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    _count(layer, bottoms, 2, 10**6)
    demand(len(set(bottoms)) == 1, f"its bottoms differ: {bottoms}")
    coefficients = layer.eltwise_param.coeff
    demand(len(coefficients) in (0, len(bottoms)), "it needs one coefficient for each bottom")
    demand(not coefficients or layer.eltwise_param.operation == 1, "coefficients are for sums alone")
    return bottoms[:1]


def _concat(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    _count(layer, bottoms, 1, 10**6)
    axis = _axis(layer.concat_param.axis, len(bottoms[0]))
    rests = {(*shape[:axis], *shape[axis + 1 :]) for shape in bottoms}
    demand(len(rests) == 1, f"its bottoms differ beside axis {axis}: {bottoms}")
    return [(*bottoms[0][:axis], sum(shape[axis] for shape in bottoms), *bottoms[0][axis + 1 :])]


def _slice(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    _count(layer, bottoms, 1)
    shape, points = bottoms[0], list(layer.slice_param.slice_point)
    axis = _axis(layer.slice_param.axis, len(shape))
    if not points:
        demand(shape[axis] % len(layer.top) == 0, "its axis cannot be cut into equal parts")
        points = [shape[axis] // len(layer.top) * part for part in range(1, len(layer.top))]
    demand(len(points) == len(layer.top) - 1, f"{len(points)} slice points for {len(layer.top)} tops")
    bounds = [0, *points, shape[axis]]
    sizes = [end - start for start, end in itertools.pairwise(bounds)]
    demand(min(sizes) > 0, f"slice points {points} of {shape[axis]}")
    return [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]


def _reshape(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    _count(layer, bottoms, 1)
    parameter, shape = layer.reshape_param, bottoms[0]
    start = parameter.axis if parameter.axis >= 0 else len(shape) + parameter.axis + 1
    end = len(shape) if parameter.num_axes == -1 else start + parameter.num_axes
    demand(0 <= start <= end <= len(shape), "its axes lie outside of the shape")
    dims = list(parameter.shape.dim)
    demand(dims.count(-1) <= 1 and min(dims, default=0) >= -1, f"dims {dims}")
    for place, dim in enumerate(dims):
        if dim == 0:
            demand(start + place < len(shape), f"dim {place} copies an axis that is not there")
            dims[place] = shape[start + place]
    whole = prod(shape[start:end])
    if -1 in dims:
        known = -prod(dims)
        demand(whole % known == 0, f"{whole} elements cannot be {dims}")
        dims[dims.index(-1)] = whole // known
    demand(prod(dims) == whole, f"{whole} elements cannot be {dims}")
    return [(*shape[:start], *dims, *shape[end:])]


def _flatten(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    _count(layer, bottoms, 1)
    start = _axis(layer.flatten_param.axis, len(bottoms[0]))
    end = _axis(layer.flatten_param.end_axis, len(bottoms[0])) + 1
    return [(*bottoms[0][:start], prod(bottoms[0][start:end]), *bottoms[0][end:])]


def _scale(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    """Scale and Bias: by weights, or by a second bottom, whose axes begin at `axis`."""
    bias = layer.type == "Bias"
    parameter = layer.bias_param if bias else layer.scale_param
    _count(layer, bottoms, 1, 2)
    axis = _axis(parameter.axis, len(bottoms[0]))
    biased = not bias and parameter.bias_term
    if len(bottoms) == 2:
        covered = bottoms[0][axis : axis + len(bottoms[1])]
        demand(covered == bottoms[1], f"its second bottom {bottoms[1]} is no block of {bottoms[0]} from axis {axis}")
        _weights(weights, *([bottoms[1]] if biased else []))
        return bottoms[:1]
    demand(parameter.num_axes >= -1, f"num_axes {parameter.num_axes}")
    end = len(bottoms[0]) if parameter.num_axes == -1 else axis + parameter.num_axes
    demand(end <= len(bottoms[0]), "its axes lie outside of the shape")
    _weights(weights, *[bottoms[0][axis:end]] * (2 if biased else 1))
    return bottoms


def _batch_norm(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    _count(layer, bottoms, 1)
    channels = bottoms[0][1] if len(bottoms[0]) > 1 else 1
    _weights(weights, (channels,), (channels,), (1,))
    return bottoms


def _prelu(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    _count(layer, bottoms, 1)
    demand(len(bottoms[0]) >= 2, "its bottom needs a channel axis")
    shared = layer.prelu_param.channel_shared
    demand(prod(weights[0]) == (1 if shared else bottoms[0][1]) if weights else False, f"its weights are {weights}")
    return bottoms


def _softmax(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    _count(layer, bottoms, 1)
    _axis(layer.softmax_param.axis, len(bottoms[0]))
    return bottoms


def _images(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    """LRN and MVN see num, channels, height and width: four axes at most; LRN's size is odd."""
    _count(layer, bottoms, 1)
    demand(len(bottoms[0]) <= 4, f"its bottom has shape {bottoms[0]}")
    demand(layer.type != "LRN" or layer.lrn_param.local_size % 2 == 1, "local_size is even")
    return bottoms


def _permute(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    _count(layer, bottoms, 1)
    order = list(layer.permute_param.order)
    order += [axis for axis in range(len(bottoms[0])) if axis not in order]
    demand(sorted(order) == list(range(len(bottoms[0]))), f"order {order}")
    return [tuple(bottoms[0][axis] for axis in order)]


def _tile(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    _count(layer, bottoms, 1)
    demand(layer.tile_param.HasField("tiles") and layer.tile_param.tiles > 0, "tile_param needs tiles")
    axis = _axis(layer.tile_param.axis, len(bottoms[0]))
    return [(*bottoms[0][:axis], bottoms[0][axis] * layer.tile_param.tiles, *bottoms[0][axis + 1 :])]


def _reduction(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    _count(layer, bottoms, 1)
    return [bottoms[0][: _axis(layer.reduction_param.axis, len(bottoms[0]))]]


def _constant(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    _count(layer, bottoms, 0)
    demand(len(weights) == 1, f"its weights are {weights}")
    if layer.type == "Parameter":
        _weights(weights, tuple(layer.parameter_param.shape.dim))
    return [tuple(shape) for shape in weights]


def _split(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    _count(layer, bottoms, 1)
    return bottoms * len(layer.top)


def _silence(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    _count(layer, bottoms, 1, 10**6)
    return []


def _crop(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    _count(layer, bottoms, 2)
    axis = _axis(layer.crop_param.axis, len(bottoms[0]))
    demand(len(bottoms[0]) == len(bottoms[1]), f"its bottoms have shapes {bottoms}")
    offsets = list(layer.crop_param.offset) or [0]
    offsets *= len(bottoms[0]) - axis if len(offsets) == 1 else 1
    demand(len(offsets) == len(bottoms[0]) - axis, f"offsets {offsets}")
    for place, offset in enumerate(offsets, axis):
        demand(offset + bottoms[1][place] <= bottoms[0][place], f"offset {offset} on axis {place}")
    return [(*bottoms[0][:axis], *bottoms[1][axis:])]


def _matmul(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    _count(layer, bottoms, 2)
    demand(dialect == "opencv", f"{dialect} Caffe has no such layer")
    first, second = bottoms
    demand(first[:-2] == second[:-2] and first[-1] == second[-2], f"its bottoms have shapes {bottoms}")
    return [(*first[:-1], second[-1])]


def _opencv_constant(layer: Any, bottoms: list[Shape], weights: list[Shape], dialect: str) -> list[Shape]:
    demand(dialect == "opencv", f"{dialect} Caffe has no such layer")
    return _constant(layer, bottoms, weights, dialect)


_RULES: dict[str, Rule] = {
    "Input": _input,
    "Convolution": _convolution,
    "Deconvolution": _convolution,
    "Pooling": _pooling,
    "InnerProduct": _inner_product,
    "Eltwise": _eltwise,
    "Concat": _concat,
    "Slice": _slice,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Scale": _scale,
    "Bias": _scale,
    "BatchNorm": _batch_norm,
    "PReLU": _prelu,
    "Softmax": _softmax,
    "LRN": _images,
    "MVN": _images,
    "Permute": _permute,
    "Tile": _tile,
    "Reduction": _reduction,
    "Parameter": _constant,
    "Const": _opencv_constant,
    "Split": _split,
    "Silence": _silence,
    "Crop": _crop,
    "MatMul": _matmul,
}
