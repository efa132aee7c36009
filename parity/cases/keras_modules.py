"""Keras layers by the names of the vocabulary, called as it means them; and their weights from a seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from parity.cases.keras_backend import keras
from parity.cases.spec import Shape
from parity.cases.weights import random_state

QUERY_VALUE_KEY = ("MultiHeadAttention", "GroupQueryAttention")
ONE_LIST = ("Attention", "AdditiveAttention")


def apply(name: str, arguments: dict[str, Any], inputs: Sequence[Any]) -> Any:
    """The output of the layer of that name for Keras tensors."""
    if name == "Tanh":
        return keras.layers.Activation("tanh", **arguments)(inputs[0])
    if name == "Embedding":
        return keras.layers.Embedding(**arguments)(_tokens(arguments, inputs[0]))
    if name == "MaskedRecurrent":
        return _masked_recurrent(arguments, inputs[0])
    call = {key: arguments[key] for key in ("use_causal_mask",) if key in arguments}
    arguments = {key: value for key, value in arguments.items() if key not in call}
    layer = make_layer(name, arguments)
    if name in QUERY_VALUE_KEY:
        return layer(inputs[0], inputs[1], inputs[0], **call)
    if name in ONE_LIST:
        return layer([inputs[0], inputs[1], inputs[0]], **call)
    return layer(list(inputs) if len(inputs) > 1 else inputs[0])


def application(name: str, arguments: Mapping[str, Any], shape: Shape) -> keras.Model:
    """A model of `keras.applications` without pretrained weights; its outputs are logits."""
    build = getattr(keras.applications, name)
    keras.utils.clear_session(free_memory=False)  # or Keras counts on in the names of some layers: `fill` goes by them
    return build(weights=None, input_shape=shape, classifier_activation=None, **arguments)


def make_layer(name: str, arguments: dict[str, Any]) -> keras.layers.Layer:
    """The layer of that name; one inside it is given as [name, arguments]."""
    if isinstance(arguments.get("layer"), list):
        inner, inner_arguments = arguments["layer"]
        common = {key: arguments[key] for key in ("dtype",) if key in arguments}
        arguments = {**arguments, "layer": make_layer(inner, {**inner_arguments, **common, "name": "inner"})}
    return getattr(keras.layers, name)(**arguments)


def _tokens(arguments: dict[str, Any], x: Any) -> Any:
    """Numbers from 0 up to the number of tokens: an Embedding cuts them off to integers."""
    common = {key: arguments[key] for key in ("dtype",) if key in arguments}
    name = arguments.get("name", "embedding")
    scaled = keras.layers.Rescaling(2.0, offset=1.5, name=f"{name}_scaled", **common)(x)
    return keras.layers.ReLU(max_value=arguments["input_dim"] - 0.5, name=f"{name}_tokens", **common)(scaled)


def _masked_recurrent(arguments: dict[str, Any], x: Any) -> Any:
    common = {key: arguments[key] for key in ("dtype",) if key in arguments}
    name = arguments.get("name", "masked")
    table = {key: arguments[key] for key in ("input_dim", "output_dim", "mask_zero")}
    y = apply("Embedding", {**table, **common, "name": f"{name}_embedding"}, [x])
    if arguments["between"]:  # something that passes the mask on
        y = keras.layers.Dropout(arguments["between"], name=f"{name}_between", **common)(y)
    inner, inner_arguments = arguments["layer"]
    if arguments["merge_mode"] is None:
        return make_layer(inner, {**inner_arguments, **common, "name": name})(y)
    wrapper = {"layer": arguments["layer"], "merge_mode": arguments["merge_mode"], **common, "name": name}
    return make_layer("Bidirectional", wrapper)(y)


def fill(model: keras.Model, seed: object) -> None:
    """Overwrite every floating-point variable by trained-like float32 numbers, in place.

    Each has a stream of its own, named by its layer and its place there (paths hold Keras' global counters): prefixes
    of a model share its weights.
    """
    for layer in model.layers:
        for index, variable in enumerate(layer.variables):
            if str(variable.dtype) not in ("float32", "float64"):
                continue  # counters and the states of random generators
            rng = random_state(seed, layer.name, index, variable.name)
            depthwise = "depthwise" in f"{variable.name} {layer.name}"
            values = _trained_like(rng, variable.name, tuple(variable.shape), depthwise).astype(np.float32)
            variable.assign(values.astype(str(variable.dtype)))
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


def _trained_like(rng: np.random.RandomState, name: str, shape: Shape, depthwise: bool) -> np.ndarray:
    if name in ("moving_variance", "variance"):
        return rng.uniform(0.3, 2.0, shape)
    if name in ("moving_mean", "mean"):
        return rng.uniform(-1.0, 1.0, shape)
    if name == "alpha":
        return rng.uniform(0.05, 0.5, shape)
    if name in ("gamma", "scale", "concat_score_weight"):
        return rng.uniform(0.5, 1.5, shape) * rng.choice((-1.0, 1.0), shape)
    if name == "embeddings":
        return rng.uniform(-1.5, 1.5, shape)
    if "kernel" not in name or len(shape) < 2:
        return rng.uniform(-0.5, 0.5, shape)
    inputs = shape[:-2] if depthwise else shape[:-1]
    spread = math.sqrt(3.0 / max(1, math.prod(inputs)))
    return rng.uniform(-spread, spread, shape)
