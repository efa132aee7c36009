"""Writes a program in CasADi's terms: matrices stay sparse, so that building is quick for wide layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import casadi
import numpy as np
import scipy.sparse as sp

from parity.converters.torch_optimization import expressions as ex
from parity.converters.torch_optimization.expressions import Expression
from parity.converters.torch_optimization.program import Program
from parity.embedding import CasadiEmbedding, Label, Size
from parity.errors import Unsupported

GLOBAL = ("highs", "cbc")
"""Conic solvers: linear programs with integers. The others, nonlinear ones, stop at a local optimum."""


def to_casadi(program: Program, solver: str | None, time_limit: float) -> CasadiEmbedding:
    """The program as functions of one vector of variables, with a solver that takes what is in it."""
    total = sum(variable.size for variable in program.variables)
    symbol = casadi.MX.sym("variables", total)
    ends = np.cumsum([variable.size for variable in program.variables])
    blocks = [symbol[int(end) - each.size : int(end)] for end, each in zip(ends, program.variables, strict=True)]
    known: dict[Expression, Any] = dict(zip(program.variables, blocks, strict=True))
    rows = casadi.vertcat(*(ex.write(each.expression, Symbols(), known) for each in program.constraints))
    y = ex.write(program.output, Symbols(), known)
    chosen = solver or _solver(program)
    return CasadiEmbedding(
        lower=program.variables[0].lower,
        upper=program.variables[0].upper,
        outputs=program.output.size,
        solver=chosen,
        local=chosen not in GLOBAL,
        kinks=program.kinks or program.error > 1e-6 or bool(program.pairs),
        error=program.error,
        time_limit=time_limit,
        size=size_of(program),
        function=_function(program),
        model=casadi.Function("model", [symbol], [rows, y], ["variables"], ["rows", "y"]),
        bounds=_joined((each.lower, each.upper) for each in program.variables),
        row_bounds=_joined((each.lower, each.upper) for each in program.constraints),
        integer=np.concatenate([np.full(each.size, each.integer) for each in program.variables]),
        sets=_sets(program),
        linear=program.linear,
        labels=labels_of(program.variables),
        row_labels=labels_of(program.constraints),
        assign=program.assign,
    )


def _solver(program: Program) -> str:
    if program.linear:
        return "cbc" if program.pairs else "highs"
    if program.pairs:
        raise Unsupported("no solver of CasADi takes special ordered sets beside nonlinear layers: choose another "
                          "formulation, or a pyomo converter")  # fmt: skip
    return "bonmin" if program.integer else "ipopt"


def _function(program: Program) -> casadi.Function:
    x = casadi.MX.sym("x", program.variables[0].size)
    known: dict[Expression, Any] = {program.variables[0]: x}
    for variable in program.variables[1:]:
        if not variable.integer and variable.witness is not None:
            known[variable] = ex.write(variable.witness, Symbols(), known)
    return casadi.Function("network", [x], [ex.write(program.output, Symbols(), known)], ["x"], ["y"])


def size_of(program: Program) -> Size:
    """The model's size in scalars; the inputs count as variables."""
    branched = sum(each.size for each in program.variables if each.integer) + sum(
        each.first.size for each in program.pairs
    )
    return Size(
        sum(each.size for each in program.variables),
        sum(each.expression.size for each in program.constraints),
        branched,
    )


def labels_of(blocks: Any) -> tuple[Label, ...]:
    """A label for every scalar of variables or constraints."""
    sizes = [getattr(block, "size", None) or block.expression.size for block in blocks]
    return tuple(Label(block.layer, block.name) for block, size in zip(blocks, sizes, strict=True) for _ in range(size))


def _joined(bounds: Any) -> tuple[np.ndarray, np.ndarray]:
    pairs = list(bounds)
    return tuple(np.concatenate(side) if pairs else np.empty(0) for side in zip(*pairs, strict=True)) or (
        np.empty(0), np.empty(0),
    )  # type: ignore[return-value]  # fmt: skip


def _sets(program: Program) -> tuple[tuple[int, ...], ...]:
    starts, start = {}, 0
    for variable in program.variables:
        starts[variable] = start
        start += variable.size
    return tuple(
        (starts[pair.first] + index, starts[pair.second] + index)
        for pair in program.pairs
        for index in range(pair.first.size)
    )


class Symbols:
    """CasADi's language. Both branches of `if_else` are differentiated, so arguments are held where they overflow."""

    def affine(self, matrix: sp.csr_array, operand: Any, offset: np.ndarray) -> Any:
        rows, columns = matrix.shape
        if not matrix.nnz:
            return casadi.MX(casadi.DM(offset))
        whole = sp.csc_array(matrix)
        whole.sort_indices()
        pattern = casadi.Sparsity(rows, columns, whole.indptr.tolist(), whole.indices.tolist())
        product = casadi.mtimes(casadi.DM(pattern, whole.data), operand)
        return casadi.densify(product) + casadi.DM(offset) if offset.any() else casadi.densify(product)

    def combination(self, kind: str, parts: list[Any]) -> Any:
        if kind == "stack":
            return casadi.vertcat(*parts)
        result = parts[0]
        for part in parts[1:]:
            result = COMBINATIONS[kind](result, part)
        return result

    def apply(self, function: str, operand: Any, parameters: tuple[float, ...], bounds: Expression) -> Any:
        return FUNCTIONS[function](operand, *parameters)

    def softmax(self, operand: Any, groups: tuple[tuple[int, ...], ...]) -> Any:
        parts: list[Any] = [None] * operand.numel()
        for group in groups:
            elements = [operand[index] for index in group]
            largest = elements[0]
            for element in elements[1:]:  # any shift gives the same function: its own derivative cancels
                largest = casadi.fmax(largest, element)
            powers = [casadi.exp(element - largest) for element in elements]
            total = casadi.sum1(casadi.vertcat(*powers))
            for index, power in zip(group, powers, strict=True):
                parts[index] = power / total
        return casadi.vertcat(*parts)


COMBINATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "sum": lambda a, b: a + b,
    "product": lambda a, b: a * b,
    "quotient": lambda a, b: a / b,
    "maximum": lambda a, b: casadi.if_else(b > a, b, a),  # the first of equals, as in torch
}


def _sigmoid(u: Any) -> Any:
    decay = casadi.exp(casadi.if_else(u < 0, u, -u))  # never grows; slope of one side at 0, unlike |u|
    return casadi.if_else(u < 0, decay, 1) / (1 + decay)


def _softplus(u: Any, beta: float, threshold: float) -> Any:
    highest = min(threshold, 700.0)  # from 37 on both branches are u; from 710 on exp is infinite
    curved = casadi.log1p(casadi.exp(casadi.fmin(beta * u, highest + 1))) / beta
    return casadi.if_else(beta * u > highest, u, curved)


def _elu(u: Any, alpha: float) -> Any:
    return casadi.if_else(u > 0, u, alpha * casadi.expm1(casadi.fmin(u, 1)))


def _clip(u: Any, low: float, high: float) -> Any:
    return casadi.if_else(u <= low, low, casadi.if_else(u >= high, high, u))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": casadi.exp,
    "log": casadi.log,
    "sqrt": casadi.sqrt,
    "tanh": casadi.tanh,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "gelu": lambda u: 0.5 * u * (1 + casadi.erf(u * math.sqrt(0.5))),
    "gelu_tanh": lambda u: 0.5 * u * (1 + casadi.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u * u * u))),
    "silu": lambda u: u * _sigmoid(u),
    "elu": _elu,
    "relu": lambda u: casadi.if_else(u > 0, u, 0),
    "leaky_relu": lambda u, slope: casadi.if_else(u > 0, u, slope * u),
    "clip": _clip,
    "smooth_relu": lambda u, epsilon: 0.5 * (u + casadi.sqrt(u * u + epsilon * epsilon)),
}
