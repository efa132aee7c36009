"""The network as an external function: the solver calls torch, in float64, for values and for exact derivatives."""

from __future__ import annotations

import copy
from typing import Any

import casadi
import numpy as np
import torch

from parity.converters.torch_optimization.capture import Box, box_of
from parity.embedding import CasadiEmbedding, Label, Size, activation_error

KINKED = (
    "ReLU", "LeakyReLU", "PReLU", "ReLU6", "Hardtanh", "ELU", "CELU", "MaxPool1d", "MaxPool2d", "AdaptiveMaxPool2d",
    "Hardsigmoid", "Hardswish", "Threshold", "Softshrink", "Hardshrink"
)  # fmt: skip


def gray_box(
    model: torch.nn.Module, example: tuple[torch.Tensor, ...], *, box: Box, time_limit: float
) -> CasadiEmbedding:
    """An embedding whose only variables are the inputs."""
    lower, upper = box_of(example, box)
    model = copy.deepcopy(model).double().cpu().eval().requires_grad_(False)
    network = Network(model, example)
    symbol = casadi.MX.sym("variables", len(lower))
    y = network(symbol)
    empty = np.empty(0)
    names = {type(part).__name__ for part in model.modules()}
    return CasadiEmbedding(
        lower=lower,
        upper=upper,
        outputs=network.outputs,
        solver="ipopt",
        local=True,
        kinks=not names.isdisjoint(KINKED),
        error=activation_error(),
        time_limit=time_limit,
        size=Size(len(lower), 0, 0),
        function=casadi.Function("network", [symbol], [y], ["x"], ["y"]),
        model=casadi.Function("model", [symbol], [casadi.MX(0, 1), y], ["variables"], ["rows", "y"]),
        bounds=(lower, upper),
        row_bounds=(empty, empty),
        integer=np.zeros(len(lower), dtype=bool),
        labels=[Label("input", "x")] * len(lower),
        keep=network,
    )


class _External(casadi.Callback):
    """A callback of flat vectors that keeps the callbacks of its derivatives alive."""

    def __init__(self, name: str, function: Any, sizes_in: tuple[Any, ...], sizes_out: tuple[Any, ...]) -> None:
        casadi.Callback.__init__(self)
        self.function, self.sizes_in, self.sizes_out = function, sizes_in, sizes_out
        self.derivatives: list[Any] = []
        self.construct(name, {})

    def get_n_in(self) -> int:
        return len(self.sizes_in)

    def get_n_out(self) -> int:
        return len(self.sizes_out)

    def get_sparsity_in(self, index: int) -> casadi.Sparsity:
        return casadi.Sparsity.dense(*self.sizes_in[index])

    def get_sparsity_out(self, index: int) -> casadi.Sparsity:
        return casadi.Sparsity.dense(*self.sizes_out[index])

    def eval(self, arg: Any) -> list[Any]:
        return [casadi.DM(result) for result in self.function(*(np.asarray(each.full()) for each in arg))]


class Network(_External):
    """x ↦ y by torch, with its Jacobian and, as the Jacobian's Jacobian, second derivatives by `torch.func`."""

    def __init__(self, model: torch.nn.Module, example: tuple[torch.Tensor, ...]) -> None:
        shapes = [tuple(tensor.shape) for tensor in example]
        lengths = [tensor.numel() for tensor in example]

        def flat(x: torch.Tensor) -> torch.Tensor:
            parts = x.split(lengths)
            return torch.as_tensor(
                model(*(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)))
            ).flatten()

        self.flat = flat
        self.jacobian_of = torch.func.jacrev(flat)
        self.second = torch.func.jacrev(self.jacobian_of)
        self.inputs = sum(lengths)
        with torch.no_grad():
            self.outputs = flat(torch.zeros(self.inputs, dtype=torch.float64)).numel()
        super().__init__("network", self._value, ((self.inputs, 1),), ((self.outputs, 1),))

    def _value(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        with torch.no_grad():
            return (self.flat(torch.from_numpy(x.ravel())).numpy(),)

    def has_jacobian(self) -> bool:
        return True

    def get_jacobian(self, name: str, inames: Any, onames: Any, opts: Any) -> casadi.Function:
        n, m = self.inputs, self.outputs

        def jacobian(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
            return (self.jacobian_of(torch.from_numpy(x.ravel())).numpy(),)

        def second(x: np.ndarray, y: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, ...]:
            tensor = self.second(torch.from_numpy(x.ravel())).numpy()  # (m, n, n); CasADi's matrices are column-major
            return tensor.transpose(1, 0, 2).reshape(m * n, n), np.zeros((m * n, m))

        of_jacobian = _External(f"jac_{name}", second, ((n, 1), (m, 1), (m, n)), ((m * n, n), (m * n, m)))
        whole = _WithJacobian(name, jacobian, ((n, 1), (m, 1)), ((m, n),), of_jacobian)
        self.derivatives.append(whole)
        return whole


class _WithJacobian(_External):
    def __init__(self, name: str, function: Any, sizes_in: Any, sizes_out: Any, jacobian: casadi.Function) -> None:
        self.own_jacobian = jacobian
        super().__init__(name, function, sizes_in, sizes_out)

    def has_jacobian(self) -> bool:
        return True

    def get_jacobian(self, name: str, inames: Any, onames: Any, opts: Any) -> casadi.Function:
        return self.own_jacobian
