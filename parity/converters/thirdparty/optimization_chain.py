"""What the adapters to solvers' models share: the model as the chain of layers that these projects ask for."""

from __future__ import annotations

from typing import Any

import numpy as np

from parity.embedding import FEASIBILITY
from parity.errors import Unsupported

BOX = (-1.0, 1.0)
TIME_LIMIT = 10.0
ERROR = FEASIBILITY


def chain(model: Any) -> Any:
    """The model as a `torch.nn.Sequential`; raises Unsupported where it is none."""
    import torch
    import torch.fx

    if isinstance(model, torch.nn.Sequential):
        return model
    try:
        graph = torch.fx.symbolic_trace(model).graph
    except Exception as error:
        raise Unsupported(f"torch.fx cannot trace {type(model).__name__}, so it is no chain of layers") from error
    layers, last = [], None
    for node in graph.nodes:
        if node.op == "placeholder" and last is None:
            last = node
        elif node.op == "call_module" and node.args == (last,):
            layers.append(model.get_submodule(str(node.target)))
            last = node
        elif node.op != "output":
            raise Unsupported(f"{node.name!r} is no layer in a chain: it takes torch.nn.Sequential alone")
    return torch.nn.Sequential(*layers)


def box_of(example: tuple[Any, ...], box: tuple[Any, Any], *, vectors: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The box as two vectors; raises Unsupported for anything but one vector of inputs."""
    if len(example) != 1:
        raise Unsupported(f"it takes models of one input, not {len(example)}")
    if vectors and example[0].ndim != 2:
        raise Unsupported(f"it takes one vector of inputs, not a tensor of shape {tuple(example[0].shape)}")
    size = example[0].numel()
    lower, upper = (np.broadcast_to(np.asarray(side, float).ravel(), (size,)).copy() for side in box)
    return lower, upper


def line(error: Exception) -> str:
    """An error of theirs in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
