"""Networks small enough for a solver: random sequences of layers, rectifier networks, and a trained classifier.

They hold for inputs in [-1, 1], which is the box that converters to `optimization` take by default.
"""

from __future__ import annotations

from math import prod
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.cases.spec import ModelSpec, Node
from parity.cases.torch_layers import TORCH
from parity.cases.vocabulary import Arguments
from parity.cases.weights import fill

if TYPE_CHECKING:
    import torch

LAYERS = (
    "Linear", "Conv2d", "AvgPool2d", "MaxPool2d", "Flatten", "GELU", "LayerNorm", "LeakyReLU", "ReLU", "Sigmoid",
    "Softmax", "Softplus", "Tanh", "BatchNorm1d", "BatchNorm2d", "Dropout", "ELU", "SiLU", "Hardtanh", "ReLU6", "Add",
    "Concatenate", "Conv1d", "MaxPool1d", "AvgPool1d", "AdaptiveAvgPool2d", "ZeroPad2d", "Multiply"
)  # fmt: skip
"""What converters to `optimization` are asked to know."""
SMOOTH = ("GELU", "Sigmoid", "Softplus", "Tanh", "SiLU", "Softmax", "LayerNorm")
PIECEWISE = ("ReLU", "LeakyReLU", "Hardtanh", "ReLU6")
LARGEST = 12
"""Elements of a value that meets an activation: each may cost a binary."""
HIDDEN, PIXELS, CLASSES = 12, 64, 10
RADIUS = 0.1
"""How far a pixel of the classifier's image may move, within [0, 1]."""


def append(spec: ModelSpec, name: str, arguments: Arguments, *more: int) -> ModelSpec:
    """The spec with one more layer on its newest value (and on older ones)."""
    inputs = (spec.values - 1, *more)
    shape = TORCH.infer_shape(name, arguments, [spec.shape_of(value) for value in inputs])
    return ModelSpec(spec.input_shapes, (*spec.nodes, Node(name, arguments, inputs, shape)))


def sequential(rng: Random, seed: int, number: int) -> ModelSpec:
    """Linear layers, or a convolution first, with any activations, normalizations and a residual between."""
    return _grow(rng, (*SMOOTH, *PIECEWISE, "ELU"), ("BatchNorm1d", "LayerNorm", "Dropout"))


def rectifier(rng: Random, seed: int, number: int) -> ModelSpec:
    """The same of piecewise linear layers: exact formulations of them are to agree."""
    return _grow(rng, PIECEWISE, ("BatchNorm1d", "Dropout"))


def _grow(rng: Random, activations: tuple[str, ...], between: tuple[str, ...]) -> ModelSpec:
    spec = _convolution(rng, activations) if rng.random() < 0.3 else ModelSpec(((rng.randint(2, 4),),), ())
    for _ in range(rng.randint(1, 2)):
        width = rng.randint(3, 8)
        spec = append(spec, "Linear", _linear(rng, spec, width))
        if rng.random() < 0.4:
            spec = _one(rng, spec, rng.choice(between))
        start = spec.values - 1
        spec = _one(rng, spec, rng.choice(activations))
        if rng.random() < 0.3:
            name, arguments = rng.choice((("Add", {}), ("Concatenate", {"axis": 1})))
            spec = append(spec, name, arguments, start)
    return append(spec, "Linear", _linear(rng, spec, rng.randint(1, 3)))


def _convolution(rng: Random, activations: tuple[str, ...]) -> ModelSpec:
    spec = ModelSpec(((1, 3, 3),), ())
    spec = append(spec, "Conv2d", {"in_channels": 1, "out_channels": rng.randint(1, 2), "kernel_size": 2,
                                   "bias": rng.choice((True, False))})  # fmt: skip
    if rng.random() < 0.3:
        spec = append(spec, "BatchNorm2d", {"num_features": spec.output_shape[0]})
    spec = _one(rng, spec, rng.choice(activations))
    pool = rng.choice(("MaxPool2d", "AvgPool2d", ""))
    if pool:
        spec = append(spec, pool, {"kernel_size": 2, "stride": 1, "padding": rng.choice((0, 1))})
    if prod(spec.output_shape) > LARGEST:
        spec = append(spec, "AvgPool2d", {"kernel_size": 2})
    return append(spec, "Flatten", {})


def _one(rng: Random, spec: ModelSpec, name: str) -> ModelSpec:
    arguments = TORCH[name].draw(rng, spec.output_shape)
    return spec if arguments is None else append(spec, name, arguments)


def _linear(rng: Random, spec: ModelSpec, width: int) -> Arguments:
    bias = rng.choice((True, True, False))
    return {"in_features": prod(spec.output_shape), "out_features": width, "bias": bias}


PERCEPTRONS: tuple[tuple[str, Arguments, bool], ...] = (
    ("ReLU", {}, True),
    ("ReLU", {}, False),
    ("Sigmoid", {}, True),
    ("Tanh", {}, True),
    ("Softplus", {}, True),
    ("Softplus", {"beta": 3.0}, True),
    ("LeakyReLU", {"negative_slope": 0.1}, True),
    ("ELU", {}, True),
    ("GELU", {}, True),
    ("GELU", {"approximate": "tanh"}, True),
    ("SiLU", {}, True),
    ("Hardtanh", {}, True),
    ("Softmax", {"dim": 1}, True),
    ("LayerNorm", {"normalized_shape": [4]}, True),
    ("BatchNorm1d", {"num_features": 4}, True),
    ("Dropout", {}, True),
)
"""Activation, its arguments, and whether the linear layers around it have a bias."""


def perceptron(rng: Random, seed: int, number: int) -> ModelSpec:
    """One layer between two linear ones, 2-4-1: the smallest network in which a converter can get that layer wrong."""
    name, arguments, bias = PERCEPTRONS[number]
    spec = append(ModelSpec(((2,),), ()), "Linear", {"in_features": 2, "out_features": 4, "bias": bias})
    return append(append(spec, name, arguments), "Linear", {"in_features": 4, "out_features": 1, "bias": bias})


def steep(rng: Random, seed: int, number: int) -> ModelSpec:
    """A perceptron whose softplus meets numbers in the thousands, where exp overflows."""
    spec = append(ModelSpec(((2,),), ()), "Linear", {"in_features": 2, "out_features": 4})
    return append(append(spec, "Softplus", {}), "Linear", {"in_features": 4, "out_features": 1})


def make_steep(model: Any, seed: object) -> None:
    """Weights from the seed, those of the first layer a few thousand times larger."""
    import torch

    fill(model, seed)
    with torch.no_grad():
        next(model.children()).weight.mul_(4096)


IMAGES: tuple[tuple[tuple[str, Arguments], ...], ...] = (
    (("Conv2d", {"in_channels": 1, "out_channels": 2, "kernel_size": 2}), ("ReLU", {})),
    (("Conv2d", {"in_channels": 1, "out_channels": 1, "kernel_size": 2, "bias": False}), ("ReLU", {})),
    (("MaxPool2d", {"kernel_size": 2, "padding": 1}),),
    (("AvgPool2d", {"kernel_size": 2, "stride": 1}),),
)  # fmt: skip


def image(rng: Random, seed: int, number: int) -> ModelSpec:
    """The same for layers of images: 3 by 3 pixels, the layer, flattened, and a linear layer."""
    spec = ModelSpec(((1, 3, 3),), ())
    for name, arguments in (*IMAGES[number], ("Flatten", {})):
        spec = append(spec, name, arguments)
    return append(spec, "Linear", {"in_features": prod(spec.output_shape), "out_features": 1})


def surrogate(rng: Random, seed: int, number: int) -> ModelSpec:
    """The two networks that formulations are timed on: rectifiers and tanh, 2-8-8-1."""
    activation = ("ReLU", "Tanh")[number]
    spec = ModelSpec(((2,),), ())
    for width in (8, 8):
        spec = append(spec, "Linear", {"in_features": spec.output_shape[0], "out_features": width})
        spec = append(spec, activation, {})
    return append(spec, "Linear", {"in_features": 8, "out_features": 1})


def digits(rng: Random, seed: int, number: int) -> ModelSpec:
    """A perturbation in [-1, 1] of every pixel of one image ↦ how much its own class wins over each of the others."""
    spec = ModelSpec(((PIXELS,),), ())
    for width in (PIXELS, HIDDEN):
        spec = append(spec, "Linear", {"in_features": PIXELS, "out_features": width})
    spec = append(spec, "ReLU", {})
    spec = append(spec, "Linear", {"in_features": HIDDEN, "out_features": CLASSES})
    return append(spec, "Linear", {"in_features": CLASSES, "out_features": CLASSES - 1, "bias": False})


def train_digits(model: Any, seed: object, epochs: int = 150) -> float:
    """Train the classifier in `digits`' model on scikit-learn's digits, in place; gives its accuracy on held-out ones.

    The image is the held-out one that `seed` ends with. Deterministic for one machine and versions of the packages.
    """
    import torch

    from parity.cases.digits import load

    images, classes = load()
    x, labels = torch.from_numpy(images.reshape(-1, PIXELS)), torch.from_numpy(classes).long()
    fill(model, seed)
    perturb, hidden, _, output, margins = model.children()
    classifier = torch.nn.Sequential(hidden, torch.nn.ReLU(), output)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-2, weight_decay=1e-4)
        for _ in range(epochs):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(classifier(x[:1400]), labels[:1400]).backward()
            optimizer.step()
    for parameter in classifier.parameters():
        parameter.grad = None
    with torch.no_grad():
        scores = classifier(x[1400:])
        image = int(str(seed).rpartition("-")[2] or 0)
        _aim(perturb, margins, x[1400 + image], int(scores[image].argmax()))
        return float((scores.argmax(1) == labels[1400:]).float().mean())


def _aim(perturb: Any, margins: Any, image: torch.Tensor, winner: int) -> None:
    """Make the first layer the perturbed image, within [0, 1], and the last one the winner's lead over the others."""
    low, high = (image - RADIUS).clamp(min=0), (image + RADIUS).clamp(max=1)
    perturb.weight.copy_(((high - low) / 2).diag())
    perturb.bias.copy_((high + low) / 2)
    others = [number for number in range(CLASSES) if number != winner]
    unit = np.eye(CLASSES)
    margins.weight.copy_(margins.weight.new_tensor(unit[winner] - unit[others]))
