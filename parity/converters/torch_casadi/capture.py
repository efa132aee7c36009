"""From a module to a graph of its operations: by `torch.fx`, or by `torch.export`."""

from __future__ import annotations

import inspect
import logging
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.export
import torch.fx

from parity.converters.registry import find_lowering
from parity.converters.torch_casadi.in_place import IN_PLACE, FxFailure
from parity.errors import Unsupported

Arguments = dict[str, torch.Tensor]
"""The example's tensors by the names that `forward` gives its arguments."""
LOWER_WHOLE = 'put it in a module of its own and lower it whole with @parity.lowers(<Type>, to="casadi")'


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
        if hasattr(m, "parametrizations") or type(m).__module__.startswith("torch.nn.utils"):
            return False  # its weights are computed on access, which tracing records
        return find_lowering(type(m), "casadi") is not None or super().is_leaf_module(m, module_qualified_name)


def trace(model: torch.nn.Module, arguments: Arguments) -> torch.fx.Graph:
    """The graph of `model` by `torch.fx`; the arguments of `forward` that are not given keep their defaults.

    Raises FxFailure.
    """
    tracer = _Tracer()
    if tracer.is_leaf_module(model, ""):
        graph = torch.fx.Graph()
        placeholders = tuple(graph.placeholder(argument) for argument in arguments)
        graph.output(graph.create_node("call_module", "", placeholders, name=type(model).__name__))
        return graph
    parameters = inspect.signature(model.forward).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in parameters if parameter.name not in arguments}
    try:
        graph = tracer.trace(model, concrete_args=defaults or None)
    except Exception as error:
        raise FxFailure(f"torch.fx cannot trace {type(model).__name__}: {_first_line(error)}") from error
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target.__name__ in ("_assert", "_assert_is_none"):
            graph.erase_node(node)  # fx checks with them that the defaults are what it was given
    return graph


def export(model: torch.nn.Module, arguments: Arguments) -> torch.export.ExportedProgram:
    """The operations of torch's library, without writing in place, that `model` runs on tensors of these shapes.

    Raises Unsupported.
    """
    example = tuple(torch.zeros(tensor.shape, dtype=torch.float64) for tensor in arguments.values())
    try:
        with _quiet():
            return torch.export.export(model, example, strict=False).run_decompositions({})
    except Exception as error:
        raise Unsupported(
            f"torch.export cannot capture {type(model).__name__}: {_first_line(error)}; rewrite that part, or "
            + LOWER_WHOLE
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.export warns and logs at length; what it cannot do is in the error it raises."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    lines = (" ".join(line.split()) for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


@contextmanager
def no_random_numbers(model_name: str) -> Iterator[None]:
    """Raise Unsupported if random numbers are drawn: they would be constants of the function."""
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
        drawn = not torch.equal(torch_state, torch.get_rng_state()) or python_state != random.getstate()
        if drawn or repr(numpy_state) != repr(np.random.get_state()):
            raise Unsupported(f"{model_name}.forward draws random numbers: a function has none")
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
