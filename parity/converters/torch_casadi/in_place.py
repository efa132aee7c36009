"""Writing in place: a graph's nodes name values, and several nodes may name the same memory."""

from __future__ import annotations

import operator

import torch
import torch.fx

from parity.errors import Unsupported

IN_PLACE = {"__iadd__": operator.iadd, "__isub__": operator.isub, "__imul__": operator.imul,
            "__itruediv__": operator.itruediv, "__ipow__": operator.ipow}  # fmt: skip
VIEWS = frozenset((
    "getitem", "getattr", "view", "view_as", "reshape", "reshape_as", "flatten", "ravel", "unflatten", "squeeze",
    "unsqueeze", "permute", "transpose", "swapaxes", "swapdims", "t", "adjoint", "movedim", "moveaxis", "expand",
    "expand_as", "broadcast_to", "select", "narrow", "diagonal", "chunk", "split", "split_with_sizes",
    "tensor_split", "unbind", "contiguous", "to", "float", "double", "type", "type_as", "cpu", "detach", "Flatten",
    "Unflatten", "Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout",
    "FeatureAlphaDropout", "dropout"
))  # fmt: skip
"""What may return the memory of its argument, shaped otherwise."""
NOT_IN_PLACE = ("and_", "or_", "is_", "not_")
"""Operators whose names end in an underscore because Python has those words."""


class FxFailure(Unsupported):
    """What `torch.fx` cannot record, or not record rightly, and `torch.export` may."""


Modules = dict[str, torch.nn.Module]


def writes_in_place(node: torch.fx.Node, modules: Modules) -> bool:
    """Whether the node overwrites its first argument, which it returns."""
    if not node.args or not isinstance(node.args[0], torch.fx.Node):
        return False
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op == "call_method":
        return _marked(str(node.target))
    if node.op != "call_function":
        return False
    return node.target in IN_PLACE.values() or bool(node.kwargs.get("inplace")) or _marked(_name(node, modules))


def _marked(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__") and name not in NOT_IN_PLACE


def _name(node: torch.fx.Node, modules: Modules) -> str:
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__
    return getattr(node.target, "__name__", str(node.target))


def same_tensors(graph: torch.fx.Graph, modules: Modules) -> dict[torch.fx.Node, list[torch.fx.Node]]:
    """For every node, all nodes that return the very tensor it returns: what is written to one shows in all.

    Raises Unsupported where the memory also shows, and is read later, in another tensor: a view.
    """
    groups: dict[torch.fx.Node, list[torch.fx.Node]] = {}
    owner: dict[torch.fx.Node, torch.fx.Node] = {}
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        source = next(iter(node.all_input_nodes), None)
        writes = writes_in_place(node, modules)
        groups[node] = [*groups[node.args[0]]] if writes else []
        for member in (group := [*groups[node], node]):
            groups[member] = group
        if source is not None and (writes or _name(node, modules) in VIEWS):
            owner[node] = owner.get(source, source)
        if not writes:
            continue
        base = owner[node]
        for other in (base, *(view for view, memory in owner.items() if memory is base)):
            if other not in group and any(order[user] > order[node] for user in other.users):
                raise FxFailure(
                    f"node {node.name!r} writes in place to memory that {other.name!r} shows too: write it out of place"
                )
    return groups
