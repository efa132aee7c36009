"""From a torch module to a CasADi function: `torch.fx` records the operations, an interpreter lowers each of them."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable
from typing import Any

import casadi
import numpy as np
import torch
import torch.fx
from torch.utils import _pytree as pytree

from parity.converters.registry import find_lowering

# Imported for the lowerings that they register.
from parity.converters.torch_casadi import (  # noqa: F401
    activations,
    arithmetic,
    convolution,
    linear,
    normalization,
    pooling,
    shape,
)
from parity.converters.torch_casadi.tensor import Tensor
from parity.errors import Unsupported

IN_PLACE = {"__iadd__": operator.iadd, "__isub__": operator.isub, "__imul__": operator.imul,
            "__itruediv__": operator.itruediv, "__ipow__": operator.ipow}  # fmt: skip


def convert(model: torch.nn.Module, example: tuple[torch.Tensor, ...], name: str) -> casadi.Function:
    """The CasADi function of `model`: see `parity.converters.torch_casadi.reference`."""
    arguments = _arguments(model, example)
    graph = capture(model, arguments)
    symbols = [
        casadi.MX.sym(argument if casadi.Function.check_name(argument) else f"x{number}", tensor.numel())
        for number, (argument, tensor) in enumerate(arguments.items())
    ]
    inputs = [Tensor(symbol, tuple(tensor.shape)) for symbol, tensor in zip(symbols, example, strict=True)]
    result = Lowering(model, graph).run(*inputs, enable_io_processing=False)
    leaves = [_constant(leaf) for leaf in pytree.tree_leaves(result)]
    if not leaves or not all(isinstance(leaf, Tensor | np.ndarray) for leaf in leaves):
        raise Unsupported(f"{type(model).__name__} returns {result!r}: only tensors, and tuples or dicts of them, can be")
    return casadi.Function(
        name,
        symbols,
        [Tensor.of(leaf).data for leaf in leaves],
        [symbol.name() for symbol in symbols],
        ["y"] if len(leaves) == 1 else [f"y{number}" for number in range(len(leaves))],
        {"allow_duplicate_io_names": True},  # an argument of `forward` may be named y
    )


def _arguments(model: torch.nn.Module, example: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    """The example's tensors by the names that `forward` gives its arguments."""
    signature = inspect.signature(model.forward)
    model_name = type(model).__name__
    try:
        arguments = signature.bind(*example).arguments
    except TypeError as error:
        raise Unsupported(f"{model_name}.forward{signature} does not take {len(example)} tensors: {error}") from None
    for argument, tensor in arguments.items():
        if not isinstance(tensor, torch.Tensor):
            raise Unsupported(f"{model_name}.forward takes *{argument}: name each input in its signature")
        if not tensor.is_floating_point():
            raise Unsupported(f"input {argument} of {model_name} is {tensor.dtype}: only floating-point inputs can be")
    return arguments


class _Proxy(torch.fx.Proxy):
    """Records `x += y` as what it is: fx would record `x + y`, as if other names for the same tensor kept its value."""


def _record_in_place(function: Callable[..., Any]) -> Callable[[_Proxy, Any], torch.fx.Proxy]:
    return lambda proxy, other: proxy.tracer.create_proxy("call_function", function, (proxy, other), {})


for _method, _function in IN_PLACE.items():
    setattr(_Proxy, _method, _record_in_place(_function))


class _Tracer(torch.fx.Tracer):
    """Records down to torch's own layers and to the layers that a user gave a lowering."""

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        return find_lowering(type(m), "casadi") is not None or super().is_leaf_module(m, module_qualified_name)


def capture(model: torch.nn.Module, arguments: dict[str, torch.Tensor]) -> torch.fx.Graph:
    """The graph of `model`; the arguments of `forward` that are not given keep their defaults."""
    tracer = _Tracer()
    if tracer.is_leaf_module(model, ""):
        graph = torch.fx.Graph()
        placeholders = tuple(graph.placeholder(argument) for argument in arguments)
        graph.output(graph.create_node("call_module", "", placeholders, name=type(model).__name__))
        return graph
    parameters = inspect.signature(model.forward).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in parameters if parameter.name not in arguments}
    try:
        return tracer.trace(model, concrete_args=defaults or None)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise Unsupported(
            f"torch.fx cannot trace {type(model).__name__}: {reason[0]}; rewrite that part, or put it in a module of its "
            'own and lower it whole with @parity.lowers(<Type>, to="casadi")'
        ) from error


class Lowering(torch.fx.Interpreter):
    """Runs a graph on symbolic tensors. What does not depend on the inputs is computed by torch itself, in float64."""

    def __init__(self, model: torch.nn.Module, graph: torch.fx.Graph) -> None:
        super().__init__(model, graph=graph)
        self.extra_traceback = False  # fx would add lines to our one-line messages
        self.node: torch.fx.Node

    def run_node(self, n: torch.fx.Node) -> Any:
        self.node = n
        result = super().run_node(n)
        if _writes_in_place(n, self.submodules) and isinstance(n.args[0], torch.fx.Node):
            self.env[n.args[0]] = result  # whoever reads the argument from now on sees what was written
        return result

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return _double(super().get_attr(target, args, kwargs))

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        layer = self.submodules[target]

        def compute(*args: Any, **kwargs: Any) -> Any:
            return copy.deepcopy(layer).double()(*args, **kwargs)

        lowering = find_lowering(type(layer), "casadi")
        bound = lowering and (lambda *args, **kwargs: lowering(layer, *args, **kwargs))
        return self._call(lowering and _bind(lowering, layer), compute, args, kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._call(find_lowering(target, "casadi"), target, args, kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        lowering = find_lowering(target, "casadi") or find_lowering(target.removesuffix("_"), "casadi")
        return self._call(lowering, operator.methodcaller, args, kwargs)
