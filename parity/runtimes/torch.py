"""Executes `torch.nn.Module`s: the reference in float64, or a converted module in its own precision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np
import torch
import torch.fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from parity.errors import ParityError
from parity.runtimes import Arrays
from parity.runtimes.rounding import rounding

DTYPES = {"float64": torch.float64, "float32": torch.float32}


class TorchRuntime:
    """A copy of the module, in eval mode, on the CPU, in `dtype` (by default the precision of its parameters)."""

    representation = "torch"

    def __init__(self, model: torch.nn.Module, dtype: str | None = None) -> None:
        self.dtype = dtype or _dtype_of(model)
        self.model = copy.deepcopy(model).to("cpu", DTYPES[self.dtype]).eval()
        self.trainable = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        self.model.requires_grad_(False)

    @property
    def artifact_bytes(self) -> int:
        """Size of the weights."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.model.state_dict().values())

    def validate(self, inputs: Arrays) -> None:
        """Raise `ParityError` for what no comparison can judge: NaN weights, inputs that the model does not take."""
        for name, tensor in self.model.state_dict().items():
            if bad := int((~torch.isfinite(tensor)).sum()):
                raise ParityError(f"weights {name!r} hold {bad} NaN or infinite element(s): mend the model first")
        shapes = ", ".join(str(array.shape) for array in inputs)
        for number, array in enumerate(inputs):
            if not np.issubdtype(array.dtype, np.floating):
                raise ParityError(f"input {number} is of dtype {array.dtype}: give floating-point inputs")
        try:
            self.value(inputs)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ParityError(f"the source model does not run on inputs of shape {shapes}: {reason}") from error

    def value(self, inputs: Arrays) -> np.ndarray:
        with torch.no_grad():
            outputs = self._outputs(*self._tensors(inputs))
        batch = inputs[0].shape[0]
        return np.concatenate([_float64(output).reshape(batch, -1) for output in outputs], axis=1)

    def jacobian(self, inputs: Arrays) -> np.ndarray:
        tensors = self._tensors(inputs)
        return _float64(self._jacobian(tensors))

    def hessian(self, inputs: Arrays, projection: np.ndarray) -> np.ndarray:
        tensors = self._tensors(inputs)
        return _float64(self._hessian(tensors, torch.from_numpy(projection).to(DTYPES[self.dtype])))

    def vjp(self, inputs: Arrays, cotangent: np.ndarray) -> np.ndarray:
        gradients = self._gradients(self._tensors(inputs), torch.from_numpy(cotangent).to(DTYPES[self.dtype]))
        return _float64(torch.cat([gradient.flatten(1) for gradient in gradients], dim=1))

    def structure(self) -> dict[str, int]:
        trained = {id(self.model.get_parameter(name)) for name in self.trainable}
        kept = {id(tensor): tensor for tensor in self.model.state_dict(keep_vars=True).values()}
        counts = {"trainable": 0, "other": 0}
        for identity, tensor in kept.items():
            if tensor.is_floating_point():  # counters of batches are no part of the function
                counts["trainable" if identity in trained else "other"] += tensor.numel()
        return counts

    def trained_value(self, inputs: Arrays, cotangent: np.ndarray) -> np.ndarray:
        stepped = TorchRuntime(self.model, self.dtype)
        parameters = [stepped.model.get_parameter(name).requires_grad_() for name in self.trainable]
        stepped.model.train()
        outputs = stepped._outputs(*stepped._tensors(inputs))
        flat = torch.cat([output.flatten(1) for output in outputs], dim=1)
        if parameters and flat.requires_grad:
            weights = torch.from_numpy(cotangent).to(flat.dtype)
            gradients = torch.autograd.grad(flat, parameters, weights, materialize_grads=True)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter -= gradient
        stepped.model.eval()
        return stepped.value(inputs)

    def rounding(self, dtype: str, seed: int) -> AbstractContextManager[float]:
        return rounding(dtype, seed)

    def example(self, inputs: Arrays) -> tuple[torch.Tensor, ...]:
        return self._tensors(inputs)

    def prefixes(self, inputs: Arrays) -> Iterator[tuple[str, torch.nn.Module]]:
        """The model up to each of its operations, shortest first, as `torch.fx` records them; none if it cannot."""
        try:
            traced = torch.fx.symbolic_trace(self.model)
        except Exception:  # control flow that depends on data, and the like: the model's own code ran
            return
        values = _Values(traced)
        values.run(*self._tensors(inputs))
        for node in traced.graph.nodes:
            if node.op not in ("placeholder", "output", "get_attr") and node in values.tensors:
                yield _name_of(node), _up_to(traced, node)

    def remark(self, layer: str) -> str:
        return ""

    def caller(self, check: str, inputs: Arrays, projection: np.ndarray) -> Callable[[], object]:
        tensors = self._tensors(inputs)
        weights = torch.from_numpy(projection).to(DTYPES[self.dtype])
        if check == "jacobian":
            return lambda: self._jacobian(tensors)
        if check == "hessian":
            return lambda: self._hessian(tensors, weights)
        if check == "vjp":
            return lambda: self._gradients(tensors, weights.expand(len(tensors[0]), -1))
        model = self.model

        def forward() -> object:
            with torch.inference_mode():
                return model(*tensors)

        return forward

    def caller_description(self, check: str) -> str:
        calls = {"value": "eager forward", "jacobian": "func.jacrev", "hessian": "func.jacrev of grad"}
        return f"torch {calls.get(check, 'autograd.grad')}, {self.dtype}, {torch.get_num_threads()} thread(s)"

    def _tensors(self, inputs: Arrays) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(np.array(array)).to(DTYPES[self.dtype]) for array in inputs)

    def _outputs(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.model(*tensors)
        if isinstance(outputs, dict):
            return tuple(outputs[key] for key in sorted(outputs))
        return (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)

    def _flat(self, *tensors: torch.Tensor) -> torch.Tensor:
        return torch.cat([output.flatten() for output in self._outputs(*tensors)])

    def _gradients(self, tensors: tuple[torch.Tensor, ...], cotangent: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves = tuple(tensor.detach().requires_grad_() for tensor in tensors)
        with _Differentiable():
            flat = torch.cat([output.flatten(1) for output in self._outputs(*leaves)], dim=1)
        if not flat.requires_grad:  # a constant
            return tuple(torch.zeros_like(leaf) for leaf in leaves)
        return torch.autograd.grad(flat, leaves, cotangent, materialize_grads=True)

    def _jacobian(self, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        with _Differentiable():
            blocks = _rows(self._flat, tensors)
        return torch.cat([block.flatten(1) for block in blocks], dim=1)

    def _hessian(self, tensors: tuple[torch.Tensor, ...], projection: torch.Tensor) -> torch.Tensor:
        sizes = [tensor.numel() for tensor in tensors]

        def projected(flat: torch.Tensor) -> torch.Tensor:
            parts = flat.split(sizes)
            shaped = [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
            return self._flat(*shaped) @ projection

        with _Differentiable(), sdpa_kernel(SDPBackend.MATH):
            return _rows(torch.func.grad(projected), (torch.cat([tensor.flatten() for tensor in tensors]),))[0]


def _rows(function: Callable[..., torch.Tensor], tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Derivatives of the function's elements by each tensor: all at once, or one by one where torch cannot batch.

    (The second derivative of GroupNorm without affine parameters cannot be batched in torch 2.13, for one.)
    """
    arguments = tuple(range(len(tensors)))
    try:
        return torch.func.jacrev(function, argnums=arguments)(*tensors)
    except RuntimeError:
        return torch.func.jacrev(function, argnums=arguments, chunk_size=1)(*tensors)


class _Differentiable(TorchFunctionMode):
    """Replaces what torch itself differentiates wrongly, or only once, by the same function in other terms.

    The backward kernel of hardsigmoid has 1/6 rounded to float32 even for float64 (off by 3e-8 relative, torch 2.13),
    and no derivative of its own.
    """

    REPLACEMENTS: ClassVar = {torch.nn.functional.hardsigmoid: lambda x, inplace=False: (x + 3).clamp(0, 6) / 6}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.REPLACEMENTS.get(func, func)(*args, **(kwargs or {}))


class _Values(torch.fx.Interpreter):
    """Runs a graph and notes which of its nodes give a floating-point tensor."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.tensors: set[torch.fx.Node] = set()

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            self.tensors.add(n)
        return value


def _name_of(node: torch.fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _up_to(traced: torch.fx.GraphModule, last: torch.fx.Node) -> torch.fx.GraphModule:
    graph = torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in traced.graph.nodes:
        if node.op != "output":
            copies[node] = graph.node_copy(node, lambda source: copies[source])
        if node is last:
            break
    for node in traced.graph.nodes:
        if node.op == "placeholder" and node not in copies:
            copies[node] = graph.node_copy(node, lambda source: copies[source])
    graph.output(copies[last])
    return torch.fx.GraphModule(traced, graph)


def _dtype_of(model: torch.nn.Module) -> str:
    parameter = next(model.parameters(), None)
    return "float64" if parameter is not None and parameter.dtype == torch.float64 else "float32"


def _float64(tensor: torch.Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().to(torch.float64).numpy())
