"""Where masks come from and how they travel, as in Keras: layer by layer, beside the tensor.

Keras drops a mask at a layer that does not support masking (a convolution, a Reshape, …), and so do we.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx

from parity.converters.keras_torch.layer import Layer
from parity.converters.keras_torch.merges import concatenated_mask

UNTRACKED = object()
"""The mask of a nested model's output: nothing may need it."""

PASSING = frozenset(
    [
        "Activation",
        "ActivityRegularization",
        "AlphaDropout",
        "BatchNormalization",
        "Dense",
        "Dropout",
        "ELU",
        "GaussianDropout",
        "GaussianNoise",
        "GroupNormalization",
        "Identity",
        "LayerNormalization",
        "LeakyReLU",
        "MultiHeadAttention",
        "GroupQueryAttention",
        "Normalization",
        "PReLU",
        "ReLU",
        "Rescaling",
        "Softmax",
        "SpatialDropout1D",
        "SpatialDropout2D",
        "SpatialDropout3D",
        "TimeDistributed",
        "UnitNormalization",
    ]
)
MERGING = frozenset(["Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract"])
RECURRENT = frozenset(["SimpleRNN", "LSTM", "GRU", "Bidirectional"])


def mask_of_output(graph: torch.fx.Graph, layer: Layer, inputs: Any, masks: Any, count: int) -> list[Any]:
    """The masks of a layer's `count` outputs: nodes of the graph, or None. `inputs` is its first argument."""
    name = layer.class_name
    if name == "Embedding" and layer.config.get("mask_zero"):
        return [graph.call_function(torch.ne, (inputs, 0))]
    if name == "Masking":
        return [
            graph.call_function(torch.any, (graph.call_function(torch.ne, (inputs, layer.config["mask_value"])), -1))
        ]
    known = masks if isinstance(masks, list | tuple) else [masks]
    if all(mask is None for mask in known):
        return [None] * count
    if any(mask is UNTRACKED for mask in known):
        return [UNTRACKED] * count
    if name in RECURRENT:
        return _recurrent(layer, known[0], count)
    if name in PASSING or name in ("Attention", "AdditiveAttention"):
        return [known[0]] + [None] * (count - 1)
    if name in MERGING and all(mask is not None for mask in known):
        merged = known[0]
        for mask in known[1:]:
            merged = graph.call_function(torch.logical_or, (merged, mask))
        return [merged]
    if name == "Concatenate":
        return [graph.call_function(concatenated_mask, (list(inputs), list(known), layer.config.get("axis", -1)))]
    return [None] * count


def _recurrent(layer: Layer, mask: Any, count: int) -> list[Any]:
    config = layer.config["layer"]["config"] if layer.class_name == "Bidirectional" else layer.config
    kept = mask if config.get("return_sequences") else None
    second = kept if layer.class_name == "Bidirectional" and layer.config.get("merge_mode") is None else None
    return [kept, second, *[None] * count][:count]
