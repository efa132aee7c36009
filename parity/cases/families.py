"""Families of cases: every layer by its own name, and the kinds of models that a vocabulary's source is known for.

For torch: `dag` (random graphs), `recipe` (the networks of a well-known PyTorch-to-CasADi recipe), `network` (the
networks that speed is measured on) and `pendulum` (a dynamics model trained on the spot).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

from parity.cases.generate import generate, generate_layer
from parity.cases.spec import ModelSpec, Node, Shape
from parity.cases.torch_layers import TORCH
from parity.cases.vocabulary import Arguments, Layer, Vocabulary
from parity.cases.weights import fill

VOCABULARIES = {"torch": TORCH}
LAYER_CASES = 3


@dataclass(frozen=True)
class Family:
    """Cases of one kind. `draw(rng, seed, number)` gives a spec; `initialise(model, seed)` gives its model weights."""

    name: str
    count: int
    """How many cases a run takes, unless the user says how many."""
    draw: Callable[[Random, int, int], ModelSpec]
    initialise: Callable[[Any, object], None] = fill
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
        Family("recipe", 3, _recipe),
        Family("network", 3, _network),
        Family("pendulum", 1, _pendulum, initialise=_train_pendulum),
        Family("dag", 50, lambda rng, seed, number: generate(rng, vocabulary), random=True),
    ]
    known += [_layer_family(vocabulary, layer) for layer in vocabulary]
    return {family.name: family for family in known}


def _layer_family(vocabulary: Vocabulary, layer: Layer) -> Family:
    def draw(rng: Random, seed: int, number: int) -> ModelSpec:
        return generate_layer(rng, vocabulary, layer, seed, number)

    return Family(layer.name, LAYER_CASES, draw)


def layer_families(source: str = "torch") -> tuple[str, ...]:
    return tuple(layer.name for layer in VOCABULARIES.get(source, ()))


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
