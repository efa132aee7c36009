"""Whole models in Keras' older `.h5` files: weights under the layers' own names, those of nested ones in one list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from parity.converters.keras_torch.archive import RENAMED, Config, is_model, snake_case
from parity.converters.keras_torch.layer import Weights
from parity.errors import ParityError

SUBLAYERS = {
    "MultiHeadAttention": ("query_dense", "key_dense", "value_dense", "output_dense"),
    "GroupQueryAttention": ("query_dense", "key_dense", "value_dense", "output_dense"),
}


def read_h5(path: Path) -> tuple[Config, Weights]:
    """Configuration and weights, brought into the form of a `.keras` archive. Raises ParityError."""
    import h5py

    with h5py.File(path, "r") as file:
        text = file.attrs.get("model_config")
        if text is None:
            raise ParityError(f"{path} holds weights without a model: save the whole model, model.save('model.keras')")
        config = json.loads(text)
        groups = file["model_weights"]
        arrays = {name: _arrays(group) for name, group in groups.items()}
    return config, _model(config, arrays)


def _arrays(group: Any) -> list[np.ndarray]:
    return [np.asarray(group[name]) for name in group.attrs.get("weight_names", [])]


def _model(config: Config, arrays: dict[str, list[np.ndarray]]) -> Weights:
    children = {}
    for layer, key in _keys(config):
        name = layer["config"].get("name") or layer.get("name", "")
        children[key] = _layer(layer, iter(arrays.get(name, [])), len(arrays.get(name, [])))
    return Weights(children={"layers": Weights(children=children)})


def _keys(config: Config) -> Iterator[tuple[Config, str]]:
    """The layers of a model with the names under which an archive has them."""
    counts: dict[str, int] = {}
    for layer in config["config"]["layers"]:
        key = snake_case(RENAMED.get(layer["class_name"], layer["class_name"]))
        counts[key] = counts.get(key, -1) + 1
        yield layer, f"{key}_{counts[key]}" if counts[key] else key


def _layer(layer: Config, arrays: Iterator[np.ndarray], count: int) -> Weights:
    """The weights of one layer out of a list that has `count` left for it."""
    name = layer["class_name"]
    if is_model(layer):
        raise ParityError(f"model {layer['config']['name']!r} is nested in an .h5 file: save it as .keras")
    variables = tuple(arrays)
    if name == "Bidirectional":
        half = count // 2
        parts = {"forward_layer": variables[:half], "backward_layer": variables[half:]}
        return Weights(children={key: Weights(children={"cell": Weights(part)}) for key, part in parts.items()})
    if name == "TimeDistributed":
        return Weights(children={"layer": Weights(variables)})
    if name in ("SimpleRNN", "LSTM", "GRU"):
        return Weights(children={"cell": Weights(variables)})
    if name in SUBLAYERS:
        each = 2 if layer["config"].get("use_bias", True) else 1
        lists = [variables[index : index + each] for index in range(0, count, each)]
        named = zip(SUBLAYERS[name], lists, strict=False)
        return Weights(children={key: Weights(part) for key, part in named})
    return Weights(variables)
