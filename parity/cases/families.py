"""Families of cases: every layer by its own name, and the kinds of models that a vocabulary's source is known for.

For every source: `dag` (random graphs). For torch: `recipe` (the networks of a well-known PyTorch-to-CasADi recipe),
`network` (the networks that speed is measured on), `pendulum` (a dynamics model trained on the spot), `vocabulary`
(each layer once) and the convolutional networks of `parity.cases.cnn`; for solvers, of `parity.cases.embedded`,
`perceptron`, `steep`, `image`, `sequential`, `rectifier`, `surrogate` (the networks that formulations are timed on) and
`digits` (a classifier trained on the spot). For Keras: `network` (among them that of a well-known Keras-to-PyTorch
recipe), `digits` (a classifier of handwritten digits, trained on the spot) and `application` (of `keras.applications`,
with random weights).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

from parity.cases import cnn, embedded
from parity.cases.generate import generate, generate_layer
from parity.cases.keras_layers import APPLICATIONS, KERAS
from parity.cases.spec import ModelSpec, Node, Shape
from parity.cases.torch_layers import TORCH
from parity.cases.vocabulary import Arguments, Layer, Vocabulary

VOCABULARIES = {"torch": TORCH, "keras": KERAS}
LAYERS = (*TORCH,)
LAYER_CASES = {"torch": 3, "keras": 2}
"""Keras' layers have more options, but a case of theirs takes several times longer."""
NETWORK_CASES = 3


@dataclass(frozen=True)
class Family:
    """Cases of one kind. `draw(rng, seed, number)` gives a spec; `initialise(model, seed)` gives its model weights."""

    name: str
    count: int
    """How many cases a run takes, unless the user says how many."""
    draw: Callable[[Random, int, int], ModelSpec]
    initialise: Callable[[Any, object], object] | None = None
    random: bool = False
    """The user's `--parity-cases` sets how many."""


@lru_cache
def families(source: str = "torch") -> dict[str, Any]:
    """The families of a source representation by name, layers last: `Family`s, or for ocp `OcpFamily`s."""
    if source == "ocp":
        from parity.cases.ocp_families import OCP_FAMILIES

        return OCP_FAMILIES
    vocabulary = VOCABULARIES[source]
    known = [
        *OWN[source],
        Family("dag", 50, lambda rng, seed, number: generate(rng, vocabulary), random=True),
        *(_layer_family(vocabulary, layer) for layer in vocabulary),
    ]
    return {family.name: family for family in known}


def _layer_family(vocabulary: Vocabulary, layer: Layer) -> Family:
    def draw(rng: Random, seed: int, number: int) -> ModelSpec:
        return generate_layer(rng, vocabulary, layer, seed, number)

    return Family(layer.name, LAYER_CASES[vocabulary.source], draw)


def layer_families(source: str = "torch") -> tuple[str, ...]:
    return tuple(layer.name for layer in VOCABULARIES.get(source, ()))


def _of_vocabulary(rng: Random, seed: int, number: int) -> ModelSpec:
    return generate_layer(rng, TORCH, LAYERS[number], seed, 0)


def _network_family(name: str) -> Family:
    count, draw = cnn.FAMILIES[name]
    return Family(name, count or NETWORK_CASES, lambda rng, seed, number: draw(rng, number), random=count is None)


def _chain(vocabulary: Vocabulary, shape: Shape, *layers: tuple[str, Arguments]) -> ModelSpec:
    """A sequential spec."""
    spec = ModelSpec((shape,), ())
    for name, arguments in layers:
        shape = vocabulary.infer_shape(name, arguments, [shape])
        spec = ModelSpec(spec.input_shapes, (*spec.nodes, Node(name, arguments, (spec.values - 1,), shape)))
    return spec


def _plain(name: str) -> tuple[str, Arguments]:
    return name, {}


def _linear(inputs: int, outputs: int) -> tuple[str, Arguments]:
    return "Linear", {"in_features": inputs, "out_features": outputs}


def _recipe(rng: Random, seed: int, number: int) -> ModelSpec:
    """Linear(2, 1); the same with ReLU; the same again, whose Jacobian the recipe takes (every case's is checked)."""
    return _chain(TORCH, (2,), _linear(2, 1), *([("ReLU", {})] if number == 1 else []))


def _network(rng: Random, seed: int, number: int) -> ModelSpec:
    tanh, relu, gelu = _plain("Tanh"), _plain("ReLU"), _plain("GELU")
    norm = ("LayerNorm", {"normalized_shape": [64]})
    convolution = {"in_channels": 1, "out_channels": 8, "kernel_size": 3}
    networks: tuple[tuple[Any, ...], ...] = (
        ((2,), _linear(2, 32), tanh, _linear(32, 32), tanh, _linear(32, 1)),
        ((4,), _linear(4, 64), norm, gelu, _linear(64, 64), norm, gelu, _linear(64, 64), norm, gelu, _linear(64, 4)),
        ((1, 16, 16), ("Conv2d", convolution), relu, _plain("Flatten"), _linear(8 * 14 * 14, 10)),
    )
    shape, *layers = networks[number]
    return _chain(TORCH, shape, *layers)


def _pendulum(rng: Random, seed: int, number: int) -> ModelSpec:
    tanh = _plain("Tanh")
    return _chain(TORCH, (3,), _linear(3, 64), tanh, _linear(64, 64), tanh, _linear(64, 2))


def _train_pendulum(model: Any, seed: object) -> None:
    from parity.cases.pendulum import train

    train(model, seed)


def _keras_network(rng: Random, seed: int, number: int) -> ModelSpec:
    """The network of a well-known Keras-to-PyTorch recipe; a small perceptron; a recurrent network."""
    same = {"kernel_size": 3, "padding": "same", "activation": "relu"}
    pool, flatten = ("MaxPooling2D", {"pool_size": 2}), _plain("Flatten")
    networks: tuple[tuple[Any, ...], ...] = (
        ((28, 28, 1), ("Conv2D", {"filters": 32, **same}), pool, ("Conv2D", {"filters": 64, **same}), pool, flatten,
         _dense(10, "softmax")),
        ((4,), _dense(64, "relu"), _dense(64, "relu"), _dense(4)),
        ((12, 6), ("LSTM", {"units": 16, "return_sequences": True}), ("GRU", {"units": 16}), _dense(3)),
    )  # fmt: skip
    shape, *layers = networks[number]
    return _chain(KERAS, shape, *layers)


def _dense(units: int, activation: str | None = None) -> tuple[str, Arguments]:
    return "Dense", {"units": units, "activation": activation}


def _digits(rng: Random, seed: int, number: int) -> ModelSpec:
    norm, relu = ("BatchNormalization", {"momentum": 0.9}), _plain("ReLU")
    first, second = ("Conv2D", {"filters": 8, "kernel_size": 3, "padding": "same"}), ("Conv2D", {"filters": 16,
                     "kernel_size": 3, "strides": 2, "padding": "same"})  # fmt: skip
    dropout = ("Dropout", {"rate": 0.2})
    return _chain(KERAS, (8, 8, 1), first, norm, relu, second, norm, relu, _plain("Flatten"), dropout, _dense(10))


def _train_digits(model: Any, seed: object) -> None:
    from parity.cases.digits import train

    train(model, seed)


def _application(rng: Random, seed: int, number: int) -> ModelSpec:
    node = Node(APPLICATIONS[number], {"classes": 10}, (0,), (10,))
    return ModelSpec(((48, 56, 3),), (node,))


OWN = {
    "torch": (
        Family("recipe", 3, _recipe),
        Family("network", 3, _network),
        Family("pendulum", 1, _pendulum, initialise=_train_pendulum),
        Family("vocabulary", len(LAYERS), _of_vocabulary),
        *(_network_family(name) for name in cnn.FAMILIES),
        Family("sequential", 8, embedded.sequential, random=True),
        Family("rectifier", 5, embedded.rectifier, random=True),
        Family("perceptron", len(embedded.PERCEPTRONS), embedded.perceptron),
        Family("steep", 1, embedded.steep, initialise=embedded.make_steep),
        Family("image", len(embedded.IMAGES), embedded.image),
        Family("surrogate", 2, embedded.surrogate),
        Family("digits", 1, embedded.digits, initialise=embedded.train_digits),
    ),
    "keras": (
        Family("network", 3, _keras_network),
        Family("digits", 1, _digits, initialise=_train_digits),
        Family("application", 3, _application),
    ),
}
"""Families that one source alone has."""
