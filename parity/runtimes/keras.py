"""Executes Keras 3 models on the TensorFlow backend: the reference in float64, or the model in its own precision."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from parity.cases.keras_backend import keras
from parity.cases.keras_backend import tensorflow as tf
from parity.errors import ParityError
from parity.runtimes import Arrays
from parity.runtimes.tensorflow_operators import exact_operators, rounding


class KerasRuntime:
    """The model in `dtype` (by default its own): another precision is a rebuilt model with the same weights.

    Outputs follow Keras' order (dictionaries by key). Inputs are cast to what the model's inputs are declared as.
    In float64, operators that TensorFlow computes in float32 are replaced: see `parity.runtimes.tensorflow_operators`.
    """

    representation = "keras"

    def __init__(self, model: keras.Model, dtype: str | None = None) -> None:
        if keras.backend.backend() != "tensorflow":
            raise ParityError(
                f"Keras runs on {keras.backend.backend()}: set KERAS_BACKEND=tensorflow before it is imported"
            )
        if not model.built:
            raise ParityError(f"the model {model.name!r} has no weights yet: call model.build(input_shape) once")
        self.dtype = dtype or dtype_of(model)
        self.model = model if self.dtype == dtype_of(model) else in_precision(model, self.dtype)

    @property
    def artifact_bytes(self) -> int:
        """Size of the weights."""
        return sum(np.asarray(variable).nbytes for variable in self.model.variables)

    def validate(self, inputs: Arrays) -> None:
        """Raise `ParityError` for what no comparison can judge: NaN weights, inputs that the model does not take."""
        for variable in self.model.variables:
            if bad := int(np.sum(~np.isfinite(np.asarray(variable, np.float64)))):
                name = variable.path
                raise ParityError(f"weights {name!r} hold {bad} NaN or infinite element(s): mend the model first")
        if len(inputs) != len(self.model.inputs):
            raise ParityError(f"the source model takes {len(self.model.inputs)} inputs, not {len(inputs)}")
        try:
            self.value(inputs)
        except Exception as error:
            shapes = ", ".join(str(array.shape) for array in inputs)
            raise ParityError(f"the source model does not run on inputs of shape {shapes}: {_reason(error)}") from error

    def value(self, inputs: Arrays) -> np.ndarray:
        """Outputs, shape (batch, outputs), float64."""
        with self._operators():
            return _float64(self._flat(self._tensors(inputs)))

    def vjp(self, inputs: Arrays, cotangent: np.ndarray) -> np.ndarray:
        """Derivatives of `sum(cotangent * value)` by the inputs, shape (batch, inputs); `cotangent` as `value`."""
        with self._operators():
            gradients = self._gradients(self._tensors(inputs), cotangent)
            return _float64(tf.concat([_rows(gradient) for gradient in gradients], axis=1))

    def structure(self) -> dict[str, int]:
        kept = [v for v in self.model.non_trainable_variables if str(v.dtype).startswith("float")]
        return {
            "trainable": sum(int(np.prod(variable.shape)) for variable in self.model.trainable_variables),
            "other": sum(int(np.prod(variable.shape)) for variable in kept),
        }

    def trained_value(self, inputs: Arrays, cotangent: np.ndarray) -> np.ndarray:
        kept = [v for v in self.model.variables if str(v.dtype).startswith("float")]  # random generators go on
        before = [np.asarray(variable) for variable in kept]
        parameters = [variable.value for variable in self.model.trainable_variables]
        try:
            with self._operators():
                with tf.GradientTape() as tape:
                    flat = self._flat(self._tensors(inputs), training=True)
                gradients = tape.gradient(flat, parameters, tf.constant(cotangent, flat.dtype))
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        parameter.assign(parameter - tf.convert_to_tensor(gradient))
            return self.value(inputs)
        finally:
            for variable, values in zip(kept, before, strict=True):
                variable.assign(values)

    def rounding(self, dtype: str, seed: int) -> AbstractContextManager[float]:
        return rounding(dtype, seed)

    def example(self, inputs: Arrays) -> tuple[tf.Tensor, ...]:
        return self._tensors(inputs)

    def prefixes(self, inputs: Arrays) -> Iterator[tuple[str, keras.Model]]:
        """The model up to each of its operations, shortest first; a nested model counts as one."""
        graph: Any = self.model if _functional(self.model) else getattr(self.model, "_functional", None)
        nodes = graph._nodes_by_depth if graph is not None else {}
        for depth in sorted(nodes, reverse=True):
            for node in nodes[depth]:
                if not node.is_input and all(tensor.dtype.startswith("float") for tensor in node.outputs):
                    outputs = node.outputs if len(node.outputs) > 1 else node.outputs[0]
                    yield node.operation.name, keras.Model(graph._inputs_struct, outputs, name=self.model.name)

    def remark(self, layer: str) -> str:
        """Keras flattens channels last: the weights behind a Flatten are in that order."""
        found = next((each for each in self.model.layers if each.name == layer), None)
        sources = [node.operation for node in getattr(found, "_inbound_nodes", ()) for node in node.parent_nodes]
        flattened = [each for each in sources if isinstance(each, keras.layers.Flatten) and len(each.input.shape) > 2]
        if not flattened or not getattr(found, "weights", None):
            return ""
        return (
            f"{layer} reads what {flattened[0].name} laid out channels last, {tuple(flattened[0].input.shape[1:])}: "
            "where a converter flattens channels first, its weights belong in that order too"
        )

    def caller(self, check: str, inputs: Arrays, projection: np.ndarray) -> Callable[[], object]:
        """A `tf.function` call, traced beforehand: `model.predict` costs 50 ms of its own and is no baseline."""
        tensors = self._tensors(inputs)
        if check == "vjp":
            cotangent = np.broadcast_to(projection, (len(inputs[0]), len(projection)))
            compiled = tf.function(lambda *tensors: self._gradients(tensors, cotangent))
        else:
            compiled = tf.function(lambda *tensors: self._outputs(tensors))
        compiled(*tensors)
        return lambda: compiled(*tensors)

    def caller_description(self, check: str) -> str:
        threads = tf.config.threading.get_intra_op_parallelism_threads() or os.environ.get("TF_NUM_INTRAOP_THREADS")
        return f"keras tf.function of {check}, {self.dtype}, {threads or 'all'} thread(s)"

    def _operators(self) -> AbstractContextManager[None]:
        return exact_operators() if self.dtype == "float64" else nullcontext()

    def _tensors(self, inputs: Arrays) -> tuple[tf.Tensor, ...]:
        declared = [tensor.dtype for tensor in self.model.inputs]
        return tuple(tf.constant(array, dtype=dtype) for array, dtype in zip(inputs, declared, strict=True))

    def _outputs(self, tensors: tuple[tf.Tensor, ...], training: bool = False) -> list[tf.Tensor]:
        if _functional(self.model):
            structured = tf.nest.pack_sequence_as(self.model._inputs_struct, tensors)
        else:
            structured = tensors[0]
        return tf.nest.flatten(self.model(structured, training=training))

    def _flat(self, tensors: tuple[tf.Tensor, ...], training: bool = False) -> tf.Tensor:
        return tf.concat([_rows(output) for output in self._outputs(tensors, training)], axis=1)

    def _gradients(self, tensors: tuple[tf.Tensor, ...], cotangent: np.ndarray) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            for tensor in tensors:
                tape.watch(tensor)
            flat = self._flat(tensors)
        return tape.gradient(
            flat, tensors, tf.constant(cotangent, flat.dtype), unconnected_gradients=tf.UnconnectedGradients.ZERO
        )


def dtype_of(model: keras.Model) -> str:
    """The precision of the model's variables; of its layers if it has none."""
    layers = [layer for layer in _layers(model) if not isinstance(layer, keras.layers.InputLayer)]
    dtypes = [str(variable.dtype) for variable in model.variables] + [layer.compute_dtype for layer in layers]
    return next((dtype for dtype in dtypes if dtype.startswith("float")), "float32")


def in_precision(model: keras.Model, dtype: str) -> keras.Model:
    """The same model built in `dtype`, with the weights rounded (or widened) to it."""
    config = _with_dtype(copy.deepcopy(keras.saving.serialize_keras_object(model)), dtype)
    config.pop("compile_config", None)
    twin = keras.saving.deserialize_keras_object(config, safe_mode=False)
    for mine, theirs in zip(twin.variables, model.variables, strict=True):
        mine.assign(np.asarray(theirs))
    for layer in _layers(twin):
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
    return twin


def _with_dtype(value: Any, dtype: str) -> Any:
    """The serialised object with every floating-point precision in it replaced."""
    if isinstance(value, list):
        return [_with_dtype(item, dtype) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_name") == "DTypePolicy":
        return {**value, "config": {"name": dtype}}
    floating = isinstance(value.get("dtype"), str) and value["dtype"].startswith("float")
    result = {key: _with_dtype(item, dtype) for key, item in value.items()}
    return {**result, "dtype": dtype} if floating else result


def _reason(error: Exception) -> str:
    """The line that says what is wrong: Keras begins with where, and writes in bold."""
    lines = [re.sub(r"\x1b\[\d+m", "", line).strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception encountered")]
    return said[0] if said else type(error).__name__


def _layers(model: keras.Model) -> list[Any]:
    return list(model._flatten_layers(include_self=False))


def _functional(model: keras.Model) -> bool:
    return hasattr(model, "_inputs_struct")


def _rows(tensor: tf.Tensor) -> tf.Tensor:
    return tf.reshape(tensor, (tensor.shape[0], -1))


def _float64(tensor: tf.Tensor) -> np.ndarray:
    return np.asarray(tensor, dtype=np.float64)
