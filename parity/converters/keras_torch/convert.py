"""From a Keras configuration to a `torch.fx.GraphModule`: the connections between the layers become its code."""

from __future__ import annotations

import inspect
import keyword
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.fx

# Imported for the lowerings that they register.
from parity.converters.keras_torch import (  # noqa: F401
    activations,
    attention,
    contractions,
    merges,
    normalization,
    operations,
    pooling,
    recurrent,
    regularization,
    resizing,
    shapes,
    transposed,
)
from parity.converters.keras_torch.archive import Config, in_saved_order, is_model, read
from parity.converters.keras_torch.layer import Layer, Weights, frozen, lower, make
from parity.converters.keras_torch.masks import UNTRACKED, mask_of_output
from parity.converters.keras_torch.shapes import to_channels_first, to_channels_last
from parity.converters.registry import find_lowering, lowers
from parity.errors import ParityError, Unsupported

LAYOUTS = ("nhwc", "nchw")
ALIKE = ("Resizing", "Rescaling", "Normalization")
"""Layers that do the same in training; Keras calls some of them with training=True."""
RETURNING_THEIR_INPUT = frozenset(
    [
        "ActivityRegularization",
        "AlphaDropout",
        "Dropout",
        "GaussianDropout",
        "GaussianNoise",
        "Identity",
        "SpatialDropout1D",
        "SpatialDropout2D",
        "SpatialDropout3D",
    ]
)
"""Layers whose output is, at inference, the same object as their input."""
Key = tuple[str, int]
"""A call of a layer: the layer's name and the how-manieth of its calls it is."""


def convert(model: Any, layout: str = "nhwc") -> torch.fx.GraphModule:
    """The module of `model`: see `parity.converters.keras_torch.reference`."""
    if layout not in LAYOUTS:
        raise ParityError(f"layout {layout!r}: choose one of {', '.join(LAYOUTS)}")
    config, weights = read(model)
    if not is_model(config):
        raise Unsupported(
            f"{config['class_name']} is a subclassed model, whose connections only its Python code knows: rebuild it "
            "as a functional model (keras.Model(inputs, outputs)) and convert that"
        )
    layer = Layer(config["class_name"], config["config"].get("name", "model"), config["config"], weights)
    return _Wiring(layer, layout).module()


@lowers("Functional", "Sequential", "Model", to="torch")
def nested_model(layer: Layer) -> torch.nn.Module:
    """A model used as a layer: a module of its own."""
    return _Wiring(layer, "nhwc").module()


class _Wiring:
    """One model while it is put together: the graph so far, and what every Keras tensor is in it."""

    def __init__(self, model: Layer, layout: str) -> None:
        self.model = model
        self.layout = layout
        self.graph = torch.fx.Graph()
        self.modules: dict[str, torch.nn.Module] = {}
        self.names: dict[str, str] = {}
        self.layers: dict[str, Config] = {}
        self.weights: dict[str, Weights] = {}
        for config, weights in in_saved_order(self.model.config["layers"], self.model.weights):
            name = config["config"].get("name") or config["name"]
            self.layers[name], self.weights[name] = config, weights
            self.names[name] = _identifier(name, taken=set(self.names.values()))
        self.modes: dict[str, bool] = {}
        self.outputs: dict[Key, list[torch.fx.Node]] = {}
        self.masks: dict[torch.fx.Node, Any] = {}
        self.twins: dict[torch.fx.Node, torch.fx.Node] = {}

    def module(self) -> torch.fx.GraphModule:
        sequential = "input_layers" not in self.model.config
        result = self._chain() if sequential else self._functional()
        self.graph.output(_map(result, self._leave))
        class_name = "".join(part.capitalize() for part in re.split(r"\W|_", self.model.name)) or "Model"
        module = torch.fx.GraphModule(self.modules, self.graph, class_name=_identifier(class_name, set()))
        module.graph.eliminate_dead_code()  # results that nobody uses, masks that end
        module.recompile()
        leaves = [node for node in _leaves(result) if isinstance(node, torch.fx.Node)]
        about: dict[str, Any] = {
            "several_outputs": not isinstance(result, torch.fx.Node),
            "output_masked": any(self.masks.get(node) is not None for node in leaves),
            "input_order": None if sequential else self._input_order(),
        }
        for name, value in about.items():
            setattr(module, name, value)
        return module

    # --- the two kinds of models ---

    def _chain(self) -> torch.fx.Node:
        value = None
        for name, config in self.layers.items():
            if config["class_name"] == "InputLayer":
                value = self._input(name)
                continue
            value = value or self._placeholder("x", self.model.config.get("build_input_shape") or ())
            value = self._call(name, (value,), {})[0]
        if value is None:
            raise Unsupported(f"Sequential {self.model.name!r} has no layers: add one")
        return value

    def _functional(self) -> Any:
        for name, _, _ in _histories(self.model.config["input_layers"]):
            self.outputs[name, 0] = [self._input(name)]
        pending = self._calls()
        while pending:
            waiting = []
            for name, number, call in pending:
                if all((source, index) in self.outputs for source, index, _ in _sources(call)):
                    args, kwargs = self._arguments(call)
                    self.outputs[name, number] = self._call(name, args, kwargs)
                else:
                    waiting.append((name, number, call))
            if len(waiting) == len(pending):
                raise ParityError(
                    f"model {self.model.name!r}: layer {waiting[0][0]!r} waits for a tensor that nothing makes"
                )
            pending = waiting
        return _map_histories(self.model.config["output_layers"], self._tensor)

    def _calls(self) -> list[tuple[str, int, Any]]:
        """Every call of a layer: its name, the number by which others refer to it, and what Keras recorded.

        The first call of a nested model may be its own construction, which is not recorded: numbers then begin at 1.
        """
        highest: dict[str, int] = {}
        recorded = [layer.get("inbound_nodes", []) for layer in self.layers.values()]
        for name, node, _ in [*_sources(recorded), *_histories(self.model.config["output_layers"])]:
            highest[name] = max(node, highest.get(name, 0))
        calls = []
        for name, layer in self.layers.items():
            nodes = layer.get("inbound_nodes", [])
            first = max(0, highest.get(name, 0) - len(nodes) + 1) if nodes else 0
            calls += [(name, first + number, node) for number, node in enumerate(nodes)]
        return calls

    def _input_order(self) -> Any:
        """The names of the inputs in the structure in which Keras takes them."""
        return _map_histories(self.model.config["input_layers"], lambda name, node, tensor: self.names[name])

    # --- nodes ---

    def _input(self, name: str) -> torch.fx.Node:
        config = self.layers[name]["config"]
        return self._placeholder(self.names[name], config.get("batch_shape") or config.get("batch_input_shape") or ())

    def _placeholder(self, name: str, shape: Any) -> torch.fx.Node:
        node = self.graph.placeholder(name)
        if self.layout == "nchw" and len(shape) > 3:
            return self.graph.call_function(to_channels_last, (node,))
        return node

    def _leave(self, node: torch.fx.Node) -> torch.fx.Node:
        return self.graph.call_function(to_channels_first, (node,)) if self.layout == "nchw" else node

    def _tensor(self, name: str, node: int, tensor: int) -> torch.fx.Node:
        return self.outputs[name, node][tensor]

    def _arguments(self, call: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if isinstance(call, list):  # as Keras 2 and .h5 files have it: [[layer, node, tensor, arguments], …]
            tensors = [self._tensor(*source[:3]) for source in call]
            kwargs = dict(call[0][3]) if len(call[0]) > 3 else {}
            return (tensors[0] if len(tensors) == 1 else tensors,), self._plain(kwargs)
        return tuple(self._plain(call["args"])), self._plain(call["kwargs"])

    def _plain(self, value: Any) -> Any:
        """An argument of a call: tensors as nodes of the graph, and what Keras serialised as what it was."""
        if isinstance(value, list):
            return [self._plain(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "class_name" not in value:
            return {key: self._plain(item) for key, item in value.items()}
        config = value.get("config", {})
        match value["class_name"]:
            case "__keras_tensor__":
                return self._tensor(*config["keras_history"])
            case "__tuple__":
                return tuple(self._plain(item) for item in config["value"])
            case "__slice__":
                return slice(*(self._plain(config[key]) for key in ("start", "stop", "step")))
            case "__ellipsis__":
                return ...
            case "__tensor__" | "__numpy__":
                return self._constant(np.asarray(config["value"], dtype=config["dtype"]))
        raise Unsupported(
            f"an argument of class {value['class_name']} in the calls of {self.model.name!r}: pass plain values"
        )

    def _constant(self, array: np.ndarray) -> torch.fx.Node:
        name = _identifier("constant", taken={*self.names.values(), *self.modules})
        self.modules[name] = make(operations.Constant, array.shape, state={"value": array})
        return self.graph.call_module(name)

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.fx.Node]:
        """One call of a layer; its output tensors."""
        layer = self._layer(name)
        training = kwargs.pop("training", None)
        if training and layer.class_name not in ALIKE:
            raise layer.refuse("it is called with training=True", "call it without, and use module.train() in torch")
        kwargs = {key: value for key, value in kwargs.items() if any(leaf is not None for leaf in _leaves(value))}
        if _is_operation(self.layers[name]):
            return self._operation(layer, args, kwargs)
        mode = training is False or self.model.frozen
        if self.modes.setdefault(name, mode) != mode:
            raise layer.refuse("it is called both with and without training=False", "call it alike each time")
        target = self.names[name]
        if target not in self.modules:
            self.modules[target] = lower(frozen(layer) if mode else layer)
        module = self.modules[target]
        if isinstance(module, torch.fx.GraphModule):
            if "mask" in kwargs:
                raise layer.refuse("a mask goes into a nested model", "put its layers into the outer model")
            args = tuple(_positional(args[0], module.input_order))
        elif layer.class_name == "TimeDistributed":
            kwargs.pop("mask", None)  # what is inside has none
        given = self._masks_for(layer, module, args, kwargs)
        node = self.graph.call_module(target, args, {**kwargs, **given})
        nodes = self._results(node, module, layer, kwargs)
        for result, mask in zip(nodes, self._output_masks(layer, module, args, given, len(nodes)), strict=True):
            self.masks[result] = mask
        if layer.class_name in RETURNING_THEIR_INPUT:
            self.twins[node] = self.twins.get(args[0], args[0])
        if layer.class_name == "MultiHeadAttention":
            self._strip([*_nodes(args), *_nodes(kwargs)])
        return nodes

    def _strip(self, nodes: list[torch.fx.Node]) -> None:
        """Keras' MultiHeadAttention takes the masks off the very tensors that it is given: nothing later sees them."""
        stripped = {self.twins.get(node, node) for node in nodes}
        for node in self.masks:
            if self.twins.get(node, node) in stripped:
                self.masks[node] = None

    def _layer(self, name: str) -> Layer:
        serialized = self.layers[name]
        config = dict(serialized["config"])
        if not self.model.trainable:
            config["trainable"] = False
        return Layer(serialized["class_name"], name, config, self.weights[name], self.model.frozen)

    def _operation(self, layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.fx.Node]:
        function = find_lowering(f"ops.{layer.class_name}", "torch")
        if function is None:
            remedy = f'add it with @parity.lowers("ops.{layer.class_name}", to="torch"), a function of tensors'
            raise layer.refuse("no torch function is registered for this operation", remedy)
        options = {key: value for key, value in layer.config.items() if key not in ("name", "dtype", "trainable")}
        node = self.graph.call_function(function, args, {**self._plain(options), **kwargs})
        return _several(node, self.graph) if layer.class_name in operations.SEVERAL else [node]

    def _results(self, node: torch.fx.Node, module: Any, layer: Layer, kwargs: dict[str, Any]) -> list[torch.fx.Node]:
        if isinstance(module, torch.fx.GraphModule) and module.several_outputs:
            structure = next(output.args[0] for output in module.graph.nodes if output.op == "output")
            keys = sorted(structure) if isinstance(structure, Mapping) else range(len(structure))
            return [self.graph.call_function(operator.getitem, (node, key)) for key in keys]
        if getattr(module, "several_outputs", False) or kwargs.get("return_attention_scores"):
            return _several(node, self.graph)
        return [node]

    # --- masks ---

    def _masks_for(self, layer: Layer, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The masks that Keras passes to a layer: as `mask` if it has one argument with tensors, else `<name>_mask`."""
        if isinstance(module, torch.fx.GraphModule):
            if any(self.masks.get(node) is not None for node in _leaves(args)):
                raise layer.refuse("a mask goes into a nested model", "put its layers into the outer model")
            return {}
        bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        holders = {name: value for name, value in bound.items() if any(True for _ in _nodes(value))}
        found = {}
        for name, value in holders.items():
            key = "mask" if len(holders) == 1 else f"{name}_mask"
            if key in bound or not any(self.masks.get(node) is not None for node in _nodes(value)):
                continue
            if key in inspect.signature(module.forward).parameters:
                found[key] = self._checked(layer, _map(value, self.masks.get))
            elif layer.class_name == "Softmax":
                raise layer.refuse("a mask reaches it, and changes what it computes", "end the mask before this layer")
        return found

    def _checked(self, layer: Layer, masks: Any) -> Any:
        if any(mask is UNTRACKED for mask in _leaves(masks)):
            raise layer.refuse("a mask comes out of a nested model", "put its layers into the outer model")
        return masks

    def _output_masks(
        self, layer: Layer, module: Any, args: tuple[Any, ...], given: dict[str, Any], count: int
    ) -> list[Any]:
        if isinstance(module, torch.fx.GraphModule):
            return [UNTRACKED if module.output_masked else None] * count
        first = args[0] if args else None
        known = _map(first, self.masks.get)
        return mask_of_output(self.graph, layer, first, known, count)


# --- structures of calls -------------------------------------------------------------------------------------------


def _is_operation(config: Config) -> bool:
    return ".ops." in f"{config.get('module')}."


def _several(node: torch.fx.Node, graph: torch.fx.Graph, most: int = 5) -> list[torch.fx.Node]:
    """The elements of a result that is a tuple; unused ones are dropped with the graph's dead code."""
    return [graph.call_function(operator.getitem, (node, index)) for index in range(most)]


def _sources(call: Any) -> Iterator[tuple[str, int, int]]:
    """The tensors that a serialised call reads."""
    if isinstance(call, dict) and call.get("class_name") == "__keras_tensor__":
        yield tuple(call["config"]["keras_history"])
    elif isinstance(call, dict):
        for value in call.values():
            yield from _sources(value)
    elif isinstance(call, list):
        if _is_history(call[:3]) and len(call) in (3, 4):
            yield tuple(call[:3])
            call = call[3:]
        for value in call:
            yield from _sources(value)


def _is_history(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and isinstance(value[0], str) and isinstance(value[1], int)


def _histories(structure: Any) -> Iterator[tuple[str, int, int]]:
    """The [layer, node, tensor] of a structure of inputs, in the order in which Keras flattens it: dicts by key."""
    if _is_history(structure):
        yield tuple(structure)
    elif isinstance(structure, dict):
        if structure.get("class_name") == "__tuple__":
            yield from _histories(structure["config"]["value"])
        else:
            for key in sorted(structure):
                yield from _histories(structure[key])
    else:
        for item in structure:
            yield from _histories(item)


def _map_histories(structure: Any, function: Callable[..., Any]) -> Any:
    if _is_history(structure):
        return function(*structure)
    if isinstance(structure, dict):
        if structure.get("class_name") == "__tuple__":
            return tuple(_map_histories(item, function) for item in structure["config"]["value"])
        return {key: _map_histories(item, function) for key, item in structure.items()}
    return [_map_histories(item, function) for item in structure]


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    """`function` of every tensor in an argument."""
    if isinstance(value, torch.fx.Node):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)(_map(item, function) for item in value)
    if isinstance(value, dict):
        return {key: _map(item, function) for key, item in value.items()}
    return value


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from _leaves(value[key])
    else:
        yield value


def _nodes(value: Any) -> Iterator[torch.fx.Node]:
    return (leaf for leaf in _leaves(value) if isinstance(leaf, torch.fx.Node))


def _positional(argument: Any, order: Any) -> list[torch.fx.Node]:
    """The tensors given to a nested model, in the order of its `forward`."""
    if isinstance(argument, dict) and isinstance(order, list):
        return [argument[name] for name in order]
    return list(_nodes(argument))


def _identifier(name: str, taken: set[str]) -> str:
    """A name that Python and `state_dict` take: other characters become `_`."""
    plain = re.sub(r"\W", "_", name, flags=re.ASCII)
    if not plain or plain[0].isdigit() or keyword.iskeyword(plain) or hasattr(torch.nn.Module, plain):
        plain = f"_{plain}" if plain[:1].isdigit() or not plain else f"{plain}_"
    unique, number = plain, 1
    while unique in taken:
        unique, number = f"{plain}_{number}", number + 1
    return unique
