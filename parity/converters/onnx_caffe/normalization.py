"""Lowerings of normalizations: BatchNorm and Scale, LRN, and MVN with Scale."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from parity.converters.onnx_caffe.compose import (
    add_constant,
    affine,
    apply,
    eltwise,
    multiply,
    multiply_constant,
    normalize,
    power,
    reduce,
    reshape,
)
from parity.converters.onnx_caffe.graph import Node
from parity.converters.onnx_caffe.lowering import constants, refuse
from parity.converters.onnx_caffe.writer import Blob, Writer
from parity.converters.registry import lowers

Value = Any


@lowers("BatchNormalization", to="caffe")
def batch_norm(w: Writer, node: Node, x: Blob, gain: Value, bias: Value, mean: Value, variance: Value) -> Blob:
    """BatchNorm (mean, variance, and a divisor of both, here 1), then Scale with a bias."""
    if node.attributes.get("training_mode", 0) or any(node.outputs[1:]):
        raise refuse(node, "it is in training mode: export the model in eval mode")
    if node.attributes.get("spatial", 1) == 0:
        raise refuse(node, "statistics per position (spatial=0): per channel works")
    gain, bias, mean, variance = constants(node, gain, bias, mean, variance)
    fields = {"use_global_stats": True, "eps": node.attributes.get("epsilon", 1e-5)}
    blobs = [mean, variance, np.ones(1, np.float32)]
    normalized = w.add("BatchNorm", [x], x.shape, blobs, batch_norm_param=fields)
    return affine(w, normalized, 1, gain, bias)


@lowers("LRN", to="caffe")
def local_response(w: Writer, node: Node, x: Blob) -> Blob:
    """(k + α/n·Σx²)^−β = k^−β·(1 + α/(k·n)·Σx²)^−β: OpenCV knows only k = 1."""
    size = node.attributes["size"]
    if size % 2 == 0:
        raise refuse(node, "Caffe's LRN takes an odd size")
    alpha, beta = node.attributes.get("alpha", 1e-4), node.attributes.get("beta", 0.75)
    k = node.attributes.get("bias", 1.0)
    image = reshape(w, x, (*x.shape[:2], 1, prod(x.shape[2:]))) if x.rank != 4 else x
    fields = {"local_size": size, "alpha": alpha, "beta": beta}
    if k != 1 and w.has("opencv"):
        y = apply(w, "LRN", image, lrn_param=fields | {"alpha": alpha / k})
        return reshape(w, power(w, y, scale=k**-beta), x.shape)
    return reshape(w, apply(w, "LRN", image, lrn_param=fields | ({"k": k} if k != 1 else {})), x.shape)


def _rows(w: Writer, x: Blob, rows: int, epsilon: float) -> Blob:
    return reshape(w, normalize(w, reshape(w, x, (rows, x.size // rows)), epsilon), x.shape)


@lowers("InstanceNormalization", to="caffe")
def instance_norm(w: Writer, node: Node, x: Blob, gain: Value, bias: Value) -> Blob:
    gain, bias = constants(node, gain, bias)
    y = _rows(w, x, x.shape[0] * x.shape[1], node.attributes.get("epsilon", 1e-5))
    return affine(w, y, 1, gain, bias)


@lowers("GroupNormalization", to="caffe")
def group_norm(w: Writer, node: Node, x: Blob, gain: Value, bias: Value) -> Blob:
    """Gains are per group before opset 21, per channel since."""
    gain, bias = constants(node, gain, bias)
    y = _rows(w, x, x.shape[0] * node.attributes["num_groups"], node.attributes.get("epsilon", 1e-5))
    gain, bias = (np.repeat(values, x.shape[1] // values.size) for values in (gain, bias))
    return affine(w, y, 1, gain, bias)


@lowers("LayerNormalization", to="caffe")
def layer_norm(w: Writer, node: Node, x: Blob, gain: Value, bias: Value = None) -> Blob:
    gain, *biases = constants(node, gain, bias)
    axis = node.attributes.get("axis", -1) % x.rank
    y = _rows(w, x, prod(x.shape[:axis]), node.attributes.get("epsilon", 1e-5))
    y = multiply_constant(w, y, gain)
    return add_constant(w, y, biases[0]) if biases else y


@lowers("LpNormalization", to="caffe")
def lp_norm(w: Writer, node: Node, x: Blob) -> Blob:
    """x over its p-norm along one axis, 0 where that is 0: the least of numbers is added to it."""
    axis = node.attributes.get("axis", -1) % x.rank
    if node.attributes.get("p", 2) == 1:
        return multiply(w, x, power(w, reduce(w, apply(w, "AbsVal", x), [axis], "SUM"), -1, shift=1e-37))
    squares = reduce(w, eltwise(w, "PROD", [x, x]), [axis], "SUM")
    return multiply(w, x, power(w, squares, -0.5, shift=1e-37))
