"""Reads what Keras saves: the configuration of a model and its weights, without importing Keras or TensorFlow.

A `.keras` file is a zip of `config.json` and `model.weights.h5`. In the latter, the layers of a container lie under
`layers/<class in snake case>[_<count>]`, not under their own names, and a layer's variables under `vars/<number>`.
A `.h5` file has the configuration as an attribute and the variables of a layer under its name, in one list.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from parity.converters.keras_torch.layer import Weights
from parity.errors import ParityError

Config = dict[str, Any]
RENAMED = {"GroupQueryAttention": "GroupedQueryAttention"}
"""Layers whose Python class, which names their weights, has another name than the layer."""


def read(model: Any) -> tuple[Config, Weights]:
    """Configuration and weights of a live model, or of a `.keras` or `.h5` file. Raises ParityError."""
    if not isinstance(model, str | Path):
        return _read_live(model)
    path = Path(model)
    if not path.is_file():
        raise ParityError(f"no such file: {path}")
    if zipfile.is_zipfile(path):
        return _read_archive(path)
    import h5py

    if h5py.is_hdf5(path):
        from parity.converters.keras_torch.legacy import read_h5

        return read_h5(path)
    raise ParityError(f"{path} is no Keras model: neither a .keras archive nor an HDF5 file")


def _read_live(model: Any) -> tuple[Config, Weights]:
    """By way of a file: Keras' public interface has no other way to the weights in their saved order."""
    if not hasattr(model, "get_config") or not hasattr(model, "save"):
        raise ParityError(f"{type(model).__name__} is no Keras model: pass a model, or the path of a .keras file")
    if not getattr(model, "built", True):
        raise ParityError(
            f"the model {model.name!r} has no weights yet: call model.build(input_shape), or the model, once"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        return _read_archive(path)


def _read_archive(path: Path) -> tuple[Config, Weights]:
    import h5py

    with zipfile.ZipFile(path) as archive:
        try:
            config = json.loads(archive.read("config.json"))
            stored = archive.read("model.weights.h5")
        except KeyError as error:
            raise ParityError(f"{path} is no Keras 3 archive: {error.args[0]}") from None
    with h5py.File(io.BytesIO(stored), "r") as file:
        return config, _weights(file)


def _weights(group: Any) -> Weights:
    stored = group.get("vars", {})
    variables = tuple(np.asarray(stored[key]) for key in sorted(stored, key=int))
    children = {name: _weights(child) for name, child in group.items() if name != "vars" and hasattr(child, "items")}
    return Weights(variables, children)


def in_saved_order(layers: Iterable[Config], weights: Weights) -> list[tuple[Config, Weights]]:
    """The layers of a container, each with its weights."""
    folder = weights.child("layers")
    seen: Counter[str] = Counter()
    found = []
    for layer in layers:
        class_name: str = layer["class_name"]
        key = snake_case(RENAMED.get(class_name, class_name))
        name = f"{key}_{seen[key]}" if seen[key] else key
        seen[key] += 1
        found.append((layer, folder.child(name)))
    return found


def snake_case(name: str) -> str:
    """The name under which Keras saves a layer of a class: `Conv2DTranspose` gives `conv2d_transpose`."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def is_model(config: Mapping[str, Any]) -> bool:
    """Whether a serialised object is a container of layers that says how they are connected."""
    return "layers" in config.get("config", {}) and config["class_name"] in ("Sequential", "Functional", "Model")
