"""Reading an ONNX model: checked, with static shapes, constants folded, and functions expanded into operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import TensorProto, TypeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from parity.errors import ParityError, Unsupported

Shape = tuple[int, ...]

OLDEST_OPSET = 7
"""Before opset 7, arithmetic operators broadcast by attributes of their own."""
FLOATING = {TensorProto.FLOAT, TensorProto.DOUBLE}
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
LARGEST_CONSTANT = 1 << 28
"""Elements of a constant that folding may make: a `ConstantOfShape` can ask for any number."""


@dataclass(frozen=True)
class Node:
    """One operator. Its inputs are names of values, '' where an optional one is left out."""

    name: str
    operator: str
    attributes: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: tuple[Shape | None, ...]
    """Shapes of the outputs, None for one that is left out."""
    opset: int

    def __str__(self) -> str:
        """The node as messages name it: operator, name and attributes."""
        attributes = ", ".join(f"{key}={_short(value)}" for key, value in self.attributes.items())
        return f"node {self.name!r}, operator {self.operator}({attributes})"


def _short(value: Any) -> str:
    text = f"array{value.shape}" if isinstance(value, np.ndarray) and value.size > 8 else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class Graph:
    """An ONNX graph of float tensors whose every shape is known."""

    name: str
    inputs: dict[str, Shape]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: dict[str, np.ndarray]


def read(source: Any) -> onnx.ModelProto:
    """The model in a file, in bytes or given as it is, checked by ONNX's checker. Raises ParityError in one line."""
    if isinstance(source, onnx.ModelProto):
        return _checked(source, "the ONNX model")
    name = "the ONNX bytes" if isinstance(source, bytes) else str(source)
    try:
        model = onnx.load_from_string(source) if isinstance(source, bytes) else onnx.load(Path(source))
    except OSError as error:
        raise ParityError(f"cannot read {name}: {error.strerror or error}") from None
    except DecodeError:
        raise ParityError(f"{name} is not an ONNX model, or it is cut short") from None
    except Exception as error:  # external data: missing, outside the directory, shorter than declared
        raise ParityError(f"cannot read the external data of {name}: {_line(error)}") from None
    return _checked(model, name)


def _checked(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    if not model.HasField("graph"):
        raise ParityError(f"{name} holds no graph: it is empty, or cut short")
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            raise ParityError(f"{name} keeps {tensor.name!r} in a file of its own: load it with onnx.load(path)")
    version = opset(model)
    newest = onnx.defs.onnx_opset_version()
    if version < OLDEST_OPSET:
        raise ParityError(f"{name} is of opset {version}: {OLDEST_OPSET} is the oldest; run onnx.version_converter")
    if version > newest:
        raise ParityError(f"{name} is of opset {version}, onnx {onnx.__version__} knows {newest}: pip install -U onnx")
    try:
        if model.ByteSize() < 2**31:  # the checker serialises the model, which protobuf cannot above 2 GB
            onnx.checker.check_model(model)
    except Exception as error:
        raise ParityError(f"{name} is not a valid ONNX model: {_line(error)}") from None
    return model


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0]


def opset(model: onnx.ModelProto) -> int:
    """Version of ONNX's own operators that a model uses."""
    versions = (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return int(next(versions, onnx.defs.onnx_opset_version()))


def prepare(model: onnx.ModelProto, shapes: Sequence[Shape] = (), known: Callable[[str], bool] = bool) -> Graph:
    """The graph of a checked model. `shapes` are those of the inputs, for models with dynamic axes.

    `known(operator)` says whether an operator has a lowering: others are expanded into their function bodies where
    ONNX defines one. Raises Unsupported for what has no static shape, and ParityError for shapes that do not fit.
    """
    model = _expand(model, known)
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    declared = [value for value in graph.input if value.name not in constants]
    if shapes and len(shapes) != len(declared):
        raise ParityError(f"the ONNX model has {len(declared)} inputs, not {len(shapes)}")
    inputs = {v.name: _bind(v, shapes[place] if shapes else None) for place, v in enumerate(declared)}
    types = {value.name: value.type for value in declared}
    for name, shape in inputs.items():
        types[name] = helper.make_tensor_type_proto(types[name].tensor_type.elem_type, shape)
    types.update((name, _type_of(array)) for name, array in constants.items())
    folding = _Folding(model, constants, types)
    for node in _live(graph):
        folding.add(node)
    outputs = tuple(folding.names.get(value.name, value.name) for value in graph.output)
    return Graph(graph.name, inputs, outputs, tuple(folding.nodes), constants)


def _bind(value: onnx.ValueInfoProto, given: Shape | None) -> Shape:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise Unsupported(f"input {value.name!r} is a {kind.removesuffix('_type')}: only float tensors can be")
    tensor = value.type.tensor_type
    if tensor.elem_type not in FLOATING:
        raise Unsupported(
            f"input {value.name!r} is {TensorProto.DataType.Name(tensor.elem_type).lower()}: Caffe's blobs are float32"
        )
    axes = [axis.dim_value if axis.HasField("dim_value") else (axis.dim_param or "?") for axis in tensor.shape.dim]
    if given is not None:
        fits = tensor.HasField("shape") and len(axes) == len(given)
        if not fits or any(isinstance(a, int) and a != size for a, size in zip(axes, given, strict=False)):
            raise ParityError(f"input {value.name!r} has shape {axes}: an example of shape {list(given)} does not fit")
        return tuple(given)
    if not tensor.HasField("shape") or not all(isinstance(axis, int) for axis in axes):
        raise Unsupported(
            f"input {value.name!r} has dynamic shape {axes}: Caffe's is static, so pass an example of the shape wanted"
        )
    return tuple(int(axis) for axis in axes)


def _type_of(array: np.ndarray) -> TypeProto:
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def _expand(model: onnx.ModelProto, known: Callable[[str], bool]) -> onnx.ModelProto:
    """Replace the model's own functions, and ONNX operators without a lowering, by the nodes that define them."""
    model = onnx.inliner.inline_local_functions(model)
    tried: set[str] = set()
    for _ in range(16):  # a body may hold operators that are functions themselves
        present = {node.op_type for node in _live(model.graph) if node.domain in ("", "ai.onnx")} - tried
        wanted = [op for op in sorted(present) if not known(op) and _has_body(op, opset(model))]
        if not wanted:
            break
        for operator in wanted:
            tried.add(operator)
            _write_defaults(model, operator)
            try:
                model = onnx.inliner.inline_selected_functions(model, [("", operator)], inline_schema_functions=True)
            except RuntimeError:
                continue  # onnx cannot build this body: the node stays, and is refused by name
    return model


def _write_defaults(model: onnx.ModelProto, operator: str) -> None:
    """Give an operator's nodes their default attributes: the inliner of onnx 1.23 leaves out what is not written."""
    defaults = [a.default_value for a in onnx.defs.get_schema(operator, opset(model)).attributes.values()]
    for node in model.graph.node:
        if node.op_type == operator:
            given = {attribute.name for attribute in node.attribute}
            node.attribute.extend(value for value in defaults if value.type and value.name not in given)


def _has_body(operator: str, version: int) -> bool:
    try:
        schema = onnx.defs.get_schema(operator, version)
    except onnx.defs.SchemaError:
        return False
    return bool(getattr(schema, "has_function", False) or getattr(schema, "has_context_dependent_function", False))


def _live(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that lead to an output, in order."""
    needed = {value.name for value in graph.output}
    live = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            live.append(node)
            needed.update(node.input)
            for attribute in node.attribute:
                for inner in [attribute.g, *attribute.graphs]:
                    needed.update(name for n in inner.node for name in n.input)
    return live[::-1]


class _Folding:
    """Goes through the nodes in order: computes what is constant, and finds the shapes of the rest."""

    def __init__(self, model: onnx.ModelProto, constants: dict[str, np.ndarray], types: dict[str, TypeProto]) -> None:
        self.opset = opset(model)
        self.imports = list(model.opset_import)
        self.constants = constants
        self.types = types
        self.names: dict[str, str] = {}
        """A value that is another one under a new name (Identity, Dropout at inference)."""
        self.nodes: list[Node] = []

    def add(self, proto: onnx.NodeProto) -> None:
        node = onnx.NodeProto()
        node.CopyFrom(proto)
        inputs = [self.names.get(name, name) for name in proto.input]
        del node.input[:]
        node.input.extend(inputs)
        label = node.name or next((name for name in node.output if name), "")
        if node.domain not in ("", "ai.onnx"):
            raise Unsupported(f"node {label!r}, operator {node.domain}::{node.op_type}: register a function for it")
        if any(attribute.g.node or attribute.graphs for attribute in node.attribute):
            raise Unsupported(f"node {label!r}, operator {node.op_type}: Caffe has no control flow; unroll it first")
        if node.op_type == "Identity" or (node.op_type == "Dropout" and not self._trains(node)):
            self._rename(node)
        elif node.op_type in ("Shape", "Size") and inputs[0] in self.types:
            self._fold(node, {inputs[0]: np.broadcast_to(np.float32(0), self._shape(inputs[0]))})
        elif node.op_type not in RANDOM and all(name in self.constants for name in inputs if name):
            self._fold(node, {name: self.constants[name] for name in inputs if name})
        else:
            self._infer(node, label)

    def _trains(self, node: onnx.NodeProto) -> bool:
        mode = node.input[2] if len(node.input) > 2 else ""
        return bool(mode) and not (mode in self.constants and not self.constants[mode])

    def _rename(self, node: onnx.NodeProto) -> None:
        self.names[node.output[0]] = node.input[0]
        if len(node.output) > 1 and node.output[1]:
            self.constants[node.output[1]] = np.ones(self._shape(node.input[0]), bool)

    def _shape(self, name: str) -> Shape:
        return tuple(axis.dim_value for axis in self.types[name].tensor_type.shape.dim)

    def _fold(self, node: onnx.NodeProto, values: dict[str, np.ndarray]) -> None:
        if node.op_type == "ConstantOfShape" and np.prod(values[node.input[0]], dtype=float) > LARGEST_CONSTANT:
            raise Unsupported(f"node {node.name!r}, operator ConstantOfShape: {values[node.input[0]]} is too large")
        graph = helper.make_graph(
            [node],
            "constant",
            [helper.make_value_info(name, _type_of(array)) for name, array in values.items()],
            [helper.make_value_info(name, TypeProto()) for name in node.output if name],
        )
        try:
            with np.errstate(all="ignore"):
                results = ReferenceEvaluator(helper.make_model(graph, opset_imports=self.imports)).run(None, values)
        except Exception as error:
            raise Unsupported(
                f"node {node.name or node.output[0]!r}, operator {node.op_type}: onnx.reference cannot compute this "
                f"constant: {_line(error)}"
            ) from None
        for name, result in zip([name for name in node.output if name], results, strict=True):
            if not isinstance(result, np.ndarray | np.generic):
                raise Unsupported(f"node {node.name!r}, operator {node.op_type}: {name!r} is no tensor")
            self.constants[name] = np.asarray(result)
            self.types[name] = _type_of(self.constants[name])

    def _infer(self, node: onnx.NodeProto, label: str) -> None:
        attributes = {attribute.name: _attribute(attribute) for attribute in node.attribute}
        wanted = [name for name in node.output if name]
        known = Node(label, node.op_type, attributes, tuple(node.input), tuple(node.output), (), self.opset)
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opset)
            data = {n: numpy_helper.from_array(self.constants[n], n) for n in node.input if self._small(n)}
            found = onnx.shape_inference.infer_node_outputs(
                schema, node, {n: self.types[n] for n in node.input if n}, data, opset_imports=self.imports
            )
        except Exception as error:
            raise Unsupported(f"{known}: its output shape cannot be inferred: {_line(error)}") from None
        for name in wanted:
            tensor = found[name].tensor_type if name in found else TypeProto.Tensor()
            if not tensor.HasField("shape") or not all(axis.HasField("dim_value") for axis in tensor.shape.dim):
                raise Unsupported(f"{known}: the shape of {name!r} depends on the data; Caffe's is static")
            self.types[name] = found[name]
        shapes = tuple(self._shape(name) if name else None for name in node.output)
        self.nodes.append(Node(label, node.op_type, attributes, known.inputs, known.outputs, shapes, self.opset))

    def _small(self, name: str) -> bool:
        return name in self.constants and self.constants[name].size <= 1024


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [item.decode("utf-8", "replace") for item in value]
    return list(value) if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS) else value
