"""Walks through a torch module and lowers each of its operations: `torch.fx` records them, an interpreter runs them."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy as np
import torch
import torch.fx
from torch.utils import _pytree as pytree

# Imported for the lowerings that it registers.
from parity.converters.torch_optimization import layers  # noqa: F401  # isort: skip
from parity.converters.registry import find_lowering
from parity.converters.torch_optimization.expressions import select
from parity.converters.torch_optimization.formulations import Config, Formulation, formulation
from parity.converters.torch_optimization.program import Builder, Program, Value
from parity.errors import ParityError, Unsupported

Box = tuple[Any, Any]


def embed(
    model: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    *,
    box: Box,
    full: bool,
    default: Formulation,
    config: Config | None,
    tighten: str = "",
) -> Program:
    """The network as a program over `box`; raises Unsupported for what has no lowering, ParityError for bad options."""
    if tighten not in ("", "lp", "milp"):
        raise ParityError(f'tighten={tighten!r}: give "lp" or "milp", or leave it out')
    config = dict(config or {})
    lower, upper = box_of(example, box)
    base = formulation(config.pop("default", default))
    builder = Builder(lower, upper, full=full, default=base, config=config, tighten=tighten)
    model = copy.deepcopy(model).double().cpu().requires_grad_(False)
    inputs, start = [], 0
    for tensor in example:
        places = list(range(start, start + tensor[0].numel()))
        inputs.append(Value(builder, select(builder.input, places), tuple(tensor.shape[1:])))
        start += len(places)
    result = _Lowering(model, _capture(model, example), builder).run(*inputs, enable_io_processing=False)
    if not isinstance(result, Value):
        raise Unsupported(f"{type(model).__name__} returns a {type(result).__name__}: a model's output is one tensor")
    for key in config:
        if key not in builder.met:
            raise ParityError(f"config names {getattr(key, '__name__', key)!r}, which the model does not hold")
    return builder.finish(result.expression)


def box_of(example: tuple[torch.Tensor, ...], box: Box) -> tuple[np.ndarray, np.ndarray]:
    """The box's two vectors over all inputs; raises ParityError unless it fits the example and is not empty."""
    for tensor in example:
        if not isinstance(tensor, torch.Tensor) or tensor.ndim < 2 or tensor.shape[0] != 1:
            raise Unsupported("a model holds one sample: give an example of batch 1, batch axis first")
    size = sum(tensor.numel() for tensor in example)
    try:
        lower, upper = (np.broadcast_to(np.asarray(side, float).ravel(), (size,)).copy() for side in box)
    except (TypeError, ValueError):
        raise ParityError(f"box is (lower, upper), each a number or {size} of them for this model's inputs") from None
    if not (lower <= upper).all():
        raise ParityError("the box is empty: some lower bound exceeds the upper one")
    return lower, upper


class _Tracer(torch.fx.Tracer):
    """Records down to torch's own layers, and to those that a user gave a lowering."""

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        return find_lowering(type(m), "optimization") is not None or super().is_leaf_module(m, module_qualified_name)


def _capture(model: torch.nn.Module, example: tuple[torch.Tensor, ...]) -> torch.fx.Graph:
    tracer = _Tracer()
    if tracer.is_leaf_module(model, ""):
        graph = torch.fx.Graph()
        inputs = tuple(graph.placeholder(f"x{number}") for number in range(len(example)))
        graph.output(graph.create_node("call_module", "", inputs, name=type(model).__name__))
        return graph
    parameters = list(inspect.signature(model.forward).parameters)
    if len(example) > len(parameters):
        raise Unsupported(f"{type(model).__name__}.forward takes {len(parameters)} arguments, not {len(example)}")
    try:
        return tracer.trace(model)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise Unsupported(
            f"torch.fx cannot trace {type(model).__name__}: {reason[0]}; put that part in a module of its own and "
            'lower it whole with @parity.lowers(<Type>, to="optimization")'
        ) from error


class _Lowering(torch.fx.Interpreter):
    """Runs a graph on `Value`s. What does not depend on the inputs is computed by torch itself, in float64."""

    def __init__(self, model: torch.nn.Module, graph: torch.fx.Graph, builder: Builder) -> None:
        super().__init__(model, graph=graph)
        self.extra_traceback = False
        self.builder = builder
        self.name = ""

    def run_node(self, n: torch.fx.Node) -> Any:
        self.name = str(n.target) if n.op == "call_module" else n.name
        result = super().run_node(n)
        return self.builder.leave(result) if isinstance(result, Value) and n.op.startswith("call") else result

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        layer = self.submodules[target]
        called = f"{' '.join(repr(layer).split())} ({target!r})" if target else " ".join(repr(layer).split())
        if not _holds_value((args, kwargs)):
            return layer(*args, **kwargs)
        if layer.training and any(isinstance(part, _TRAINED) for part in layer.modules()):
            raise Unsupported(f"{called} is in train mode: call model.eval() before converting")
        if layer._forward_hooks or layer._forward_pre_hooks:
            raise Unsupported(f"{called} has forward hooks, which have no lowering: remove them before converting")
        return self._lower(type(layer), called, type(layer).__name__, (layer, *args), kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if not _holds_value((args, kwargs)):
            return target(*args, **kwargs)
        name = f"{(target.__module__ or 'torch').removeprefix('_')}.{target.__name__}"
        return self._lower(target, f"{name} ({self.name!r})", name, args, kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        if not _holds_value((args, kwargs)):
            return getattr(args[0], target)(*args[1:], **kwargs)
        return self._lower(target, f"Tensor.{target} ({self.name!r})", repr(target), args, kwargs)

    def _lower(self, operator: Any, called: str, written: str, args: Any, kwargs: Any) -> Any:
        lowering = find_lowering(operator, "optimization")
        if lowering is None:
            raise Unsupported(f'{called} has no lowering: write one with @parity.lowers({written}, to="optimization")')
        kwargs = {{"axis": "dim"}.get(name, name): value for name, value in kwargs.items()}
        first = ("input",) if "input" in kwargs and not args else ()
        args = (*(kwargs.pop(name) for name in first), *args)
        try:
            inspect.signature(lowering).bind(*args, **kwargs)
        except TypeError as error:
            raise Unsupported(f"{called} is called with arguments that have no lowering: {error}") from None
        self.builder.enter(self.name, operator)
        try:
            return lowering(*args, **kwargs)
        except Unsupported as error:
            raise Unsupported(f"{called}: {error}") from error


_TRAINED = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.modules.dropout._DropoutNd)


def _holds_value(value: Any) -> bool:
    return any(isinstance(leaf, Value) for leaf in pytree.tree_leaves(value))
