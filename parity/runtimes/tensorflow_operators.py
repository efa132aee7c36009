"""TensorFlow's operators in float64 as they should be, and their rounding as random noise (Monte Carlo arithmetic).

A Keras model is evaluated eagerly here, so every operator, of the derivatives too, passes one function of TensorFlow,
which is replaced for that time. Two things are done to it:

- Some operators hold float32 numbers even in a float64 model (a slope, resized images), and 3-D pooling has no float64
  kernel at all on a CPU. The truth must be better than what it judges, so they are expressed by others (`EXACTLY`).
- Operators round at random, as `parity.runtimes.rounding` says for torch, in the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod, sqrt
from threading import get_ident
from typing import Any

import numpy as np
from tensorflow.python import pywrap_tfe
from tensorflow.python.ops import math_ops

from parity.cases.keras_backend import tensorflow as tf
from parity.runtimes.rounding import AMPLIFICATION, UNIT

EXACT = {
    # views, copies and selections
    *("Identity", "IdentityN", "ReadVariableOp", "Reshape", "Transpose", "Cast", "Pack", "Unpack", "ConcatV2", "Slice"),
    *("StridedSlice", "StridedSliceGrad", "ExpandDims", "Squeeze", "Gather", "GatherV2", "GatherNd", "Pad", "PadV2"),
    *("MirrorPad", "Tile", "BroadcastTo", "Reverse", "ReverseV2", "Fill", "ZerosLike", "OnesLike", "Split", "SplitV"),
    *("SpaceToBatchND", "BatchToSpaceND", "StopGradient", "PreventGradient", "EnsureShape", "MatrixBandPart"),
    *("ResourceGather", "TensorListStack", "TensorListFromTensor", "TensorListGetItem", "TensorListSetItem"),
    *("DynamicStitch", "ResizeNearestNeighbor", "OneHot", "Range", "Const", "MatrixDiagPartV3", "ReverseSequence"),
    # comparisons and piecewise choices
    *("Relu", "Relu6", "ReluGrad", "Relu6Grad", "Maximum", "Minimum", "Max", "Min", "MaxPool", "MaxPoolV2", "Select"),
    *("SelectV2", "Abs", "Neg", "Sign", "ClipByValue", "Floor", "Ceil", "Round", "Rint", "TopKV2"),
}
"""Operators that round nothing; those without floating-point results (comparisons, shapes) need no mention."""
MATRIX_PRODUCTS = ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3")
REDUCTIONS = (
    *("Sum", "Mean", "Prod", "AvgPool", "AvgPoolGrad", "MaxPoolGrad", "Softmax", "LogSoftmax", "AddN", "Cumsum"),
    *("L2Loss", "EuclideanNorm", "FusedBatchNormV3", "UnsortedSegmentSum"),
)

Execute = Callable[..., Any]
Rounded = Callable[[np.ndarray], np.ndarray]


class Operators:
    """While it is entered, TensorFlow's eager operators in this thread are exact in float64, and then round.

    `unit` is the relative size of one rounding; 0 for none. Within another one, the outer one stays in charge.
    """

    active: Operators | None = None

    def __init__(self, unit: float = 0.0, seed: int = 0) -> None:
        self.unit = unit
        self.generator = np.random.default_rng(seed)
        self.thread = get_ident()
        self.busy = False

    @contextmanager
    def entered(self) -> Iterator[None]:
        if Operators.active is not None:
            yield
            return
        fast, slow, cast = pywrap_tfe.TFE_Py_FastPathExecute, pywrap_tfe.TFE_Py_Execute, math_ops.cast
        compiled = tf.function
        self.fast, self.slow, self.cast = fast, slow, cast
        Operators.active = self
        pywrap_tfe.TFE_Py_FastPathExecute, pywrap_tfe.TFE_Py_Execute = self.execute_fast, self.execute_slow
        math_ops.cast = tf.cast = self.cast_number
        tf.function = _not_compiled
        try:
            yield
        finally:
            pywrap_tfe.TFE_Py_FastPathExecute, pywrap_tfe.TFE_Py_Execute = fast, slow
            math_ops.cast = tf.cast = cast
            tf.function = compiled
            Operators.active = None

    def cast_number(self, x: Any, dtype: Any, name: str | None = None) -> Any:
        """TensorFlow makes a Python number a float32 first, whatever it is cast to."""
        if isinstance(x, float) and tf.as_dtype(dtype) == tf.float64:
            return tf.constant(x, tf.float64)
        return self.cast(x, dtype, name)

    def execute_fast(self, context: Any, name: str, label: Any, *arguments: Any) -> Any:
        """The way of nearly every operator: tensors first, then attributes, each after its name."""
        if self.busy or get_ident() != self.thread:
            return self.fast(context, name, label, *arguments)
        self.busy = True
        try:
            arguments = tuple(_read(x) for x in arguments)
        finally:
            self.busy = False
        if name in EXACTLY and getattr(arguments[0], "dtype", None) == tf.float64:
            other = EXACTLY[name](self, *arguments)
            if other is not None:
                return other
        self.busy = True
        try:
            if length := self.unit and reduction_length(name, _tensors(arguments)):
                arguments = tuple(self._rounded(x, max(1.0, sqrt(length) / 2)) for x in arguments)
            result = self.fast(context, name, label, *arguments)
            return self._result(name, arguments, result)
        finally:
            self.busy = False

    def execute_slow(self, handle: Any, device: Any, name: str, tensors: Sequence[Any], *rest: Any) -> Any:
        """The way of operators whose arguments are of mixed types: some that take Python numbers."""
        if self.busy or not self.unit or get_ident() != self.thread:  # nothing to be made exact comes this way
            return self.slow(handle, device, name, tensors, *rest)
        self.busy = True
        try:
            function = name if isinstance(name, str) else name.decode()
            if length := reduction_length(function, _tensors(tensors)):
                tensors = [self._rounded(x, max(1.0, sqrt(length) / 2), taped=False) for x in tensors]
            results = self.slow(handle, device, name, tensors, *rest)
            if function in EXACT:
                return results
            return [self._rounded(x, taped=False) for x in results]
        finally:
            self.busy = False

    def _result(self, name: str, arguments: Sequence[Any], exact: Any) -> Any:
        if not self.unit or name in EXACT:
            return exact
        if isinstance(exact, list | tuple):
            return type(exact)(self._rounded(x) for x in exact) if type(exact) in (list, tuple) else exact
        result = self._rounded(exact)
        if name == "Erfc" and _floating(exact):  # others compute it as 1 − erf, which cancels
            result = result + self.unit * self.generator.standard_normal(exact.shape)
        return result

    def _rounded(self, value: Any, factor: float = 1.0, taped: bool = True) -> Any:
        """The tensor with relative noise; the sum is recorded for derivatives, which it leaves as they are."""
        if isinstance(value, list):
            return [self._rounded(item, factor, taped) for item in value]
        if not _floating(value):
            return value
        exact = value.numpy()
        if exact.ndim == 0 and float(exact).is_integer():  # an exponent less 1, say: with noise it would not be whole
            return value
        noise = np.where(np.isfinite(exact), exact, 0) * self.generator.standard_normal(exact.shape)
        noise = noise * (self.unit * factor)
        return value + tf.constant(noise, value.dtype) if taped else tf.constant(exact + noise, value.dtype)

    def rounded(self, array: np.ndarray) -> np.ndarray:
        """An intermediate result with relative noise."""
        return np.asarray(array * (1 + self.unit * self.generator.standard_normal(array.shape)))


def _not_compiled(function: Any = None, **options: Any) -> Any:
    """For `tf.function`: Keras compiles a convolution in groups anew at every call."""
    return function or _not_compiled


def _read(value: Any) -> Any:
    """Variables as tensors; anything else as it is."""
    if isinstance(value, tf.Tensor) or not hasattr(value, "__tf_tensor__"):
        return value
    return tf.convert_to_tensor(value)


def _floating(value: Any) -> bool:
    return isinstance(value, tf.Tensor) and value.dtype in (tf.float64, tf.float32)


def _tensors(arguments: Sequence[Any]) -> list[Any]:
    lists = (item if isinstance(item, list) else [item] for item in arguments)
    return [tensor for items in lists for tensor in items if isinstance(tensor, tf.Tensor)]


def reduction_length(name: str, tensors: Sequence[Any]) -> int:
    """How many products or terms one output element is made of; 0 for an elementwise operator."""
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if name in MATRIX_PRODUCTS:
        batch = prod(shapes[0][:-2])
        return max(1, min(prod(shapes[0]) // max(1, batch), max(shapes[0][-2:])))
    if name == "Einsum":
        return max(max(shape, default=1) for shape in shapes)
    if name in ("Conv2D", "Conv3D", "DepthwiseConv2dNative"):
        return prod(shapes[1][:-1]) if name != "DepthwiseConv2dNative" else prod(shapes[1][:2])
    if "Backprop" in name:
        return max(prod(shape[:-1]) for shape in shapes if len(shape) > 2)
    if name in REDUCTIONS or name.endswith(("PoolGrad", "Pool3DGrad")):
        return max(prod(shape) for shape in shapes) // max(1, shapes[0][0] if shapes[0] else 1)
    if name.endswith("Grad"):
        return 1  # its formula crosses zero by cancellation, where its argument's rounding shows
    return 0


# --- operators whose float64 is not one -------------------------------------------------------------------------------


def leaky_relu(operators: Operators, x: Any, *attributes: Any) -> Any:
    """The slope is an attribute, and those are float32."""
    return tf.where(x > 0, x, x * tf.constant(dict(pairs(attributes))["alpha"], x.dtype))


def _exponential_below_zero(alpha: float, scale: float) -> Execute:
    """TensorFlow's kernels subtract 1 from an exponential, which leaves few digits near zero."""

    def formula(operators: Operators, x: Any, *attributes: Any) -> Any:
        return tf.where(x > 0, x * scale, tf.math.expm1(tf.minimum(x, 0.0)) * (alpha * scale))

    return formula


def coordinates(length: int, new: int, rounded: Rounded) -> np.ndarray:
    """Where the centers of `new` pixels lie among those of `length` ones."""
    return rounded((np.arange(new) + 0.5) * (length / new)) - 0.5


def linear_weights(length: int, new: int, rounded: Rounded) -> np.ndarray:
    """Matrix (new, length) of linear interpolation between pixels, the border repeated."""
    positions = np.clip(coordinates(length, new, rounded), 0, length - 1)
    return np.asarray(np.maximum(0.0, 1 - np.abs(positions[:, None] - np.arange(length))))


def cubic_weights(length: int, new: int, rounded: Rounded) -> np.ndarray:
    """Matrix (new, length) of cubic interpolation (Keys, 1981, a = −1/2); weights outside the image are left out.

    TensorFlow reads them from a table of 1024 positions between two pixels.
    """
    centers = coordinates(length, new, lambda exact: exact)  # rounding them leaves them in their place of the table
    whole = np.floor(centers)
    t = np.abs((whole + np.rint((centers - whole) * 1024) / 1024)[:, None] - np.arange(length))
    near = rounded(rounded(rounded(1.5 * t - 2.5) * t) * t) + 1
    far = rounded(rounded(rounded(-0.5 * t + 2.5) * t - 4) * t) + 2
    weights = rounded(np.where(t <= 1, near, np.where(t < 2, far, 0.0)))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def convolution_2d(operators: Operators, x: Any, kernel: Any, *attributes: Any) -> Any:
    """In groups, one for each: TensorFlow has no kernel for groups on a CPU, only a compiler."""
    return _by_groups(tf.raw_ops.Conv2D, x, kernel, attributes)


def convolution_3d(operators: Operators, x: Any, kernel: Any, *attributes: Any) -> Any:
    """Padded beforehand: where a window is shorter than the stride, TensorFlow's kernel begins at another voxel."""
    options = dict(pairs(attributes))
    if options["padding"] == b"SAME" or options["padding"] == "SAME":
        amounts = []
        for size, window, stride in zip(x.shape[1:4], kernel.shape[:3], options["strides"][1:4], strict=True):
            total = max((-(-size // stride) - 1) * stride + window - size, 0)
            amounts.append((total // 2, total - total // 2))
        padded = tf.pad(x, [(0, 0), *amounts, (0, 0)])
        return tf.raw_ops.Conv3D(input=padded, filter=kernel, **{**options, "padding": "VALID"})
    return _by_groups(tf.raw_ops.Conv3D, x, kernel, attributes)


def _by_groups(operator: Callable[..., Any], x: Any, kernel: Any, attributes: Sequence[Any]) -> Any:
    groups = x.shape[-1] // kernel.shape[-2]
    if groups == 1:
        return None
    parts = zip(tf.split(x, groups, axis=-1), tf.split(kernel, groups, axis=-1), strict=True)
    return tf.concat([operator(input=a, filter=b, **dict(pairs(attributes))) for a, b in parts], axis=-1)


def pairs(attributes: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Attributes by name."""
    return zip(attributes[::2], attributes[1::2], strict=True)


def _resized(weights: Callable[[int, int, Rounded], np.ndarray]) -> Execute:
    """TensorFlow resizes in float32 alone. With half-pixel centers, as Keras asks for."""

    def resize(operators: Operators, images: Any, size: Any, *attributes: Any) -> Any:
        height, width = (int(number) for number in np.asarray(size))
        rows = weights(images.shape[1], height, operators.rounded)
        columns = weights(images.shape[2], width, operators.rounded)
        return tf.einsum("ih,nhwc,jw->nijc", tf.constant(rows), images, tf.constant(columns))

    return resize


def _pooled(pool: Callable[..., Any]) -> Execute:
    """3-D pooling as 2-D pooling of height and width and then 1-D pooling of depth: windows are boxes."""

    def pool_3d(operators: Operators, x: Any, *attributes: Any) -> Any:
        options = dict(pairs(attributes))
        size, strides, padding = options["ksize"], options["strides"], options["padding"]
        batch, depth, height, width, channels = x.shape
        flat = pool(tf.reshape(x, (batch * depth, height, width, channels)), size[2:4], strides[2:4], padding)
        height, width = flat.shape[1:3]
        flat = tf.reshape(flat, (batch, depth, height * width, channels))
        flat = pool(flat, (size[1], 1), (strides[1], 1), padding)
        return tf.reshape(flat, (batch, -1, height, width, channels))

    return pool_3d


EXACTLY: dict[str, Execute] = {
    "LeakyRelu": leaky_relu,
    "Elu": _exponential_below_zero(1.0, 1.0),
    "Selu": _exponential_below_zero(1.6732632423543772, 1.0507009873554805),
    "Conv2D": convolution_2d,
    "Conv3D": convolution_3d,
    "ResizeBilinear": _resized(linear_weights),
    "ResizeBicubic": _resized(cubic_weights),
    "MaxPool3D": _pooled(tf.nn.max_pool2d),
    "AvgPool3D": _pooled(tf.nn.avg_pool2d),
}
"""Formulas of the same functions in float64, by the operator's name: (operators, tensors and attributes) -> tensor, or
None to leave the operator as it is."""


@contextmanager
def exact_operators() -> Iterator[None]:
    """Evaluate float64 models as they should be."""
    with Operators().entered():
        yield


@contextmanager
def rounding(dtype: str, seed: int) -> Iterator[float]:
    """Random rounding of `dtype` for the float64 Keras code inside; gives the factor by which it is amplified."""
    with Operators(UNIT[dtype] * AMPLIFICATION[dtype], seed).entered():
        yield AMPLIFICATION[dtype]
