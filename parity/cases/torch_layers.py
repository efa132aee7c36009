"""The torch vocabulary: one entry per layer, and how a spec becomes a `torch.nn.Module` with its weights.

An entry draws a layer's arguments for an input shape, with `rng.choice` only: the suites stratify those choices, so
that a handful of cases of one layer meets every option. torch is imported when a model is built, not before.
"""

from __future__ import annotations

from functools import cache
from math import prod
from random import Random
from typing import TYPE_CHECKING, Any

from parity.cases.spec import ModelSpec, Shape
from parity.cases.vocabulary import Arguments, Vocabulary
from parity.cases.weights import fill

if TYPE_CHECKING:
    import torch


def build(spec: ModelSpec) -> torch.fx.GraphModule:
    """The spec as a module in eval mode, float32, with torch's own initial weights (see `parity.cases.weights`)."""
    import torch

    graph, modules, values = torch.fx.Graph(), {}, {}
    inputs = len(spec.input_shapes)
    for value in range(inputs):
        values[value] = graph.placeholder("x" if inputs == 1 else f"x{value}")
    for value, node in enumerate(spec.nodes, start=inputs):
        modules[spec.name_of(value)] = make_layer(node.layer, node.arguments)
        values[value] = graph.call_module(spec.name_of(value), tuple(values[source] for source in node.inputs))
    graph.output(values[spec.values - 1])
    return torch.fx.GraphModule(modules, graph, class_name="Model").eval()


def make_layer(name: str, arguments: Any) -> torch.nn.Module:
    """The module of that name, from `torch.nn` or from `parity.cases.torch_modules`."""
    import torch

    from parity.cases import torch_modules

    return (getattr(torch_modules, name, None) or getattr(torch.nn, name))(**arguments)


def infer_shape(name: str, arguments: Arguments, shapes: list[Shape]) -> Shape:
    """Output shape without the batch axis, by torch itself on the meta device."""
    return _infer_shape(name, repr(arguments), tuple(shapes))


@cache
def _infer_shape(name: str, arguments: str, shapes: tuple[Shape, ...]) -> Shape:
    import ast

    import torch

    with torch.device("meta"), torch.no_grad():
        layer = make_layer(name, ast.literal_eval(arguments)).eval()
        return tuple(layer(*(torch.empty(2, *shape) for shape in shapes)).shape[1:])


TORCH = Vocabulary("torch", infer_shape, build, fill)
layer = TORCH.layer

# --- contractions -----------------------------------------------------------------------------------------------------


@layer("Linear", "contraction", 1, 2)
def linear(rng: Random, shape: Shape) -> Arguments:
    return {"in_features": shape[-1], "out_features": rng.choice(range(1, 9)), "bias": rng.choice((True, True, False))}


def _convolution(rng: Random, shape: Shape) -> Arguments | None:
    channels, spatial = shape[0], shape[1:]
    groups = rng.choice([count for count in (1, 2, channels) if channels % count == 0])
    mode = rng.choice(("zeros", "reflect", "replicate", "circular"))
    dilation = rng.choice((1, 2))
    padding: int | str = rng.choice((0, 1, "same"))
    stride = 1 if padding == "same" else rng.choice((1, 2))
    border = 0 if padding == "same" else 2 * int(padding)
    longest = [(size + border - 1) // dilation + 1 for size in spatial]
    kernel = [rng.choice(range(1, min(3, most) + 1)) for most in longest]
    if padding == "same" and any(dilation * (length - 1) >= size for length, size in zip(kernel, spatial, strict=True)):
        return None  # reflecting by as much as the axis is long is not defined
    return {
        "in_channels": channels,
        "out_channels": groups * rng.choice((1, 2)),
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": rng.choice((True, False)),
        "padding_mode": mode if padding != 0 and min(spatial) > 1 else "zeros",
    }


layer("Conv1d", "contraction", 2)(_convolution)
layer("Conv2d", "contraction", 3)(_convolution)


@layer("ConvTranspose2d", "contraction", 3)
def transposed_convolution(rng: Random, shape: Shape) -> Arguments | None:
    channels = shape[0]
    groups = rng.choice([count for count in (1, channels) if channels % count == 0])
    stride, dilation = rng.choice((1, 2)), rng.choice((1, 2))
    kernel = rng.choice((1, 2, 3))
    padding = rng.choice((0, 1))
    if any((size - 1) * stride + dilation * (kernel - 1) - 2 * padding < 0 for size in shape[1:]):
        return None
    return {
        "in_channels": channels,
        "out_channels": groups * rng.choice((1, 2)),
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "output_padding": rng.choice(range(max(stride, dilation))),
        "groups": groups,
        "bias": rng.choice((True, False)),
        "dilation": dilation,
    }


@layer("AttentionBlock", "contraction", 2)
def attention(rng: Random, shape: Shape) -> Arguments:
    width = shape[-1]
    return {"width": width, "heads": rng.choice([heads for heads in (1, 2, 3) if width % heads == 0])}


# --- pooling ----------------------------------------------------------------------------------------------------------


def _window(rng: Random, spatial: Shape, dilation: int = 1) -> Arguments | None:
    kernel = rng.choice((2, 3))
    padding = rng.choice(range(kernel // 2 + 1))
    if any(size + 2 * padding < dilation * (kernel - 1) + 1 for size in spatial):
        return None
    ceil_mode = rng.choice((True, False))
    return {"kernel_size": kernel, "stride": rng.choice((1, 2)), "padding": padding, "ceil_mode": ceil_mode}


def _max_pool(rng: Random, shape: Shape) -> Arguments | None:
    dilation = rng.choice((1, 2))
    window = _window(rng, shape[1:], dilation)
    if window and any(size < dilation * (window["kernel_size"] - 1) + 1 for size in shape[1:]):
        return None  # some window would hold nothing but padding
    return window and {**window, "dilation": dilation}


def _average_pool(rng: Random, shape: Shape) -> Arguments | None:
    count_include_pad = rng.choice((True, False))
    window = _window(rng, shape[1:])
    return window and {**window, "count_include_pad": count_include_pad}


layer("MaxPool1d", "pooling", 2)(_max_pool)
layer("MaxPool2d", "pooling", 3)(_max_pool)
layer("AvgPool1d", "pooling", 2)(_average_pool)
layer("AvgPool2d", "pooling", 3)(_average_pool)


@layer("AdaptiveAvgPool2d", "pooling", 3)
def adaptive_average_pool(rng: Random, shape: Shape) -> Arguments:
    return {"output_size": [rng.choice((1, 2, 3)), rng.choice((1, 2, 3))]}


# --- normalization ----------------------------------------------------------------------------------------------------

EPSILONS = (1e-5, 1e-3)


def _batch_norm(rng: Random, shape: Shape) -> Arguments:
    return {"num_features": shape[0], "eps": rng.choice(EPSILONS), "affine": rng.choice((True, True, False))}


layer("BatchNorm1d", "normalization", 1, 2)(_batch_norm)
layer("BatchNorm2d", "normalization", 3)(_batch_norm)


@layer("LayerNorm", "normalization", 1, 2, 3)
def layer_norm(rng: Random, shape: Shape) -> Arguments | None:
    axes = rng.choice(range(1, len(shape) + 1))
    if shape[-axes:] == (1,) * axes:
        return None  # the variance of one element is zero, whatever the input
    return {
        "normalized_shape": list(shape[-axes:]),
        "eps": rng.choice(EPSILONS),
        "elementwise_affine": rng.choice((True, True, False)),
    }


@layer("GroupNorm", "normalization", 2, 3)
def group_norm(rng: Random, shape: Shape) -> Arguments | None:
    groups = rng.choice([count for count in (1, 2, shape[0]) if shape[0] % count == 0])
    if prod(shape) == groups:
        return None  # torch refuses groups of a single element
    return {
        "num_groups": groups,
        "num_channels": shape[0],
        "eps": rng.choice(EPSILONS),
        "affine": rng.choice((True, False)),
    }


@layer("InstanceNorm2d", "normalization", 3)
def instance_norm(rng: Random, shape: Shape) -> Arguments | None:
    if shape[1] * shape[2] == 1:
        return None  # torch refuses a single spatial element
    return {
        "num_features": shape[0],
        "eps": rng.choice(EPSILONS),
        "affine": rng.choice((True, False)),
        "track_running_stats": rng.choice((False, True)),
    }


# --- activations ------------------------------------------------------------------------------------------------------

ANY = (1, 2, 3)

TORCH.plain("activation", ANY, "ReLU", "SELU", "SiLU", "Mish", "Sigmoid", "Tanh", "Softsign", "Hardsigmoid")
TORCH.plain("activation", ANY, "Hardswish", "ReLU6", "LogSigmoid")


@layer("LeakyReLU", "activation", *ANY)
def leaky_relu(rng: Random, shape: Shape) -> Arguments:
    return {"negative_slope": rng.choice((0.01, 0.2))}


@layer("PReLU", "activation", *ANY)
def prelu(rng: Random, shape: Shape) -> Arguments:
    return {"num_parameters": rng.choice((1, shape[0]))}


@layer("ELU", "activation", *ANY)
def elu(rng: Random, shape: Shape) -> Arguments:
    return {"alpha": rng.choice((1.0, 0.7))}


@layer("CELU", "activation", *ANY)
def celu(rng: Random, shape: Shape) -> Arguments:
    return {"alpha": rng.choice((1.0, 0.5))}


@layer("GELU", "activation", *ANY)
def gelu(rng: Random, shape: Shape) -> Arguments:
    return {"approximate": rng.choice(("none", "tanh"))}


@layer("Softplus", "activation", *ANY)
def softplus(rng: Random, shape: Shape) -> Arguments:
    return {"beta": rng.choice((1.0, 3.0)), "threshold": rng.choice((20.0, 2.0))}


@layer("Hardtanh", "activation", *ANY)
def hardtanh(rng: Random, shape: Shape) -> Arguments:
    return {"min_val": rng.choice((-1.0, -0.25)), "max_val": rng.choice((1.0, 0.5))}


@layer("Dropout", "activation", *ANY)
def dropout(rng: Random, shape: Shape) -> Arguments:
    return {"p": rng.choice((0.2, 0.5))}


def _softmax(rng: Random, shape: Shape) -> Arguments | None:
    axes = [axis + 1 for axis, size in enumerate(shape) if size > 1]
    return {"dim": rng.choice(axes)} if axes else None


layer("Softmax", "activation", *ANY)(_softmax)
layer("LogSoftmax", "activation", *ANY)(_softmax)

# --- reshaping --------------------------------------------------------------------------------------------------------

TORCH.plain("reshaping", (2, 3), "Flatten")


@layer("Upsample", "reshaping", 2, 3)
def upsample(rng: Random, shape: Shape) -> Arguments:
    smooth = {2: "linear", 3: "bilinear"}[len(shape)]
    mode = rng.choice(("nearest", smooth, f"{smooth} by corners"))
    size: Arguments = {"scale_factor": 2}
    if rng.choice((True, False)):
        size = {"size": [length + rng.choice((1, 3)) for length in shape[1:]]}
    if mode == "nearest":
        return {**size, "mode": mode}
    return {**size, "mode": smooth, "align_corners": mode != smooth}


@layer("ZeroPad2d", "reshaping", 3)
def zero_pad(rng: Random, shape: Shape) -> Arguments:
    return {"padding": [rng.choice((0, 1, 2)) for _ in range(4)]}


# --- merges: (value, other) of one shape ------------------------------------------------------------------------------

TORCH.plain("merge", ANY, "Add", "Multiply")


@layer("Concatenate", "merge", *ANY)
def concatenate(rng: Random, shape: Shape) -> Arguments:
    return {"axis": rng.choice(range(1, len(shape) + 1))}
