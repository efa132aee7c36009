"""The Keras vocabulary: one entry per layer, and how a spec becomes a functional Keras model with its weights.

An entry draws a layer's arguments for an input shape (channels last), with `rng.choice` only: the suites stratify those
choices, so that a handful of cases of one layer meets every option. Keras is imported when a model is built.
"""

from __future__ import annotations

import ast
from functools import cache
from math import prod
from random import Random
from typing import TYPE_CHECKING, Any

from parity.cases.spec import ModelSpec, Shape
from parity.cases.vocabulary import Arguments, Vocabulary

if TYPE_CHECKING:
    from parity.cases.keras_backend import keras


def build(spec: ModelSpec, dtype: str = "float32") -> keras.Model:
    """The spec as a functional model, with Keras' own initial weights (see `fill`).

    Layers bear the names of the spec's values, inputs `x` or `x0`, `x1`, …. A node of `APPLICATIONS` is a whole model.
    """
    from parity.cases.keras_backend import keras
    from parity.cases.keras_modules import application, apply

    if spec.layers[0] in APPLICATIONS:
        return application(spec.layers[0], spec.nodes[0].arguments, spec.input_shapes[0])
    inputs = len(spec.input_shapes)
    values: dict[int, Any] = {}
    for value, shape in enumerate(spec.input_shapes):
        values[value] = keras.Input(shape, name="x" if inputs == 1 else f"x{value}", dtype=dtype)
    for value, node in enumerate(spec.nodes, start=inputs):
        sources = [values[source] for source in node.inputs]
        values[value] = apply(node.layer, {**node.arguments, "name": spec.name_of(value), "dtype": dtype}, sources)
    return keras.Model([values[index] for index in range(inputs)], values[spec.values - 1], name="model")


def infer_shape(name: str, arguments: Arguments, shapes: list[Shape]) -> Shape:
    """Output shape without the batch axis, by Keras itself on symbolic tensors."""
    return _infer_shape(name, repr(arguments), tuple(shapes))


def fill(model: keras.Model, seed: object) -> None:
    """See `parity.cases.keras_modules.fill`."""
    from parity.cases import keras_modules

    keras_modules.fill(model, seed)


@cache
def _infer_shape(name: str, arguments: str, shapes: tuple[Shape, ...]) -> Shape:
    from parity.cases.keras_backend import keras
    from parity.cases.keras_modules import apply

    tensors = [keras.KerasTensor((None, *shape)) for shape in shapes]
    return tuple(apply(name, ast.literal_eval(arguments), tensors).shape[1:])


def channels_last(rng: Random, rank: int) -> Shape:
    """An input's shape without the batch axis, channels last; sizes differ by axis, so that swapped axes show."""
    spatial = (4, 8) if rank < 4 else (3, 5)
    channels = rng.choice(range(2, 10) if rank == 1 else range(1, 5))
    return (*(rng.choice(range(*spatial)) for _ in range(rank - 1)), channels)


KERAS = Vocabulary("keras", infer_shape, build, fill, draw_shape=channels_last, dense="Dense")
layer = KERAS.layer

ANY = (1, 2, 3)
ACTIVATIONS = (
    "celu", "elu", "exponential", "gelu", "hard_shrink", "hard_sigmoid", "hard_silu", "hard_tanh", "leaky_relu",
    "linear", "log_sigmoid", "log_softmax", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_shrink",
    "softmax", "softplus", "softsign", "sparse_plus", "sparse_sigmoid", "sparsemax", "squareplus", "swish", "tanh",
    "tanh_shrink",
)  # fmt: skip
"""Those of `keras.activations` that keep the shape: for `glu`, which halves it, Keras states a wrong output shape."""
FUSED = (None, "relu", None, "tanh", "softmax", "swish")
"""Activations inside a contraction: several have none, so that prefixes and blame see its own output."""

APPLICATIONS = ("MobileNetV2", "ResNet50V2", "EfficientNetB0")
"""Models of `keras.applications`."""

# --- contractions -----------------------------------------------------------------------------------------------------


@layer("Dense", "contraction", *ANY)
def dense(rng: Random, shape: Shape) -> Arguments:
    return {
        "units": rng.choice(range(1, 9)),
        "activation": rng.choice(FUSED),
        "use_bias": rng.choice((True, True, False)),
    }


@layer("EinsumDense", "contraction", 2)
def einsum_dense(rng: Random, shape: Shape) -> Arguments:
    units, steps = rng.choice((2, 3)), shape[0]
    equation, output, bias = rng.choice(
        (
            ("abc,cd->abd", [steps, units], "d"),
            ("abc,cde->abde", [steps, units, 2], "de"),
            ("abc,bcd->ad", [units], None),
        )
    )
    return {"equation": equation, "output_shape": output, "bias_axes": bias, "activation": rng.choice(FUSED)}


def _window(rng: Random, spatial: Shape, paddings: tuple[str, ...], dilate: bool = True) -> Arguments | None:
    """Kernel sizes that differ by axis; strides or dilation, as TensorFlow refuses both at once.

    3 is drawn more often: an odd kernel and a stride is where padding on both sides gives the right shape.
    """
    padding = rng.choice(paddings)
    stride, dilation = rng.choice(((1, 1), (2, 1), (1, 2), (3, 1)) if dilate else ((1, 1), (2, 1), (3, 1)))
    kernel = [rng.choice((3, 1, 2, 3, 4)) for _ in spatial]
    if padding == "valid" and any(
        dilation * (length - 1) >= size for length, size in zip(kernel, spatial, strict=True)
    ):
        return None
    return {"kernel_size": kernel, "strides": stride, "dilation_rate": dilation, "padding": padding}


def _convolution(rng: Random, shape: Shape) -> Arguments | None:
    paddings = ("same", "valid", "causal", "same") if len(shape) == 2 else ("same", "valid")
    window = _window(rng, shape[:-1], paddings)
    groups = rng.choice([count for count in (1, 2, shape[-1]) if shape[-1] % count == 0])
    filters = groups * rng.choice((1, 2))
    options = {
        "filters": filters,
        "groups": groups,
        "activation": rng.choice(FUSED),
        "use_bias": rng.choice((True, False)),
    }
    return window and {**window, **options}


layer("Conv1D", "contraction", 2)(_convolution)
layer("Conv2D", "contraction", 3)(_convolution)
layer("Conv3D", "contraction", 4)(_convolution)


def _depthwise(rng: Random, shape: Shape) -> Arguments | None:
    window = _window(rng, shape[:-1], ("same", "valid"))
    options = {
        "depth_multiplier": rng.choice((2, 1)),
        "activation": rng.choice(FUSED),
        "use_bias": rng.choice((True, False)),
    }
    return window and {**window, **options}


layer("DepthwiseConv1D", "contraction", 2)(_depthwise)
layer("DepthwiseConv2D", "contraction", 3)(_depthwise)


def _separable(rng: Random, shape: Shape) -> Arguments | None:
    options = _depthwise(rng, shape)
    return options and {**options, "filters": rng.choice((1, 2, 3))}


layer("SeparableConv1D", "contraction", 2)(_separable)
layer("SeparableConv2D", "contraction", 3)(_separable)


def _transposed(rng: Random, shape: Shape) -> Arguments:
    volume = len(shape) == 4
    stride = rng.choice((1, 2) if volume else (1, 2, 3))
    kernel = [rng.choice((1, 2, 3) if volume else (1, 2, 3, 4)) for _ in shape[:-1]]
    padding = rng.choice(("same", "valid"))
    # TensorFlow takes an output padding only where the convolution of the output has the length of the input.
    possible = [
        n for n in range(stride) if padding == "valid" or all(1 <= length % 2 + n <= stride for length in kernel)
    ]
    extra = rng.choice((None, *possible))
    return {
        "filters": rng.choice((1, 2)),
        "kernel_size": kernel,
        "strides": stride,
        "padding": padding,
        "output_padding": extra,
        "activation": rng.choice(FUSED),
        "use_bias": rng.choice((True, False)),
    }


layer("Conv1DTranspose", "contraction", 2)(_transposed)
layer("Conv2DTranspose", "contraction", 3)(_transposed)
layer("Conv3DTranspose", "contraction", 4)(_transposed)


@layer("Embedding", "contraction", 1)
def embedding(rng: Random, shape: Shape) -> Arguments:
    """Numbers become tokens by scaling and clipping: see `keras_modules`."""
    return {"input_dim": rng.choice((3, 5)), "output_dim": rng.choice((2, 3)), "mask_zero": rng.choice((False, True))}


# --- recurrent layers -------------------------------------------------------------------------------------------------


def _cell(rng: Random, kind: str) -> Arguments:
    arguments: Arguments = {"units": rng.choice((2, 3, 4)), "use_bias": rng.choice((True, True, False))}
    arguments["activation"] = rng.choice(("tanh", "tanh", "relu", "softsign"))
    if kind != "SimpleRNN":
        arguments["recurrent_activation"] = rng.choice(("sigmoid", "sigmoid", "hard_sigmoid"))
    if kind == "GRU":
        arguments["reset_after"] = rng.choice((True, False))
    return {
        **arguments,
        "return_sequences": rng.choice((False, True)),
        "go_backwards": rng.choice((False, False, True)),
    }


@layer("SimpleRNN", "contraction", 2)
def simple_rnn(rng: Random, shape: Shape) -> Arguments:
    return _cell(rng, "SimpleRNN")


@layer("LSTM", "contraction", 2)
def lstm(rng: Random, shape: Shape) -> Arguments:
    return _cell(rng, "LSTM")


@layer("GRU", "contraction", 2)
def gru(rng: Random, shape: Shape) -> Arguments:
    return _cell(rng, "GRU")


@layer("Bidirectional", "contraction", 2)
def bidirectional(rng: Random, shape: Shape) -> Arguments:
    kind = rng.choice(("LSTM", "GRU", "SimpleRNN"))
    return {"merge_mode": rng.choice(("concat", "sum", "ave", "mul")), "layer": [kind, _forwards(rng, kind)]}


def _forwards(rng: Random, kind: str) -> Arguments:
    return {**_cell(rng, kind), "go_backwards": False}  # Bidirectional refuses what it would have to turn around


@layer("MaskedRecurrent", "contraction", 1)
def masked_recurrent(rng: Random, shape: Shape) -> Arguments:
    """Tokens, an Embedding with `mask_zero`, and a recurrent layer that skips token 0, wherever it stands."""
    arguments: Arguments = {"input_dim": rng.choice((3, 5)), "output_dim": rng.choice((2, 3))}
    kind = rng.choice(("LSTM", "GRU", "SimpleRNN"))
    merge_mode = rng.choice((None, "concat", "mul"))
    cell = _cell(rng, kind) if merge_mode is None else _forwards(rng, kind)
    dropout = rng.choice((0.0, 0.3))
    return {**arguments, "mask_zero": True, "layer": [kind, cell], "merge_mode": merge_mode, "between": dropout}


@layer("TimeDistributed", "contraction", 2, 3)
def time_distributed(rng: Random, shape: Shape) -> Arguments | None:
    inner: Arguments | None = dense(rng, shape[1:]) if len(shape) == 2 else _convolution(rng, shape[1:])
    return inner and {"layer": ["Dense" if len(shape) == 2 else "Conv1D", inner]}


# --- pooling ----------------------------------------------------------------------------------------------------------


def _pooling(rng: Random, shape: Shape) -> Arguments | None:
    size = [rng.choice((2, 3)) for _ in shape[:-1]]
    padding = rng.choice(("same", "valid"))
    strides = rng.choice((2, None, 1, 3))
    return {"pool_size": size, "strides": strides, "padding": padding} if min(shape[:-1]) >= 3 else None


def _global_pooling(rng: Random, shape: Shape) -> Arguments:
    formats = ("channels_last", "channels_first") if len(shape) > 2 else ("channels_last",)  # a mask is over the steps
    return {"keepdims": rng.choice((False, True)), "data_format": rng.choice(formats)}


for _rank, _dimension in ((2, "1D"), (3, "2D"), (4, "3D")):
    for _name in ("MaxPooling", "AveragePooling"):
        layer(_name + _dimension, "pooling", _rank)(_pooling)
    for _name in ("GlobalAveragePooling", "GlobalMaxPooling"):
        layer(_name + _dimension, "pooling", _rank)(_global_pooling)

# --- normalization ----------------------------------------------------------------------------------------------------

EPSILONS = (1e-3, 1e-5, 1e-2)


def _gains(rng: Random) -> Arguments:
    center, scale = rng.choice(((True, True), (False, True), (True, False), (False, False)))
    return {"epsilon": rng.choice(EPSILONS), "center": center, "scale": scale}


@layer("BatchNormalization", "normalization", *ANY)
def batch_normalization(rng: Random, shape: Shape) -> Arguments:
    return {"axis": rng.choice((-1, 1)), **_gains(rng)}


@layer("LayerNormalization", "normalization", *ANY)
def layer_normalization(rng: Random, shape: Shape) -> Arguments | None:
    last = len(shape)
    axis = rng.choice((-1, 1, [1, last], [last])) if last > 1 else -1
    axes = [axis] if isinstance(axis, int) else axis
    if prod(shape[index - 1 if index > 0 else index] for index in axes) == 1:
        return None  # the variance of one element is zero, whatever the input
    return {"axis": axis, **_gains(rng)}


@layer("RMSNormalization", "normalization", *ANY)
def rms_normalization(rng: Random, shape: Shape) -> Arguments:
    return {"axis": rng.choice((-1, len(shape))), "epsilon": rng.choice(EPSILONS)}


@layer("GroupNormalization", "normalization", 2, 3)
def group_normalization(rng: Random, shape: Shape) -> Arguments | None:
    axis = rng.choice((-1, -1, 1))
    channels = shape[-1] if axis == -1 else shape[0]
    groups = rng.choice([n for n in (1, 2, channels, -1) if channels % n == 0])
    if prod(shape) == (channels if groups == -1 else groups):
        return None  # the variance of one element is zero, whatever the input
    return {"groups": groups, "axis": axis, **_gains(rng)}


@layer("UnitNormalization", "normalization", *ANY)
def unit_normalization(rng: Random, shape: Shape) -> Arguments | None:
    axis = rng.choice((-1, 1, list(range(1, len(shape) + 1))))
    length = prod(shape) if isinstance(axis, list) else shape[axis - 1 if axis > 0 else axis]
    return {"axis": axis} if length > 1 else None  # one element becomes its sign


@layer("Normalization", "normalization", *ANY)
def normalization(rng: Random, shape: Shape) -> Arguments:
    statistics: list[Arguments] = [{}, {"mean": 0.5, "variance": 2.0}]
    statistics.append({"mean": [0.25 * n for n in range(shape[-1])], "variance": [0.5 + n for n in range(shape[-1])]})
    return {"axis": -1, "invert": rng.choice((False, True)), **rng.choice(statistics)}


@layer("Rescaling", "normalization", *ANY)
def rescaling(rng: Random, shape: Shape) -> Arguments:
    # Float32 numbers, as Keras rounds these even in a float64 model; likewise below for slopes and head sizes.
    return {"scale": rng.choice((0.25, 3.0)), "offset": rng.choice((0.0, -1.0))}


# --- activations ------------------------------------------------------------------------------------------------------


@layer("Activation", "activation", *ANY)
def activation(rng: Random, shape: Shape) -> Arguments:
    return {"activation": rng.choice(ACTIVATIONS)}


KERAS.plain("activation", ANY, "Tanh")


@layer("ReLU", "activation", *ANY)
def relu(rng: Random, shape: Shape) -> Arguments:
    limits = {"max_value": rng.choice((None, 1.0, 6.0)), "threshold": rng.choice((0.0, 0.5))}
    return {**limits, "negative_slope": rng.choice((0.0, 0.25))}


@layer("LeakyReLU", "activation", *ANY)
def leaky_relu(rng: Random, shape: Shape) -> Arguments:
    return {"negative_slope": rng.choice((0.25, 0.125))}


@layer("PReLU", "activation", *ANY)
def prelu(rng: Random, shape: Shape) -> Arguments:
    return {"shared_axes": rng.choice((None, [1], list(range(1, len(shape) + 1)), list(range(1, len(shape))) or None))}


@layer("ELU", "activation", *ANY)
def elu(rng: Random, shape: Shape) -> Arguments:
    return {"alpha": rng.choice((1.0, 0.5))}


@layer("Softmax", "activation", 1, 3)  # of (steps, features), Keras refuses the mask that may come with them
def softmax(rng: Random, shape: Shape) -> Arguments | None:
    axes: list[Any] = [axis + 1 for axis, size in enumerate(shape) if size > 1]
    if not axes:
        return None
    return {"axis": rng.choice([*axes, -1 if shape[-1] > 1 else axes[0], axes if len(axes) > 1 else axes[0]])}


def _rate(rng: Random, shape: Shape) -> Arguments:
    return {"rate": rng.choice((0.2, 0.5))}


for _name in ("Dropout", "GaussianDropout", "AlphaDropout"):
    layer(_name, "activation", *ANY)(_rate)
layer("SpatialDropout1D", "activation", 2)(_rate)
layer("SpatialDropout2D", "activation", 3)(_rate)
layer("SpatialDropout3D", "activation", 4)(_rate)
KERAS.plain("activation", ANY, "Identity", "ActivityRegularization")


@layer("GaussianNoise", "activation", *ANY)
def gaussian_noise(rng: Random, shape: Shape) -> Arguments:
    return {"stddev": rng.choice((0.1, 1.0))}


# --- reshaping --------------------------------------------------------------------------------------------------------


@layer("Flatten", "reshaping", 2, 3)
def flatten(rng: Random, shape: Shape) -> Arguments:
    return {"data_format": rng.choice(("channels_last", "channels_last", "channels_first"))}


@layer("Reshape", "reshaping", *ANY)
def reshape(rng: Random, shape: Shape) -> Arguments:
    size = prod(shape)
    divisors = [count for count in range(1, size + 1) if size % count == 0]
    first = rng.choice(divisors)
    return {"target_shape": rng.choice(([first, size // first], [-1, first], [size]))}


@layer("Permute", "reshaping", 2, 3)
def permute(rng: Random, shape: Shape) -> Arguments:
    return {"dims": rng.choice(([2, 1],) if len(shape) == 2 else ([2, 1, 3], [3, 1, 2], [2, 3, 1]))}


@layer("RepeatVector", "reshaping", 1)
def repeat_vector(rng: Random, shape: Shape) -> Arguments:
    return {"n": rng.choice((2, 3))}


def _amounts(rng: Random, axes: int, most: int) -> list[Any]:
    pairs = [[rng.choice(range(most + 1)), rng.choice(range(most + 1))] for _ in range(axes)]
    return pairs[0] if axes == 1 else pairs


def _zero_padding(rng: Random, shape: Shape) -> Arguments:
    return {"padding": _amounts(rng, len(shape) - 1, 2)}


def _cropping(rng: Random, shape: Shape) -> Arguments | None:
    return {"cropping": _amounts(rng, len(shape) - 1, 1)} if min(shape[:-1]) > 2 else None


def _up_sampling(rng: Random, shape: Shape) -> Arguments:
    factors = [rng.choice((2, 1, 3)) for _ in shape[:-1]]
    if len(shape) == 2:
        return {"size": factors[0]}
    if len(shape) == 4:
        return {"size": factors}
    return {"size": factors, "interpolation": rng.choice(("nearest", "bilinear", "bicubic"))}


for _rank, _dimension in ((2, "1D"), (3, "2D"), (4, "3D")):
    layer(f"ZeroPadding{_dimension}", "reshaping", _rank)(_zero_padding)
    layer(f"Cropping{_dimension}", "reshaping", _rank)(_cropping)
    layer(f"UpSampling{_dimension}", "reshaping", _rank)(_up_sampling)


@layer("Resizing", "reshaping", 3)
def resizing(rng: Random, shape: Shape) -> Arguments:
    height, width = (max(1, length + rng.choice((3, 1, -2, 4))) for length in shape[:2])
    return {"height": height, "width": width, "interpolation": rng.choice(("bilinear", "nearest", "bicubic"))}


# --- merges: (value, other) of one shape ------------------------------------------------------------------------------

KERAS.plain("merge", ANY, "Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")


@layer("Concatenate", "merge", *ANY)
def concatenate(rng: Random, shape: Shape) -> Arguments:
    return {"axis": rng.choice((-1, *range(1, len(shape) + 1)))}


@layer("Dot", "merge", 1, 2)
def dot(rng: Random, shape: Shape) -> Arguments:
    axis = rng.choice(range(1, len(shape) + 1))
    return {"axes": axis, "normalize": rng.choice((False, True)) and shape[axis - 1] > 1}


@layer("MultiHeadAttention", "merge", 2)
def multi_head_attention(rng: Random, shape: Shape) -> Arguments:
    """Called as (query, value, key) = (value, other, value).

    No `key_dim` of 1: Keras 3.15.1 then adds a bias (heads, 1) along the tokens if there are as many of them.
    """
    return {
        "num_heads": rng.choice((1, 2, 3)),
        "key_dim": rng.choice((4, 16)),
        "value_dim": rng.choice((None, 2)),
        "use_bias": rng.choice((True, False)),
        "dropout": rng.choice((0.0, 0.1)),
        "output_shape": rng.choice((None, 3)),
        "use_causal_mask": rng.choice((False, True)),
    }


@layer("GroupQueryAttention", "merge", 2)
def group_query_attention(rng: Random, shape: Shape) -> Arguments:
    heads, groups = rng.choice(((4, 2), (2, 1), (2, 2)))
    arguments = {"head_dim": rng.choice((4, 16)), "num_query_heads": heads, "num_key_value_heads": groups}
    return {**arguments, "use_bias": rng.choice((True, False)), "use_causal_mask": rng.choice((False, True))}


@layer("Attention", "merge", 2)
def attention(rng: Random, shape: Shape) -> Arguments:
    arguments = {"use_scale": rng.choice((True, False)), "score_mode": rng.choice(("dot", "concat"))}
    return {**arguments, "use_causal_mask": rng.choice((False, True))}


@layer("AdditiveAttention", "merge", 2)
def additive_attention(rng: Random, shape: Shape) -> Arguments:
    return {"use_scale": rng.choice((True, False)), "use_causal_mask": rng.choice((False, True))}
