"""An interpreter that lowers each operation of a graph that `torch.fx` recorded."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

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
from parity.converters.torch_casadi.in_place import FxFailure, same_tensors, writes_in_place
from parity.converters.torch_casadi.parameters import symbol_of
from parity.converters.torch_casadi.tensor import Tensor
from parity.errors import Unsupported

NUMPY_NAMES = {"axis": "dim", "keepdims": "keepdim"}
SIZES = frozenset(("dims", "shape", "size", "sizes"))
"""Arguments that lowerings take as `*sizes`."""
READ_WEIGHTS = (
    "with weights='parameter' they are symbols, which a lowering reads with "
    "parity.converters.torch_casadi.parameters.weights"
)
RANDOM = frozenset((
    "rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson", "rand_like",
    "randn_like", "randint_like", "uniform", "exponential", "gumbel_softmax", "rrelu", "native_dropout"
))  # fmt: skip


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
        value = super().get_attr(target, args, kwargs)
        return symbol_of(value) or _double(value)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        layer = self.submodules[target]
        kind, name = type(layer), f"{target!r}" if target else "the model itself"
        called = f"{' '.join(repr(layer).split())} ({name})"
        if not has_tensor((args, kwargs)):
            return _double(layer(*args, **kwargs))
        if layer.training and _depends_on_training(layer):
            raise Unsupported(f"{called} is in train mode: call model.eval() before converting")
        if layer._forward_hooks or layer._forward_pre_hooks:
            raise FxFailure(f"{called} has forward hooks, which have no lowering: remove them before converting")
        lowering = find_lowering(kind, "casadi")
        if lowering is None:
            raise FxFailure(_no_lowering(called, kind.__name__))
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
        if has_tensor((args, kwargs)):
            return self._lower(lowering, called, _expression(self.node), *_usual(args, kwargs))
        return _double(compute(*args, **kwargs))

    def _lower(self, lowering: Any, called: str, operator_name: str, args: Any, kwargs: Any) -> Any:
        leaves = pytree.tree_leaves((args, kwargs), is_leaf=lambda value: isinstance(value, Extreme))
        if any(isinstance(leaf, Indices) for leaf in leaves):
            raise Unsupported(f"{called} uses the indices of a maximum or minimum, which are no smooth function")
        if lowering is None:
            raise Unsupported(_no_lowering(called, operator_name))
        dtypes = [leaf for leaf in leaves if isinstance(leaf, torch.dtype) and not leaf.is_floating_point]
        if dtypes:
            raise Unsupported(f"{called}: a cast to {dtypes[0]}, but only floating types have a lowering")
        args, kwargs = pytree.tree_map(array_of, (args, kwargs))
        try:
            inspect.signature(lowering).bind(*args, **kwargs)
        except TypeError as error:
            raise Unsupported(f"{called} is called with arguments that have no lowering: {error}") from None
        try:
            return _double(lowering(*args, **kwargs))
        except Unsupported as error:
            raise Unsupported(f"{called}: {error}") from error
        except (TypeError, NotImplementedError) as error:
            if "meta" not in str(error):
                raise
            raise Unsupported(f"{called} reads its weights as numbers: {READ_WEIGHTS}") from error


def _no_lowering(called: str, operator_name: str) -> str:
    return f'{called} has no lowering: write one with @parity.lowers({operator_name}, to="casadi")'


def has_tensor(value: Any) -> bool:
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


def array_of(leaf: Any) -> Any:
    """A constant tensor as an array, for lowerings; everything else as it is."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    if leaf.is_meta:
        raise Unsupported(f"a layer without inputs computes with its weights: {READ_WEIGHTS}")
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
    if isinstance(layer, torch.nn.modules.dropout._DropoutNd):
        return layer.p > 0
    kinds = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.RReLU)
    rates = [getattr(part, name, 0) for part in layer.modules() for name in ("dropout", "dropout_p")]
    return isinstance(layer, kinds) or any(isinstance(rate, float) and rate > 0 for rate in rates)
