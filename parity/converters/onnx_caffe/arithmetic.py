"""Lowerings of arithmetic of several values, with broadcasting, and of comparisons (whose results are 0 and 1)."""

from __future__ import annotations

from functools import reduce as fold
from typing import Any

import numpy as np

from parity.converters.onnx_caffe.compose import (
    add,
    add_constant,
    apply,
    as_blob,
    broadcast_to,
    eltwise,
    minimum,
    multiply,
    multiply_constant,
    negate,
    power,
    reshape,
    step,
)
from parity.converters.onnx_caffe.graph import Node
from parity.converters.onnx_caffe.lowering import refuse, scalar
from parity.converters.onnx_caffe.writer import Blob, Writer
from parity.converters.registry import lowers

Value = Any


def plus(w: Writer, first: Value, second: Value) -> Blob:
    if isinstance(first, np.ndarray):
        first, second = second, first
    return add_constant(w, first, second) if isinstance(second, np.ndarray) else add(w, first, second)


def times(w: Writer, first: Value, second: Value) -> Blob:
    if isinstance(first, np.ndarray):
        first, second = second, first
    return multiply_constant(w, first, second) if isinstance(second, np.ndarray) else multiply(w, first, second)


def minus(w: Writer, first: Value, second: Value) -> Blob:
    if isinstance(first, Blob) and isinstance(second, Blob):
        return add(w, first, second, -1)
    return add_constant(w, first, -second) if isinstance(first, Blob) else add_constant(w, negate(w, second), first)


@lowers("Add", "Sum", to="caffe")
def add_(w: Writer, node: Node, *values: Value) -> Blob:
    return fold(lambda first, second: plus(w, first, second), _blob_first(values))


def _blob_first(values: tuple[Value, ...]) -> list[Value]:
    """The operands with a blob in front: two constants have no layer to add them."""
    return sorted(values, key=lambda value: not isinstance(value, Blob))


@lowers("Mul", to="caffe")
def mul(w: Writer, node: Node, first: Value, second: Value) -> Blob:
    return times(w, first, second)


@lowers("Sub", to="caffe")
def sub(w: Writer, node: Node, first: Value, second: Value) -> Blob:
    return minus(w, first, second)


@lowers("Div", to="caffe")
def div(w: Writer, node: Node, first: Value, second: Value) -> Blob:
    if isinstance(second, np.ndarray):
        with np.errstate(divide="ignore"):
            inverse = (1 / np.asarray(second, np.float64)).astype(np.float32)
        if not np.isfinite(inverse).all():
            raise refuse(node, "a divisor is zero")
        return multiply_constant(w, first, inverse)
    return times(w, first, power(w, second, -1))


@lowers("Mean", to="caffe")
def mean(w: Writer, node: Node, *values: Value) -> Blob:
    return power(w, add_(w, node, *values), scale=1 / len(values))


@lowers("Max", "Min", to="caffe")
def extremum(w: Writer, node: Node, *values: Value) -> Blob:
    shape = node.shapes[0]
    assert shape is not None
    blobs = [v for v in values if isinstance(v, Blob)]
    whole = broadcast_to(w, blobs[0], shape)
    operands = [whole, *(broadcast_to(w, blob, shape) for blob in blobs[1:])]
    for value in values:
        if isinstance(value, np.ndarray):
            operands.append(add_constant(w, power(w, whole, scale=0), value))
    if len(operands) == 1:
        return operands[0]
    if node.operator == "Max":
        return eltwise(w, "MAX", operands)
    return fold(lambda first, second: minimum(w, first, second), operands)


@lowers("Pow", to="caffe")
def pow_(w: Writer, node: Node, base: Value, exponent: Value) -> Blob:
    if isinstance(exponent, np.ndarray):
        return power(w, base, scalar(node, exponent))
    if isinstance(base, np.ndarray) and base.size == 1 and float(base.reshape(())) > 0:
        return apply(w, "Exp", power(w, exponent, scale=float(np.log(scalar(node, base)))))
    raise refuse(node, "a constant exponent, or a positive constant base, works")


# --- comparisons ------------------------------------------------------------------------------------------------------


@lowers("Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal", to="caffe")
def compare(w: Writer, node: Node, first: Value, second: Value) -> Blob:
    if node.operator in ("Less", "GreaterOrEqual"):
        first, second = second, first
    if node.operator == "Equal":
        difference = apply(w, "AbsVal", minus(w, first, second))
        return power(w, step(w, difference), scale=-1, shift=1)
    result = step(w, minus(w, first, second))
    return power(w, result, scale=-1, shift=1) if node.operator.endswith("OrEqual") else result


@lowers("Not", to="caffe")
def not_(w: Writer, node: Node, x: Blob) -> Blob:
    return power(w, x, scale=-1, shift=1)


@lowers("And", "Or", to="caffe")
def logical(w: Writer, node: Node, first: Value, second: Value) -> Blob:
    shape = node.shapes[0]
    assert shape is not None
    blobs = [broadcast_to(w, as_blob(w, np.asarray(v, np.float32) if isinstance(v, np.ndarray) else v), shape)
             for v in (first, second)]  # fmt: skip
    return eltwise(w, "PROD" if node.operator == "And" else "MAX", blobs)


@lowers("Where", to="caffe")
def where(w: Writer, node: Node, condition: Value, first: Value, second: Value) -> Blob:
    """condition·first + (1 − condition)·second: exact where both are finite, which `lowering` makes sure of."""
    if isinstance(condition, np.ndarray):
        mask = condition.astype(np.float32)
        return plus(w, _masked(w, first, mask, node), _masked(w, second, 1 - mask, node))
    chosen, other = times(w, condition, first), times(w, power(w, condition, scale=-1, shift=1), second)
    shape = node.shapes[0]
    assert shape is not None
    return reshape(w, add(w, chosen, other), shape)


def _masked(w: Writer, value: Value, mask: np.ndarray, node: Node) -> Value:
    if isinstance(value, np.ndarray):
        return np.where(mask, value, 0).astype(np.float32)
    return multiply_constant(w, value, mask)
