"""Lowerings of elementwise functions of one value."""

from __future__ import annotations

from typing import Any

import numpy as np

from parity.converters.onnx_caffe.compose import (
    add,
    apply,
    axis_map,
    block,
    clip,
    eltwise,
    logarithm,
    multiply,
    multiply_constant,
    negate,
    power,
    reduce,
    relu,
    reshape,
    step,
)
from parity.converters.onnx_caffe.graph import Node
from parity.converters.onnx_caffe.lowering import refuse, scalar
from parity.converters.onnx_caffe.writer import Blob, Writer
from parity.converters.registry import lowers

Value = Any
LAYERS = {"Relu": "ReLU", "Sigmoid": "Sigmoid", "Tanh": "TanH", "Abs": "AbsVal", "Exp": "Exp", "Softplus": "BNLL"}
OPENCV_LAYERS = ["Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Floor", "Round", "Sin"]
OPENCV_LAYERS += ["Sinh", "Tan"]


@lowers(*LAYERS, to="caffe")
def same_layer(w: Writer, node: Node, x: Blob) -> Blob:
    return apply(w, LAYERS[node.operator], x)


@lowers(*OPENCV_LAYERS, to="caffe")
def opencv_layer(w: Writer, node: Node, x: Blob) -> Blob:
    if not w.has("opencv"):
        raise refuse(node, "only OpenCV's importer has such a layer: dialect opencv")
    return apply(w, node.operator, x)


@lowers("Log", to="caffe")
def log(w: Writer, node: Node, x: Blob) -> Blob:
    return logarithm(w, x)


@lowers("Neg", "Sqrt", "Reciprocal", to="caffe")
def powers(w: Writer, node: Node, x: Blob) -> Blob:
    return {"Neg": negate, "Sqrt": lambda w, x: power(w, x, 0.5), "Reciprocal": lambda w, x: power(w, x, -1)}[
        node.operator
    ](w, x)


@lowers("Sign", to="caffe")
def sign(w: Writer, node: Node, x: Blob) -> Blob:
    return apply(w, "Sign", x) if w.has("opencv") else add(w, step(w, x), step(w, negate(w, x)), -1)


@lowers("LeakyRelu", to="caffe")
def leaky_relu(w: Writer, node: Node, x: Blob) -> Blob:
    return apply(w, "ReLU", x, relu_param={"negative_slope": node.attributes.get("alpha", 0.01)})


@lowers("PRelu", to="caffe")
def prelu(w: Writer, node: Node, x: Blob, slope: Value) -> Blob:
    """The PReLU layer for one slope per channel or one in all; else max(x, 0) + slope·min(x, 0)."""
    if isinstance(slope, np.ndarray):
        if slope.size == 1:
            return w.add("PReLU", [x], x.shape, [slope.reshape(1)], prelu_param={"channel_shared": True})
        if block(slope.shape, x.shape) == (1, 2):
            return w.add("PReLU", [x], x.shape, [slope.reshape(-1)])
    below = negate(w, relu(w, negate(w, x)))
    return add(w, relu(w, x), times(w, below, slope))


def times(w: Writer, x: Blob, factor: Value) -> Blob:
    return multiply_constant(w, x, factor) if isinstance(factor, np.ndarray) else multiply(w, x, factor)


@lowers("Elu", to="caffe")
def elu(w: Writer, node: Node, x: Blob) -> Blob:
    return apply(w, "ELU", x, elu_param={"alpha": node.attributes.get("alpha", 1.0)})


@lowers("Selu", to="caffe")
def selu(w: Writer, node: Node, x: Blob) -> Blob:
    alpha, gamma = node.attributes.get("alpha", 1.6732632423543772), node.attributes.get("gamma", 1.0507009873554805)
    return power(w, apply(w, "ELU", x, elu_param={"alpha": alpha}), scale=gamma)


@lowers("Celu", to="caffe")
def celu(w: Writer, node: Node, x: Blob) -> Blob:
    alpha = node.attributes.get("alpha", 1.0)
    return power(w, apply(w, "ELU", power(w, x, scale=1 / alpha)), scale=alpha)


@lowers("ThresholdedRelu", to="caffe")
def thresholded_relu(w: Writer, node: Node, x: Blob) -> Blob:
    return eltwise(w, "PROD", [x, step(w, power(w, x, shift=-node.attributes.get("alpha", 1.0)))])


@lowers("Softsign", to="caffe")
def softsign(w: Writer, node: Node, x: Blob) -> Blob:
    if w.has("opencv"):
        return apply(w, "Softsign", x)
    return eltwise(w, "PROD", [x, power(w, apply(w, "AbsVal", x), -1, shift=1)])


@lowers("HardSigmoid", to="caffe")
def hard_sigmoid(w: Writer, node: Node, x: Blob) -> Blob:
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    return clip(w, power(w, x, scale=alpha, shift=beta), 0, 1)


@lowers("HardSwish", to="caffe")
def hard_swish(w: Writer, node: Node, x: Blob) -> Blob:
    if w.has("opencv"):
        return apply(w, "HardSwish", x)
    return eltwise(w, "PROD", [x, clip(w, power(w, x, scale=1 / 6, shift=0.5), 0, 1)])


@lowers("Mish", to="caffe")
def mish(w: Writer, node: Node, x: Blob) -> Blob:
    if w.has("opencv"):
        return apply(w, "Mish", x)
    return eltwise(w, "PROD", [x, apply(w, "TanH", apply(w, "BNLL", x))])


@lowers("Swish", to="caffe")
def swish(w: Writer, node: Node, x: Blob) -> Blob:
    alpha = node.attributes.get("alpha", 1.0)
    if w.has("bvlc"):
        return apply(w, "Swish", x, swish_param={"beta": alpha})
    return eltwise(w, "PROD", [x, apply(w, "Sigmoid", power(w, x, scale=alpha))])


@lowers("Gelu", to="caffe")
def gelu(w: Writer, node: Node, x: Blob) -> Blob:
    if node.attributes.get("approximate", "none") == "tanh":
        cubic = eltwise(w, "SUM", [x, power(w, x, 3)], [np.sqrt(2 / np.pi), 0.044715 * np.sqrt(2 / np.pi)])
        return eltwise(w, "PROD", [x, power(w, apply(w, "TanH", cubic), scale=0.5, shift=0.5)])
    return eltwise(w, "PROD", [x, power(w, error_function(w, power(w, x, scale=0.5**0.5)), scale=0.5, shift=0.5)])


@lowers("Erf", to="caffe")
def erf(w: Writer, node: Node, x: Blob) -> Blob:
    return error_function(w, x)


# erf(x) = x·P(x²)/Q(x²) on [−4, 4], beyond which it is ±1 in float32: the rational approximation that Eigen and XLA
# use for float32. Highest power first.
ERF_ABOVE = (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
             -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02)  # fmt: skip
ERF_BELOW = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
             -1.42647390514189e-02)  # fmt: skip


def error_function(w: Writer, x: Blob) -> Blob:
    """erf within 4e-7 by plain layers where there is none of its own; OpenCV's Erf is as good (5e-7)."""
    if w.has("opencv"):
        return apply(w, "Erf", x)
    x = clip(w, x, -4, 4)
    square = power(w, x, 2)
    above, below = (_polynomial(w, square, coefficients) for coefficients in (ERF_ABOVE, ERF_BELOW))
    return eltwise(w, "PROD", [x, above, power(w, below, -1)])


def _polynomial(w: Writer, x: Blob, coefficients: tuple[float, ...]) -> Blob:
    first, second, *rest = coefficients
    result = power(w, x, scale=first, shift=second)
    for coefficient in rest:
        result = power(w, eltwise(w, "PROD", [result, x]), shift=coefficient)
    return result


@lowers("Clip", to="caffe")
def clip_(w: Writer, node: Node, x: Blob, low: Value = None, high: Value = None) -> Blob:
    bounds = [node.attributes.get(name) if bound is None else bound for name, bound in (("min", low), ("max", high))]
    numbers = [None if bound is None else scalar(node, bound) for bound in bounds]
    limits = [None if n is None or abs(n) >= np.finfo(np.float32).max else n for n in numbers]
    return clip(w, x, *limits)


@lowers("Softmax", "LogSoftmax", to="caffe")
def softmax(w: Writer, node: Node, x: Blob) -> Blob:
    """Before opset 13, all axes from the given one on are one."""
    axis = node.attributes.get("axis", -1 if node.opset >= 13 else 1) % max(1, x.rank)
    flat = x
    if node.opset < 13:
        flat, axis = reshape(w, x, (int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:])))), 1
    if node.operator == "Softmax":
        result = w.add("Softmax", [flat], flat.shape, softmax_param={"axis": axis})
    else:
        shifted = add(w, flat, reduce(w, flat, [axis], "MAX"), -1)
        total = axis_map(w, apply(w, "Exp", shifted), axis, np.ones((1, flat.shape[axis]), np.float32))
        result = add(w, shifted, logarithm(w, total), -1)
    return reshape(w, result, x.shape)


@lowers("Shrink", to="caffe")
def shrink(w: Writer, node: Node, x: Blob) -> Blob:
    bias, limit = node.attributes.get("bias", 0.0), node.attributes.get("lambd", 0.5)
    above, below = step(w, power(w, x, shift=-limit)), step(w, power(w, x, scale=-1, shift=-limit))
    high = eltwise(w, "PROD", [power(w, x, shift=-bias), above])
    return add(w, high, eltwise(w, "PROD", [power(w, x, shift=bias), below]))


@lowers("Cast", "CastLike", to="caffe")
def cast(w: Writer, node: Node, x: Blob, like: Value = None) -> Blob:
    """Between float types, and from a comparison's result (0 or 1) to one: nothing to do, blobs are float32."""
    if node.operator == "Cast" and node.attributes.get("to") in (1, 11):
        return x
    raise refuse(node, "blobs are float32; keep the model in float32")
