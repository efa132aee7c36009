"""Pairs of nodes that are better written as others before they are lowered."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from parity.converters.onnx_caffe.graph import Graph, Node

CONVOLUTIONS = ("Conv", "ConvTranspose", "Gemm")


def stable_log_sigmoid(graph: Graph) -> Graph:
    """log(sigmoid(x)), which is −∞ where exp(x) underflows, as −softplus(−x)."""
    readers, makers = _readers(graph), {name: node for node in graph.nodes for name in node.outputs}
    nodes: list[Node] = []
    for node in graph.nodes:
        inner = makers.get(node.inputs[0]) if node.operator == "Log" else None
        if inner is None or inner.operator != "Sigmoid" or readers[inner.outputs[0]] != 1:
            nodes.append(node)
            continue
        nodes.remove(inner)
        steps = (f"{node.outputs[0]}/negated", f"{node.outputs[0]}/softplus", node.outputs[0])
        for operator, source, result in zip(("Neg", "Softplus", "Neg"), (inner.inputs[0], *steps), steps, strict=False):
            nodes.append(replace(node, operator=operator, inputs=(source,), outputs=(result,)))
    return replace(graph, nodes=tuple(nodes))


def fold_batch_norm(graph: Graph) -> Graph:
    """Normalizations by constants behind a convolution or linear layer that nothing else reads, as part of its weights.

    Computed in float64. The result rounds differently from the two layers, by as much as a rounding.
    """
    readers, constants = _readers(graph), dict(graph.constants)
    nodes: list[Node] = []
    places: dict[str, int] = {}
    for node in graph.nodes:
        place = places.get(node.inputs[0]) if node.operator == "BatchNormalization" else None
        if place is not None and readers[node.inputs[0]] == 1 and _constant(graph, node.inputs[1:5]):
            nodes[place] = _folded(nodes[place], node, constants)
            places[node.outputs[0]] = place
            continue
        if node.operator in CONVOLUTIONS and _constant(graph, node.inputs[1:]):
            places[node.outputs[0]] = len(nodes)
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes), constants=constants)


def _folded(node: Node, norm: Node, constants: dict[str, np.ndarray]) -> Node:
    gain, shift, mean, variance = (constants[name].astype(np.float64) for name in norm.inputs[1:5])
    gain = gain / np.sqrt(variance + norm.attributes.get("epsilon", 1e-5))
    weight = constants[node.inputs[1]].astype(np.float64)
    bias = constants[node.inputs[2]].astype(np.float64) if len(node.inputs) > 2 and node.inputs[2] else 0.0
    attributes = dict(node.attributes)
    if node.operator == "Gemm":
        bias = attributes.pop("beta", 1.0) * np.broadcast_to(bias, gain.shape)
        weight = weight * (gain[:, None] if attributes.get("transB") else gain)
    elif node.operator == "Conv":
        weight = weight * gain.reshape(-1, *(1,) * (weight.ndim - 1))
    else:  # transposed: (in, out / groups, …), the groups one after the other along the inputs
        groups = attributes.get("group", 1)
        per_group = weight.reshape(groups, -1, *weight.shape[1:])
        weight = (per_group * gain.reshape(groups, 1, -1, *(1,) * (weight.ndim - 2))).reshape(weight.shape)
    names = (f"{norm.outputs[0]}/weight", f"{norm.outputs[0]}/bias")
    for name, values in zip(names, (weight, (bias - mean) * gain + shift), strict=True):
        constants[name] = values.astype(np.float32)
    return replace(node, attributes=attributes, inputs=(node.inputs[0], *names), outputs=(norm.outputs[0],))


def _readers(graph: Graph) -> Counter[str]:
    return Counter([*(name for node in graph.nodes for name in node.inputs), *graph.outputs])


def _constant(graph: Graph, names: tuple[str, ...]) -> bool:
    return all(not name or name in graph.constants for name in names)
