"""From a torch module to a CasADi function: `torch.fx` records the operations, an interpreter lowers each of them."""

from __future__ import annotations

import copy
import inspect
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
    attention,
    convolution,
    linear,
    normalization,
    pooling,
    recurrent,
    shape,
)
from parity.converters.torch_casadi.arithmetic import Extreme, Indices
from parity.converters.torch_casadi.derivatives import Expressions, with_derivatives
from parity.converters.torch_casadi.in_place import IN_PLACE, same_tensors, writes_in_place
from parity.converters.torch_casadi.tensor import Tensor
from parity.errors import Unsupported

NUMPY_NAMES = {"axis": "dim", "keepdims": "keepdim"}
SIZES = frozenset(("dims", "shape", "size", "sizes"))
"""Arguments that lowerings take as `*sizes`."""
RANDOM = frozenset((
    "rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson", "rand_like",
    "randn_like", "randint_like", "uniform", "exponential", "gumbel_softmax", "rrelu"
))  # fmt: skip


def convert(model: torch.nn.Module, example: tuple[torch.Tensor, ...], name: str) -> casadi.Function:
    """The CasADi function of `model`: see `parity.converters.torch_casadi.reference`."""
    arguments = _arguments(model, example)
    model = copy.deepcopy(model).double().cpu().requires_grad_(False)
    graph = capture(model, arguments)
    symbols = [
        casadi.MX.sym(argument if casadi.Function.check_name(argument) else f"x{number}", tensor.numel())
        for number, (argument, tensor) in enumerate(arguments.items())
    ]
    inputs = [Tensor(symbol, tuple(tensor.shape)) for symbol, tensor in zip(symbols, arguments.values(), strict=True)]
    result = Lowering(model, graph).run(*inputs, enable_io_processing=False)
    leaves = [_array(leaf) for leaf in pytree.tree_leaves(result)]
    if not leaves or not all(isinstance(leaf, Tensor | np.ndarray) for leaf in leaves):
        kinds = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or "nothing"
        raise Unsupported(f"{type(model).__name__} returns {kinds}: a function's outputs are tensors")
    return with_derivatives(Expressions(
        name,
        symbols,
        [symbol.name() for symbol in symbols],
        [Tensor.of(leaf).data for leaf in leaves],
        ["y"] if len(leaves) == 1 else [f"y{number}" for number in range(len(leaves))],
    ))


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
        if hasattr(m, "parametrizations"):
            return False  # its weights are computed on access, which tracing records
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
        graph = tracer.trace(model, concrete_args=defaults or None)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise Unsupported(
            f"torch.fx cannot trace {type(model).__name__}: {reason[0]}; rewrite that part, or put it in a module of "
            'its own and lower it whole with @parity.lowers(<Type>, to="casadi")'
        ) from error
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target.__name__ in ("_assert", "_assert_is_none"):
            graph.erase_node(node)  # fx checks with them that the defaults are what it was given
    return graph


class Lowering(torch.fx.Interpreter):
    """Runs a graph on symbolic tensors. What does not depend on the inputs is computed by torch itself, in float64."""

    def __init__(self, model: torch.nn.Module, graph: torch.fx.Graph) -> None:
        super().__init__(model, graph=graph)
        self.extra_traceback = False  # fx would add lines to our one-line messages
        self.node: torch.fx.Node
        self.same = same_tensors(graph, self.submodules)

    def run_node(self, n: torch.fx.Node) -> Any:
        self.node = n
        result = super().run_node(n)
        for other in self.same[n] if writes_in_place(n, self.submodules) else ():
            if other in self.env:
                self.env[other] = result  # whoever reads it from now on sees what was written
        return result

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return _double(super().get_attr(target, args, kwargs))

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        layer = self.submodules[target]
        kind, name = type(layer), f"{target!r}" if target else "the model itself"
        called = f"{' '.join(repr(layer).split())} ({name})"
        if not _has_tensor((args, kwargs)):
            return _double(layer(*args, **kwargs))
        if layer.training and _depends_on_training(layer):
            raise Unsupported(f"{called} is in train mode: call model.eval() before converting")
        if layer._forward_hooks or layer._forward_pre_hooks:
            raise Unsupported(f"{called} has forward hooks, which have no lowering: remove them before converting")
        lowering = find_lowering(kind, "casadi")
        return self._lower(lowering, called, kind.__name__, (layer, *args), kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        name = f"{(target.__module__ or 'torch').removeprefix('_')}.{target.__name__}"
        return self._call(find_lowering(target, "casadi"), target, name, args, kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        def compute(receiver: Any, *others: Any, **options: Any) -> Any:
            return getattr(receiver, target)(*others, **options)

        in_place = target.endswith("_") and not target.endswith("__")
        lowering = find_lowering(target.removesuffix("_") if in_place else target, "casadi")
        return self._call(lowering, compute, f"Tensor.{target}", args, kwargs)

    def _call(self, lowering: Any, compute: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        called = f"{name} (node {self.node.name!r}: {_written(self.node)})"
        if name.rpartition(".")[2].removesuffix("_") in RANDOM:
            raise Unsupported(f"{called} draws random numbers: a function has none")
        if _has_tensor((args, kwargs)):
            return self._lower(lowering, called, _expression(self.node), *_usual(args, kwargs))
        return _double(compute(*args, **kwargs))

    def _lower(self, lowering: Any, called: str, operator_name: str, args: Any, kwargs: Any) -> Any:
        leaves = pytree.tree_leaves((args, kwargs), is_leaf=lambda value: isinstance(value, Extreme))
        if any(isinstance(leaf, Indices) for leaf in leaves):
            raise Unsupported(f"{called} uses the indices of a maximum or minimum, which are no smooth function")
        if lowering is None:
            raise Unsupported(f'{called} has no lowering: write one with @parity.lowers({operator_name}, to="casadi")')
        args, kwargs = pytree.tree_map(_array, (args, kwargs))
        try:
            inspect.signature(lowering).bind(*args, **kwargs)
        except TypeError as error:
            raise Unsupported(f"{called} is called with arguments that have no lowering: {error}") from None
        try:
            return _double(lowering(*args, **kwargs))
        except Unsupported as error:
            raise Unsupported(f"{called}: {error}") from error


def _has_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor | Indices) for leaf in pytree.tree_leaves(value))


def _usual(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """A call by the names that lowerings use: torch takes NumPy's as well, and its first argument by name."""
    named = {NUMPY_NAMES.get(name, name): value for name, value in kwargs.items()}
    if named.get("out", 0) is None:
        del named["out"]  # fx writes the default out
    if not args and "input" in named:
        args = (named.pop("input"),)
    if len(args) == 1 and len(named) == 1 and not SIZES.isdisjoint(named):
        args, named = (*args, *named.values()), {}
    return args, named


def _array(leaf: Any) -> Any:
    """A constant tensor as an array, for lowerings; everything else as it is."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return (leaf.double() if leaf.is_floating_point() else leaf).detach().cpu().numpy()


def _double(value: Any) -> Any:
    """Constants as torch has them, in float64."""

    def convert_leaf(leaf: Any) -> Any:
        leaf = torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf
        return leaf.double() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf

    return pytree.tree_map(convert_leaf, value)


def _written(node: torch.fx.Node) -> str:
    """The call's arguments, nodes by name."""
    arguments = [*map(repr, node.args), *(f"{name}={value!r}" for name, value in node.kwargs.items())]
    return f"({', '.join(arguments)})"


def _expression(node: torch.fx.Node) -> str:
    """What a user writes in `@lowers` for the node's operator."""
    if isinstance(node.target, str):
        return repr(node.target)
    return f"{(node.target.__module__ or 'torch').removeprefix('_')}.{node.target.__name__}"


def _depends_on_training(layer: torch.nn.Module) -> bool:
    if isinstance(layer, torch.nn.modules.instancenorm._InstanceNorm):
        return layer.track_running_stats
    kinds = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.modules.dropout._DropoutNd, torch.nn.RReLU)
    rates = [getattr(part, name, 0) for part in layer.modules() for name in ("dropout", "dropout_p")]
    return isinstance(layer, kinds) or any(isinstance(rate, float) and rate > 0 for rate in rates)
