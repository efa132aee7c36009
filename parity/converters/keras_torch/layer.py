"""What a lowering is given: one Keras layer as data, its configuration and its weights. Imports no Keras."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch

from parity.converters.registry import find_lowering
from parity.errors import Unsupported

Module = TypeVar("Module", bound=torch.nn.Module)
DTYPES = ("float32", "float64")
BOOKKEEPING = ("name", "trainable", "dtype", "initializer", "regularizer", "constraint", "seed", "layers", "layer")
"""Arguments (or their endings) that a message about a layer leaves out."""


@dataclass(frozen=True)
class Weights:
    """The variables of a layer, in the order in which Keras saves them, and those of the layers inside it."""

    variables: tuple[np.ndarray, ...] = ()
    children: Mapping[str, Weights] = field(default_factory=dict)

    def child(self, name: str) -> Weights:
        """Those of a layer inside; a layer without variables may not have been saved at all."""
        return self.children.get(name) or self.children.get(f"_{name}") or Weights()


@dataclass(frozen=True)
class Layer:
    """One Keras layer."""

    class_name: str
    name: str
    config: Mapping[str, Any]
    """The arguments of its constructor, as Keras serialises them."""
    weights: Weights = Weights()
    frozen: bool = False
    """Called with `training=False`, whatever the mode of the model: dropout is off and statistics stay."""

    @property
    def variables(self) -> tuple[np.ndarray, ...]:
        return self.weights.variables

    @property
    def trainable(self) -> bool:
        return bool(self.config.get("trainable", True))

    @property
    def dtype(self) -> str:
        """The precision it computes in; raises Unsupported for mixed and low precision."""
        policy = self.config.get("dtype") or "float32"
        name = policy["config"]["name"] if isinstance(policy, Mapping) else policy
        if name not in DTYPES:
            raise self.refuse(f"dtype {name} is not converted", "build the model in float32 or float64")
        return str(name)

    @property
    def channels_last(self) -> bool:
        return self.config.get("data_format") != "channels_first"

    def inside(self, key: str, serialized: Mapping[str, Any]) -> Layer:
        """The layer that this one wraps: `key` names it among the weights, `serialized` is it in the configuration."""
        config = dict(serialized["config"])
        if not self.trainable:
            config["trainable"] = False
        return Layer(
            serialized["class_name"], config.get("name", key), config, self.weights.child(key), frozen=self.frozen
        )

    def refuse(self, reason: str, remedy: str | None = None) -> Unsupported:
        """The error to raise: it names the layer, its arguments, the reason and what to do."""
        shown = {
            key: value
            for key, value in self.config.items()
            if not key.endswith(BOOKKEEPING) and value is not None and len(repr(value)) < 60
        }
        arguments = ", ".join(f"{key}={value!r}" for key, value in shown.items())
        remedy = remedy or f'add it with @parity.lowers("{self.class_name}", to="torch")'
        return Unsupported(f"{self.class_name}({arguments}) named {self.name!r}: {reason}; {remedy}")

    def refuse_unless(self, **expected: Any) -> None:
        """Raise Unsupported if an argument has another value than the only one that is converted."""
        for key, value in expected.items():
            if self.config.get(key, value) != value:
                raise self.refuse(f"only {key}={value!r} is converted")


def make(
    build: type[Module], *arguments: Any, state: Mapping[str, np.ndarray] | None = None, **keywords: Any
) -> Module:
    """A module with exactly this state, and none of torch's initialisation (which would use up random numbers)."""
    with torch.device("meta"):
        module = build(*arguments, **keywords)
    tensors = {name: to_tensor(array) for name, array in (state or {}).items()}
    result = module.load_state_dict(tensors, strict=False, assign=True)
    empty = [name for name, tensor in module.state_dict().items() if tensor.is_meta]  # not an inner module's own
    if empty or result.unexpected_keys:
        raise ValueError(
            f"{build.__name__} is given {list(tensors)}: {empty} missing, {result.unexpected_keys} too many"
        )
    return module


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor with its own memory; convolution kernels of images in the memory format of channels_last."""
    tensor = torch.from_numpy(np.array(array, order="C"))
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def lower(layer: Layer) -> torch.nn.Module:
    """The module of a layer, its parameters trainable where the layer is. Raises Unsupported."""
    lowering = find_lowering(layer.class_name, "torch")
    if lowering is None:
        raise layer.refuse("no lowering to torch is registered for it")
    _ = layer.dtype
    module: torch.nn.Module = lowering(layer)
    if not layer.trainable:
        module.requires_grad_(False)
    return module


def frozen(layer: Layer) -> Layer:
    return replace(layer, frozen=True)
