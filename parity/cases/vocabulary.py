"""A vocabulary: the layers that models are generated from. Imports no framework."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from parity.cases.spec import ModelSpec, Shape

Arguments = dict[str, Any]
Draw = Callable[[Random, Shape], "Arguments | None"]

KINDS = ("contraction", "pooling", "normalization", "activation", "reshaping", "merge")


@dataclass(frozen=True)
class Layer:
    """One entry: a layer's name, the inputs it accepts, and how to draw its arguments."""

    name: str
    kind: str
    ranks: tuple[int, ...]
    """Numbers of axes it accepts, without the batch axis: 1 (C,), 2 (C, L) or (tokens, features), 3 (C, H, W).

    The order is the source's: Keras has channels last."""
    draw: Draw
    """Arguments for an input of that shape, JSON-able, or None where no arguments fit."""

    @property
    def arity(self) -> int:
        """How many values it takes."""
        return 2 if self.kind == "merge" else 1


def channels_first(rng: Random, rank: int) -> Shape:
    """An input's shape without the batch axis; sizes differ by axis, so that swapped axes show."""
    features, channels, *spatial = (rng.choice(range(*limits)) for limits in ((2, 10), (1, 5), (4, 8), (4, 8)))
    return (features,) if rank == 1 else (channels, *spatial[: rank - 1])


class Vocabulary:
    """The layers of one source representation by name, and how a spec over them becomes a model with shapes."""

    def __init__(
        self,
        source: str,
        infer_shape: Callable[[str, Arguments, list[Shape]], Shape],
        build: Callable[[ModelSpec], Any],
        fill: Callable[[Any, object], None],
        draw_shape: Callable[[Random, int], Shape] = channels_first,
        dense: str = "Linear",
    ) -> None:
        self.source = source
        self.infer_shape = infer_shape
        """Output shape of a layer for input shapes, all without the batch axis."""
        self.build = build
        """The spec as a model of the source, float32, with the framework's own initial weights."""
        self.fill = fill
        """Overwrite a model's weights by trained-like ones that follow from a seed, in place."""
        self.draw_shape = draw_shape
        """A random input shape with that number of axes, without the batch axis."""
        self.dense = dense
        """Name of the layer that is a linear map of the last axis."""
        self._layers: dict[str, Layer] = {}

    def layer(self, name: str, kind: str, *ranks: int) -> Callable[[Draw], Draw]:
        """Register the decorated function as the layer's entry: `(rng, shape) -> arguments`."""

        def register(draw: Draw) -> Draw:
            self._layers[name] = Layer(name, kind, ranks, draw)
            return draw

        return register

    def plain(self, kind: str, ranks: tuple[int, ...], *names: str) -> None:
        """Register layers without arguments."""
        for name in names:
            self._layers[name] = Layer(name, kind, ranks, lambda rng, shape: {})

    def __getitem__(self, name: str) -> Layer:
        return self._layers[name]

    def __contains__(self, name: object) -> bool:
        return name in self._layers

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._layers.values())

    def of_kind(self, kind: str) -> list[Layer]:
        return [layer for layer in self if layer.kind == kind]
