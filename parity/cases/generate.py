"""Random model specs over a vocabulary. Every spec is valid by construction: shapes are known as it grows.

`generate` takes a `random.Random`. The suites pass a seeded one; fuzzing passes Hypothesis' own
(`strategies.randoms(use_true_random=False)`), so that shrinking and the example database come from Hypothesis.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from random import Random
from typing import TypeVar

from parity.cases.spec import ModelSpec, Node
from parity.cases.vocabulary import KINDS, Layer, Vocabulary

Option = TypeVar("Option")
LARGEST_VALUE = 256
"""Elements of the largest tensor in a generated model: derivatives of every output by every input stay cheap."""
LARGEST_OUTPUT = 48


def generate(rng: Random, vocabulary: Vocabulary, size: int = 8) -> ModelSpec:
    """A random model of 1 to about `size` layers with branches, residuals and concatenations."""
    spec = ModelSpec((vocabulary.draw_shape(rng, rng.choice((1, 2, 3))),), ())
    for _ in range(rng.randint(1, size)):
        spec = _grow(rng, vocabulary, spec)
    return _join(rng, vocabulary, spec)


def generate_layer(rng: Random, vocabulary: Vocabulary, layer: Layer, seed: int, number: int) -> ModelSpec:
    """The `number`-th model of one layer; a merging layer gets the input and one layer of it.

    Its arguments are stratified, its shapes are random. Raises RuntimeError if none of many shapes fits them.
    """
    rank = layer.ranks[number % len(layer.ranks)]
    for _ in range(100):
        spec = ModelSpec((vocabulary.draw_shape(rng, rank),), ())
        arguments = Stratified(f"{layer.name}-{seed}", number)
        if layer.arity == 2:
            branch = _append(rng, vocabulary, spec, vocabulary["Tanh"], (0,))
            grown = branch and _append(arguments, vocabulary, branch, layer, (1, 0), 2 * LARGEST_VALUE)
        else:
            grown = _append(arguments, vocabulary, spec, layer, (0,), 2 * LARGEST_VALUE)
        if grown is not None:
            return grown
    raise RuntimeError(f"no arguments of {layer.name} fit any of 100 random shapes: mend its vocabulary entry")


class Stratified(Random):
    """`choice` that walks through all its options as `number` grows, in an order that the seed shuffles.

    A few cases of one layer thus meet every option of every argument, whatever the seed.
    """

    def __init__(self, seed: str, number: int) -> None:
        super().__init__(f"{seed}/{number}")
        self._seed, self._number, self._calls = seed, number, 0

    def choice(self, options: Sequence[Option]) -> Option:  # type: ignore[override]
        self._calls += 1
        block, place = divmod(self._number, len(options))
        order = list(range(len(options)))
        Random(f"{self._seed}/{self._calls}/{block}").shuffle(order)
        return options[order[place]]


def _grow(rng: Random, vocabulary: Vocabulary, spec: ModelSpec) -> ModelSpec:
    """One more node, usually on the newest value (depth), sometimes on an older one (a branch)."""
    value = spec.values - 1 if rng.random() < 0.75 else rng.randrange(spec.values)
    kinds = [*KINDS, "activation"]  # nearly every layer of a real network has one behind it
    rng.shuffle(kinds)
    for kind in kinds:
        fitting = [layer for layer in vocabulary.of_kind(kind) if len(spec.shape_of(value)) in layer.ranks]
        rng.shuffle(fitting)
        for layer in fitting:
            inputs = (value,) if layer.arity == 1 else _partners(rng, spec, value)
            grown = inputs and _append(rng, vocabulary, spec, layer, inputs)
            if grown:
                return grown
    return spec


def _partners(rng: Random, spec: ModelSpec, value: int) -> tuple[int, int] | None:
    """The value and another of its shape: a residual when the other is an ancestor."""
    same = [other for other in range(spec.values) if other != value and spec.shape_of(other) == spec.shape_of(value)]
    return (value, rng.choice(same)) if same else None


def _append(
    rng: Random,
    vocabulary: Vocabulary,
    spec: ModelSpec,
    layer: Layer,
    inputs: Sequence[int],
    largest: int = LARGEST_VALUE,
) -> ModelSpec | None:
    arguments = layer.draw(rng, spec.shape_of(inputs[0]))
    if arguments is None:
        return None
    shape = vocabulary.infer_shape(layer.name, arguments, [spec.shape_of(value) for value in inputs])
    if prod(shape) > largest:
        return None
    return ModelSpec(spec.input_shapes, (*spec.nodes, Node(layer.name, arguments, tuple(inputs), shape)))


def _join(rng: Random, vocabulary: Vocabulary, spec: ModelSpec) -> ModelSpec:
    """Make every branch part of one output: flatten what nobody consumes, concatenate, and keep the output small."""
    consumed = {value for node in spec.nodes for value in node.inputs}
    loose = [value for value in range(len(spec.input_shapes), spec.values) if value not in consumed]
    if len(loose) > 1:
        flat = []
        for value in loose:
            if len(spec.shape_of(value)) > 1:
                spec = _must(_append(rng, vocabulary, spec, vocabulary["Flatten"], (value,)))
                value = spec.values - 1
            flat.append(value)
        joined = flat[0]
        for value in flat[1:]:
            shape = (prod(spec.shape_of(joined)) + prod(spec.shape_of(value)),)
            node = Node("Concatenate", {"axis": 1}, (joined, value), shape)
            spec = ModelSpec(spec.input_shapes, (*spec.nodes, node))
            joined = spec.values - 1
    if prod(spec.output_shape) > LARGEST_OUTPUT:
        if len(spec.output_shape) > 1:
            spec = _must(_append(rng, vocabulary, spec, vocabulary["Flatten"], (spec.values - 1,)))
        spec = _must(_append(rng, vocabulary, spec, vocabulary[vocabulary.dense], (spec.values - 1,)))
    return spec


def _must(spec: ModelSpec | None) -> ModelSpec:
    assert spec is not None, "flattening and a linear head always fit"
    return spec
