"""A model as data: a directed acyclic graph of layers that serialises to JSON and knows every tensor shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One layer applied to earlier values. `shape` is its output's, without the batch axis."""

    layer: str
    arguments: Mapping[str, Any]
    inputs: tuple[int, ...]
    shape: Shape


@dataclass(frozen=True)
class ModelSpec:
    """A model without its weights. Shapes have no batch axis.

    Values are numbered: the inputs first, then one per node. The last value is the output.
    """

    input_shapes: tuple[Shape, ...]
    nodes: tuple[Node, ...]

    def shape_of(self, value: int) -> Shape:
        """Shape of a value, without the batch axis."""
        inputs = len(self.input_shapes)
        return self.input_shapes[value] if value < inputs else self.nodes[value - inputs].shape

    def name_of(self, value: int) -> str:
        """Name of the layer that makes a value: its kind and its place."""
        position = value - len(self.input_shapes)
        return f"{self.nodes[position].layer.lower()}_{position + 1}"

    @property
    def values(self) -> int:
        return len(self.input_shapes) + len(self.nodes)

    @property
    def output_shape(self) -> Shape:
        return self.shape_of(self.values - 1)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in order."""
        return tuple(node.layer for node in self.nodes)

    def to_json(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """The spec that `to_json` wrote; raises ValueError, KeyError or TypeError on anything else."""
        plain = json.loads(text)
        nodes = tuple(
            Node(node["layer"], node["arguments"], tuple(node["inputs"]), tuple(node["shape"]))
            for node in plain["nodes"]
        )
        return cls(tuple(tuple(shape) for shape in plain["input_shapes"]), nodes)
