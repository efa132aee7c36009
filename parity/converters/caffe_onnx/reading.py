"""From a Caffe net to an ONNX graph: one function per layer type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from parity.caffe_format.model import CaffeModel, blob_array
from parity.caffe_format.rules import check, geometry, pair
from parity.errors import Unsupported

OPSET = 17
"""Old enough for most readers; what came later is composed."""
Shape = tuple[int, ...]


class Graph:
    """An ONNX graph under construction, with the shapes of Caffe's blobs at hand."""

    def __init__(self, shapes: dict[str, Shape], dialect: str) -> None:
        self.shapes = shapes
        self.dialect = dialect
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.names: dict[str, str] = {}
        """ONNX value of each Caffe blob: layers may work in place, ONNX values are written once."""
        self.count = 0

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{stem}:{self.count}"

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = self.fresh("constant")
        self.initializers.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = self.fresh(operator)
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name


def convert(model: CaffeModel) -> onnx.ModelProto:
    """The ONNX model of a Caffe model: see `parity.converters.caffe_onnx.reference`."""
    shapes = check(model)
    graph = Graph(shapes, model.dialect)
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in model.inputs.items()]
    graph.names = {name: name for name in model.inputs}
    for layer in model.net.layer:
        read = _READERS.get(layer.type)
        if read is None:
            raise Unsupported(f"layer {layer.name!r} of type {layer.type}: ONNX has no reader for it here")
        bottoms = [graph.names[name] for name in layer.bottom]
        results = read(graph, layer, bottoms)
        for top, result in zip(layer.top, [results] if isinstance(results, str) else results, strict=True):
            graph.names[top] = result
    for name in model.outputs:
        graph.nodes.append(helper.make_node("Identity", [graph.names[name]], [f"{name}:output"]))
    outputs = [helper.make_tensor_value_info(f"{n}:output", TensorProto.FLOAT, shapes[n]) for n in model.outputs]
    proto = helper.make_graph(graph.nodes, model.net.name or "caffe", inputs, outputs, graph.initializers)
    result = helper.make_model(proto, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(result)
    return result


Reader = Callable[[Graph, Any, list[str]], Any]
_READERS: dict[str, Reader] = {}


def reads(*kinds: str) -> Callable[[Reader], Reader]:
    def register(function: Reader) -> Reader:
        _READERS.update(dict.fromkeys(kinds, function))
        return function

    return register


PLAIN = {"AbsVal": "Abs", "BNLL": "Softplus", "Sigmoid": "Sigmoid", "TanH": "Tanh", "Dropout": "Identity"}
PLAIN |= {
    name: name for name in ("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Erf", "Floor")
}
PLAIN |= {name: name for name in ("HardSwish", "Round", "Sign", "Sin", "Sinh", "Softsign", "Tan", "MatMul")}


@reads(*PLAIN)
def plain(g: Graph, layer: Any, bottoms: list[str]) -> str:
    return g.node(PLAIN[layer.type], bottoms)


@reads("Mish")
def mish(g: Graph, layer: Any, bottoms: list[str]) -> str:
    return g.node("Mul", [*bottoms, g.node("Tanh", [g.node("Softplus", bottoms)])])


@reads("Input")
def input_(g: Graph, layer: Any, bottoms: list[str]) -> list[str]:
    return list(layer.top)


@reads("Silence")
def silence(g: Graph, layer: Any, bottoms: list[str]) -> list[str]:
    return []


@reads("Split")
def split(g: Graph, layer: Any, bottoms: list[str]) -> list[str]:
    return bottoms * len(layer.top)


@reads("Parameter", "Const")
def parameter(g: Graph, layer: Any, bottoms: list[str]) -> str:
    return g.constant(blob_array(layer.blobs[0]))


@reads("ReLU")
def relu(g: Graph, layer: Any, bottoms: list[str]) -> str:
    slope = layer.relu_param.negative_slope
    return g.node("LeakyRelu", bottoms, alpha=slope) if slope else g.node("Relu", bottoms)


@reads("ReLU6")
def relu6(g: Graph, layer: Any, bottoms: list[str]) -> str:
    return g.node("Clip", [*bottoms, g.constant(0), g.constant(6)])


@reads("Clip")
def clip(g: Graph, layer: Any, bottoms: list[str]) -> str:
    return g.node("Clip", [*bottoms, g.constant(layer.clip_param.min), g.constant(layer.clip_param.max)])


@reads("ELU")
def elu(g: Graph, layer: Any, bottoms: list[str]) -> str:
    return g.node("Elu", bottoms, alpha=layer.elu_param.alpha)


@reads("Swish")
def swish(g: Graph, layer: Any, bottoms: list[str]) -> str:
    return g.node("Mul", [bottoms[0], g.node("Sigmoid", [_linear(g, bottoms[0], layer.swish_param.beta, 0)])])


@reads("PReLU")
def prelu(g: Graph, layer: Any, bottoms: list[str]) -> str:
    rank = len(g.shapes[layer.bottom[0]])
    slopes = blob_array(layer.blobs[0]).reshape(-1)
    return g.node("PRelu", [*bottoms, g.constant(slopes.reshape(-1, *(1,) * (rank - 2)))])


@reads("Threshold")
def threshold(g: Graph, layer: Any, bottoms: list[str]) -> str:
    above = g.node("Greater", [*bottoms, g.constant(layer.threshold_param.threshold)])
    return g.node("Cast", [above], to=TensorProto.FLOAT)


def _linear(g: Graph, x: str, scale: float, shift: float) -> str:
    if scale != 1:
        x = g.node("Mul", [x, g.constant(scale)])
    return g.node("Add", [x, g.constant(shift)]) if shift else x


@reads("Power")
def power(g: Graph, layer: Any, bottoms: list[str]) -> str:
    p = layer.power_param
    x = _linear(g, bottoms[0], p.scale, p.shift)
    if p.power == -1:
        return g.node("Reciprocal", [x])
    return g.node("Identity", [x]) if p.power == 1 else g.node("Pow", [x, g.constant(p.power)])


@reads("Exp")
def exp(g: Graph, layer: Any, bottoms: list[str]) -> str:
    p = layer.exp_param
    factor = 1.0 if p.base == -1 else float(np.log(p.base))
    return g.node("Exp", [_linear(g, bottoms[0], p.scale * factor, p.shift * factor)])


@reads("Log")
def log(g: Graph, layer: Any, bottoms: list[str]) -> str:
    """OpenCV ignores the parameters."""
    p = layer.log_param
    if g.dialect == "opencv":
        return g.node("Log", bottoms)
    result = g.node("Log", [_linear(g, bottoms[0], p.scale, p.shift)])
    return result if p.base == -1 else _linear(g, result, 1 / float(np.log(p.base)), 0)


@reads("Convolution", "Deconvolution")
def convolution(g: Graph, layer: Any, bottoms: list[str]) -> str:
    p, axes = layer.convolution_param, len(g.shapes[layer.bottom[0]]) - 2
    pads = geometry(p, "pad", axes, 0)
    attributes = {
        "kernel_shape": geometry(p, "kernel", axes, 0),
        "strides": geometry(p, "stride", axes, 1),
        "dilations": geometry(p, "dilation", axes, 1),
        "pads": pads * 2,
        "group": p.group,
    }
    weights = [g.constant(blob_array(blob)) for blob in layer.blobs]
    return g.node("Conv" if layer.type == "Convolution" else "ConvTranspose", [*bottoms, *weights], **attributes)


@reads("Pooling")
def pooling(g: Graph, layer: Any, bottoms: list[str]) -> str:
    """ONNX windows of Caffe's size: the end is padded as far as the last window reaches; averages are set right."""
    p, shape = layer.pooling_param, g.shapes[layer.bottom[0]]
    if p.pool not in (0, 1):
        raise Unsupported(f"layer {layer.name!r}: stochastic pooling is for training")
    average = p.pool == 1
    if p.global_pooling:
        return g.node("GlobalAveragePool" if average else "GlobalMaxPool", bottoms)
    kernel, strides, begins = ([pair(p, name, side) for side in "hw"] for name in ("kernel", "stride", "pad"))
    target = g.shapes[layer.top[0]][2:]
    ends = [(target[i] - 1) * strides[i] + kernel[i] - begins[i] - shape[i + 2] for i in range(2)]
    x = bottoms[0]
    if min(ends) < 0:
        limits = [g.constant([shape[i + 2] + min(0, ends[i]) for i in range(2)], np.int64)]
        x = g.node("Slice", [x, g.constant([0, 0], np.int64), *limits, g.constant([2, 3], np.int64)])
    pads = [max(0, pad) for pad in (*begins, *ends)]
    if not average:
        # ONNX wants less padding than kernel: what Caffe's rounding adds at the end may be as much.
        return _padded_max(g, x, kernel, strides, pads)
    widths = [0, 0, pads[0], pads[1], 0, 0, pads[2], pads[3]]
    padded = g.node("Pad", [x, g.constant(widths, np.int64), g.constant(0)]) if any(pads) else x
    y = g.node("AveragePool", [padded], kernel_shape=kernel, strides=strides)
    ratios = []
    for i in range(2):
        starts = np.arange(target[i]) * strides[i] - begins[i]
        ratios.append(kernel[i] / (np.minimum(starts + kernel[i], shape[i + 2] + begins[i]) - starts))
    ratio = np.outer(*ratios)
    return y if (ratio == 1).all() else g.node("Mul", [y, g.constant(ratio)])


def _padded_max(g: Graph, x: str, kernel: list[int], strides: list[int], pads: list[int]) -> str:
    if any(pads):
        widths = [0, 0, pads[0], pads[1], 0, 0, pads[2], pads[3]]
        x = g.node("Pad", [x, g.constant(widths, np.int64), g.constant(np.finfo(np.float32).min)])
    return g.node("MaxPool", [x], kernel_shape=kernel, strides=strides)


@reads("InnerProduct")
def inner_product(g: Graph, layer: Any, bottoms: list[str]) -> str:
    p, shape = layer.inner_product_param, g.shapes[layer.bottom[0]]
    axis = p.axis % len(shape)
    x = bottoms[0]
    if axis != len(shape) - 1:
        x = g.node("Reshape", [x, g.constant([*(0,) * axis, -1], np.int64)])
    matrix = blob_array(layer.blobs[0])
    y = g.node("MatMul", [x, g.constant(matrix if p.transpose else matrix.T)])
    return g.node("Add", [y, g.constant(blob_array(layer.blobs[1]))]) if p.bias_term else y


@reads("Eltwise")
def eltwise(g: Graph, layer: Any, bottoms: list[str]) -> str:
    p = layer.eltwise_param
    if p.operation == 1:
        factors = list(p.coeff) or [1.0] * len(bottoms)
        bottoms = [_linear(g, bottom, factor, 0) for bottom, factor in zip(bottoms, factors, strict=True)]
        return g.node("Sum", bottoms)
    result = bottoms[0]
    for bottom in bottoms[1:]:
        result = g.node("Mul" if p.operation == 0 else "Max", [result, bottom])
    return result


@reads("Concat")
def concat(g: Graph, layer: Any, bottoms: list[str]) -> str:
    return g.node("Concat", bottoms, axis=layer.concat_param.axis)


@reads("Slice")
def slice_(g: Graph, layer: Any, bottoms: list[str]) -> list[str]:
    axis = layer.slice_param.axis % len(g.shapes[layer.bottom[0]])
    sizes = g.constant([g.shapes[top][axis] for top in layer.top], np.int64)
    names = [g.fresh("Slice") for _ in layer.top]
    g.nodes.append(helper.make_node("Split", [*bottoms, sizes], names, axis=axis))
    return names


@reads("Reshape", "Flatten")
def reshape(g: Graph, layer: Any, bottoms: list[str]) -> str:
    """The sizes as the layer gives them, 0 for a copied one and −1 for the rest: so any batch can flow through."""
    p, rank = layer.reshape_param, len(g.shapes[layer.top[0]])
    whole = layer.type == "Reshape" and p.axis == 0 and p.num_axes == -1 and rank
    sizes = list(p.shape.dim) if whole else [*([0] if rank else []), *g.shapes[layer.top[0]][1:]]
    if not whole and g.shapes[layer.top[0]][:1] != g.shapes[layer.bottom[0]][:1]:
        sizes = list(g.shapes[layer.top[0]])
    return g.node("Reshape", [*bottoms, g.constant(sizes, np.int64)])


@reads("Permute")
def permute(g: Graph, layer: Any, bottoms: list[str]) -> str:
    order = list(layer.permute_param.order)
    order += [axis for axis in range(len(g.shapes[layer.bottom[0]])) if axis not in order]
    return g.node("Transpose", bottoms, perm=order)


@reads("Tile")
def tile(g: Graph, layer: Any, bottoms: list[str]) -> str:
    repeats = [1] * len(g.shapes[layer.bottom[0]])
    repeats[layer.tile_param.axis] = layer.tile_param.tiles
    return g.node("Tile", [*bottoms, g.constant(repeats, np.int64)])


@reads("Crop")
def crop(g: Graph, layer: Any, bottoms: list[str]) -> str:
    first, second = (g.shapes[name] for name in layer.bottom)
    axis = layer.crop_param.axis % len(first)
    offsets = list(layer.crop_param.offset) or [0]
    offsets *= len(first) - axis if len(offsets) == 1 else 1
    ends = [offset + size for offset, size in zip(offsets, second[axis:], strict=True)]
    limits = [g.constant(values, np.int64) for values in (offsets, ends, range(axis, len(first)))]
    return g.node("Slice", [bottoms[0], *limits])


@reads("Scale", "Bias")
def scale(g: Graph, layer: Any, bottoms: list[str]) -> str:
    bias = layer.type == "Bias"
    p, shape = layer.bias_param if bias else layer.scale_param, g.shapes[layer.bottom[0]]
    axis = p.axis % len(shape)
    operator = "Add" if bias else "Mul"
    weights = [blob_array(blob) for blob in layer.blobs]
    if len(bottoms) == 2:
        small = g.shapes[layer.bottom[1]]
        target = [*small, *(1,) * (len(shape) - axis - len(small))]
        if axis == 0 and small:
            target[0] = 0  # the batch
        y = g.node(operator, [bottoms[0], g.node("Reshape", [bottoms[1], g.constant(target, np.int64)])])
    else:
        y = g.node(operator, [bottoms[0], g.constant(_aligned(weights.pop(0), axis, len(shape)))])
    return g.node("Add", [y, g.constant(_aligned(weights[0], axis, len(shape)))]) if weights else y


def _aligned(values: np.ndarray, axis: int, rank: int) -> np.ndarray:
    return values.reshape(*values.shape, *(1,) * (rank - axis - values.ndim))


@reads("BatchNorm")
def batch_norm(g: Graph, layer: Any, bottoms: list[str]) -> str:
    mean, variance, factor = (blob_array(blob) for blob in layer.blobs)
    divisor = float(factor[0]) or 1.0
    ones, zeros = np.ones_like(mean), np.zeros_like(mean)
    values = [g.constant(array) for array in (ones, zeros, mean / divisor, variance / divisor)]
    return g.node("BatchNormalization", [*bottoms, *values], epsilon=layer.batch_norm_param.eps)


@reads("Softmax")
def softmax(g: Graph, layer: Any, bottoms: list[str]) -> str:
    return g.node("Softmax", bottoms, axis=layer.softmax_param.axis)


@reads("LRN")
def lrn(g: Graph, layer: Any, bottoms: list[str]) -> str:
    p = layer.lrn_param
    if p.norm_region != 0:
        raise Unsupported(f"layer {layer.name!r}: LRN within a channel has no ONNX operator; across channels works")
    k = 1.0 if g.dialect == "opencv" else p.k
    return g.node("LRN", bottoms, size=p.local_size, alpha=p.alpha, beta=p.beta, bias=k)


@reads("MVN")
def mvn(g: Graph, layer: Any, bottoms: list[str]) -> str:
    """(x − mean)/(√variance + ε) upstream, (x − mean)/√(variance + ε) in OpenCV."""
    p, rank = layer.mvn_param, len(g.shapes[layer.bottom[0]])
    axes = list(range(1 if p.across_channels else 2, rank))
    centred = g.node("Sub", [bottoms[0], g.node("ReduceMean", bottoms, axes=axes)])
    if not p.normalize_variance:
        return centred
    variance = g.node("ReduceMean", [g.node("Mul", [centred, centred])], axes=axes)
    if g.dialect == "opencv":
        return g.node("Div", [centred, g.node("Sqrt", [_linear(g, variance, 1, p.eps)])])
    return g.node("Div", [centred, _linear(g, g.node("Sqrt", [variance]), 1, p.eps)])


@reads("Reduction")
def reduction(g: Graph, layer: Any, bottoms: list[str]) -> str:
    p, rank = layer.reduction_param, len(g.shapes[layer.bottom[0]])
    operator = {1: "ReduceSum", 2: "ReduceL1", 3: "ReduceSumSquare", 4: "ReduceMean"}[p.operation]
    axes = list(range(p.axis % rank, rank))
    if p.operation == 1:  # an input since opset 13, the others' since 18
        return _linear(g, g.node(operator, [bottoms[0], g.constant(axes, np.int64)], keepdims=0), p.coeff, 0)
    return _linear(g, g.node(operator, bottoms, axes=axes, keepdims=0), p.coeff, 0)
