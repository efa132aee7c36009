"""Executes `casadi.Function`s. CasADi computes in float64 and differentiates by its own algorithmic differentiation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import casadi
import numpy as np

from parity.errors import Unsupported
from parity.runtimes import Arrays


class CasadiRuntime:
    """A function of column vectors: each input one sample flattened in row-major order, each output likewise.

    A batch is evaluated column by column, which is what CasADi does with a matrix where a vector is expected. A
    function whose inputs are as long as the whole batch gets the batch in one column.
    """

    representation = "casadi"

    def __init__(self, function: casadi.Function, dtype: str | None = None) -> None:
        self.function = function
        self.dtype = dtype or "float64"

    @property
    def artifact_bytes(self) -> int:
        """Size of the function as CasADi serialises it."""
        return len(self.function.serialize())

    def value(self, inputs: Arrays) -> np.ndarray:
        results = self.function.call([casadi.DM(column) for column in self._columns(inputs)])
        return np.concatenate([_dense(result).T.reshape(inputs[0].shape[0], -1) for result in results], axis=1)

    def jacobian(self, inputs: Arrays) -> np.ndarray:
        return _dense(self._jacobian_function(*self._columns(inputs)))

    def hessian(self, inputs: Arrays, projection: np.ndarray) -> np.ndarray:
        return _dense(self._hessian_function(*self._columns(inputs), projection))

    def caller(self, check: str, inputs: Arrays, projection: np.ndarray) -> Callable[[], object]:
        """Evaluation on preallocated buffers (`Function.buffer`), as a solver calls it, without numpy↔DM copies."""
        columns = list(self._columns(inputs))
        function = self.function
        if check == "jacobian":
            function = self._jacobian_function
        elif check == "hessian":
            function, columns = self._hessian_function, [*columns, projection]
        buffer: Any
        buffer, evaluate = function.buffer()
        results = [np.zeros(function.nnz_out(index)) for index in range(function.n_out())]
        arguments = [np.ascontiguousarray(column, dtype=np.float64).ravel() for column in columns]
        for index, array in enumerate(arguments):
            buffer.set_arg(index, array.data)
        for index, array in enumerate(results):
            buffer.set_res(index, array.data)

        def call(_keep: object = (buffer, arguments, results)) -> None:
            evaluate()

        return call

    def caller_description(self, check: str) -> str:
        return f"casadi {check} on preallocated buffers, float64"

    def _columns(self, inputs: Arrays) -> tuple[np.ndarray, ...]:
        return tuple(
            np.asarray(array, np.float64).reshape(-1, self.function.size1_in(index)).T
            for index, array in enumerate(inputs)
        )

    def _symbols(self) -> tuple[list[casadi.MX], casadi.MX]:
        symbols = [
            casadi.MX.sym(self.function.name_in(index), self.function.sparsity_in(index))
            for index in range(self.function.n_in())
        ]
        return symbols, casadi.vertcat(*(casadi.vec(output) for output in self.function.call(symbols)))

    @cached_property
    def _jacobian_function(self) -> casadi.Function:
        symbols, outputs = self._symbols()
        with _differentiating(self.function, "jacobian"):
            return casadi.Function("jacobian", symbols, [casadi.jacobian(outputs, casadi.vertcat(*symbols))])

    @cached_property
    def _hessian_function(self) -> casadi.Function:
        symbols, outputs = self._symbols()
        projection = casadi.MX.sym("projection", outputs.numel())
        with _differentiating(self.function, "hessian"):
            hessian, _ = casadi.hessian(casadi.dot(projection, outputs), casadi.vertcat(*symbols))
            return casadi.Function("hessian", [*symbols, projection], [hessian])


@contextmanager
def _differentiating(function: casadi.Function, check: str) -> Iterator[None]:
    """Raises `Unsupported` where CasADi says that a function, an external one say, comes without its derivative.

    A converter may leave the reason for it in the function's attribute `refusals`, an exception by check.
    """
    if refusal := getattr(function, "refusals", {}).get(check):
        raise refusal
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        if "Derivatives cannot be calculated" in reason:
            raise Unsupported(f"no {check}: {reason}") from error
        raise


def _dense(matrix: casadi.DM) -> np.ndarray:
    return np.asarray(casadi.densify(matrix).full())
