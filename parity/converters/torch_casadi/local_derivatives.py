"""The derivative of one operation of a CasADi graph by each of its operands.

`MX` graphs of networks are made of few kinds of operation: functions of elements, movements of elements, and products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import casadi
import numpy as np

from parity.converters.torch_casadi.products import multiply, transposed

Push = Callable[[casadi.MX], casadi.MX]
"""From a matrix of directions, a row for each and a column for each nonzero of a value, to that of another value."""
Jacobians = dict[tuple[int, int], casadi.MX | None]
"""By result and operand, over nonzeros; None for the identity. What is left out is zero."""


class NotDifferentiated(Exception):
    """An operation that is left to CasADi's own differentiation."""


@dataclass(frozen=True)
class Scaling:
    """A diagonal matrix, as a column; None for the identity."""

    factors: casadi.MX | None


@dataclass(frozen=True)
class Linear:
    """Any other matrix, by its products with directions (in rows, from the left) and, transposed, with adjoints."""

    push: Push
    pull: Push


Local = Scaling | Linear


def local_derivatives(node: casadi.MX, places: Sequence[int]) -> Iterator[tuple[int, int, Local]]:
    """The derivative of each result of `node` by each operand, among `places`, on which it depends, by their numbers.

    Raises NotDifferentiated.
    """
    if node.op() == casadi.OP_MTIMES:
        derivatives = (((0, place), _product_rule(node, place)) for place in places)
    elif node.is_unary() or node.is_binary():
        derivatives = (((0, place), local) for place, local in _elementwise(node))
    else:
        derivatives = ((pair, _linear(jacobian)) for pair, jacobian in _jacobians(node).items())
    for (result, place), local in derivatives:
        if place in places:
            yield result, place, local


def _linear(jacobian: casadi.MX | None) -> Local:
    if jacobian is None:
        return Scaling(None)
    return Linear(lambda push: multiply(push, transposed(jacobian)), lambda pull: multiply(pull, jacobian))


def _jacobians(node: casadi.MX) -> Jacobians:
    operator = node.op()
    operands = [node.dep(place) for place in range(node.n_dep())]
    if operator in (casadi.OP_RESHAPE, casadi.OP_SPARSITY_CAST):
        return {(0, 0): None}
    if operator == casadi.OP_DOT:
        return {(0, place): _nonzeros(operands[1 - place]).T for place in (0, 1)}
    if operator in (casadi.OP_SETNONZEROS, casadi.OP_ADDNONZEROS):
        return _assignment(node, operands)
    if operator == casadi.OP_HORZREPSUM:
        times = operands[0].shape[1] // node.shape[1]
        return {(0, 0): casadi.MX(casadi.repmat(casadi.DM.eye(node.nnz()), 1, times))}
    if operator == casadi.OP_GETNONZEROS:
        places = _places(node)
        read = np.flatnonzero(places >= 0)
        return {(0, 0): _selection(read, places[read], (places.size, operands[0].nnz()))}
    if operator == casadi.OP_TRANSPOSE and 1 in node.shape:
        return {(0, 0): None}
    if operator in MOVEMENTS:
        return _movement(node, operands, MOVEMENTS[operator])
    raise NotDifferentiated(f"operator {operator} of a CasADi graph")


def _nonzeros(x: casadi.MX) -> casadi.MX:
    return x if x.is_column() and x.is_dense() else casadi.vec(x) if x.is_dense() else x.nz[:]


# --- functions of elements --------------------------------------------------------------------------------------------


def _elementwise(node: casadi.MX) -> Iterator[tuple[int, Local]]:
    operands = [node.dep(place) for place in range(node.n_dep())]
    if any(operand.nnz() not in (1, node.nnz()) for operand in operands):
        raise NotDifferentiated(f"operator {node.op()} of matrices of different sparsity")
    function, constants = _partials(node.op(), tuple(operand.nnz() for operand in operands))
    partials = function.call([_nonzeros(operand) for operand in operands], True, False)
    for place, (operand, partial, constant) in enumerate(zip(operands, partials, constants, strict=True)):
        if constant == 0:
            continue
        if operand.nnz() != node.nnz():
            yield place, _linear(partial)  # a number, for all elements the same
        else:
            yield place, Scaling(None if constant == 1 else partial)


@cache
def _partials(operator: int, sizes: tuple[int, ...]) -> tuple[casadi.Function, list[float | None]]:
    """The derivative of the elementwise operator by each operand, and its number where that is a constant."""
    symbols = [casadi.MX.sym(f"x{place}", size) for place, size in enumerate(sizes)]
    result = (
        casadi.MX.unary(operator, symbols[0]) if len(sizes) == 1 else casadi.MX.binary(operator, symbols[0], symbols[1])
    )
    partials = [
        casadi.densify(casadi.jtimes(result, symbol, casadi.MX(casadi.DM.ones(symbol.shape)))) for symbol in symbols
    ]
    return casadi.Function("partials", symbols, partials), [_number(partial) for partial in partials]


def _number(partial: casadi.MX) -> float | None:
    if casadi.symvar(partial):
        return None
    values = np.unique(np.asarray(casadi.evalf(partial)))
    return float(values[0]) if values.size == 1 else None


# --- movements of elements --------------------------------------------------------------------------------------------


def _places(node: casadi.MX) -> np.ndarray:
    """What a node that reads or writes nonzeros by number (-1: none) says about them."""
    information = node.info()
    if "nz" in information:
        return np.asarray(information["nz"], dtype=int)
    outer, inner = (_range(information.get(name)) for name in ("outer", "inner"))
    return (outer[:, None] + inner).ravel() if "outer" in information else _range(information["slice"])


def _range(piece: Any) -> np.ndarray:
    return np.arange(piece["start"], piece["stop"], piece["step"]) if piece else np.zeros(1, dtype=int)


def _assignment(node: casadi.MX, operands: list[casadi.MX]) -> Jacobians:
    """The first operand with the second written, or added, at some places."""
    places, size = _places(node), node.nnz()
    kept = np.flatnonzero(places >= 0)
    written = _selection(places[kept], kept, (size, operands[1].nnz()))
    if node.op() == casadi.OP_ADDNONZEROS:
        return {(0, 0): None, (0, 1): written}
    if len(set(places[kept])) < len(kept):
        raise NotDifferentiated("writing twice to one place")
    left = np.setdiff1d(np.arange(size), places)
    return {(0, 1): written} | ({(0, 0): _selection(left, left, (size, size))} if left.size else {})


def _selection(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> casadi.MX | None:
    """The matrix of ones there."""
    if shape[0] == shape[1] == len(rows) and np.array_equal(rows, columns):
        return None
    return casadi.MX(casadi.DM.ones(casadi.Sparsity.triplet(*shape, rows.tolist(), columns.tolist())))


def _cut(node: casadi.MX, x: casadi.DM) -> list[casadi.DM]:
    """The offsets are counted in nonzeros, for CasADi splits matrices along columns, and columns along rows, only."""
    return [casadi.DM(part) for part in np.split(np.asarray(x.nonzeros()), node.info()["offset"][1:-1])]


MOVEMENTS: dict[int, Callable[..., list[Any]]] = {
    casadi.OP_TRANSPOSE: lambda node, x: [x.T],
    casadi.OP_PROJECT: lambda node, x: [casadi.DM(casadi.project(x, node.sparsity()))],
    casadi.OP_HORZREPMAT: lambda node, x: [casadi.DM(casadi.repmat(x, 1, node.shape[1] // x.shape[1]))],
    casadi.OP_HORZCAT: lambda node, *parts: [casadi.horzcat(*parts)],
    casadi.OP_VERTCAT: lambda node, *parts: [casadi.vertcat(*parts)],
    casadi.OP_DIAGCAT: lambda node, *parts: [casadi.diagcat(*parts)],
    casadi.OP_HORZSPLIT: _cut,
    casadi.OP_VERTSPLIT: _cut,
}


def _movement(node: casadi.MX, operands: list[casadi.MX], move: Callable[..., list[casadi.DM]]) -> Jacobians:
    """Moves the numbers of the elements, from 1 on, to see where they go."""
    ends = np.cumsum([0, *(operand.nnz() for operand in operands)])
    numbered = [
        casadi.DM(operand.sparsity(), list(range(start + 1, end + 1)))
        for operand, start, end in zip(operands, ends[:-1], ends[1:], strict=True)
    ]
    jacobians: Jacobians = {}
    for result, moved in enumerate(move(node, *numbered)):
        numbers = np.asarray(moved.nonzeros()).astype(int)
        for place, (start, end) in enumerate(pairwise(ends)):
            rows = np.flatnonzero((numbers > start) & (numbers <= end))
            if rows.size:
                jacobians[result, place] = _selection(rows, numbers[rows] - start - 1, (numbers.size, end - start))
    return jacobians


# --- products ---------------------------------------------------------------------------------------------------------


def _product_rule(node: casadi.MX, place: int) -> Local:
    """Of start + x @ y: the directions of x, or of y, side by side, are one matrix to multiply with the other."""
    x, y = node.dep(1), node.dep(2)
    (rows, inner), columns = x.shape, y.shape[1]
    if not node.is_dense() or not node.dep(place).is_dense():
        raise NotDifferentiated("a product by elements of a sparse matrix")
    if place == 0:
        return Scaling(None)
    if place == 1:
        return Linear(
            lambda push: casadi.reshape(
                multiply(casadi.reshape(push, -1, inner), y), push.shape[0], rows * columns),
            lambda pull: casadi.reshape(
                multiply(casadi.reshape(pull, -1, columns), transposed(y)), pull.shape[0], rows * inner),
        )  # fmt: skip
    return Linear(
        lambda push: _for_each_column(push, transposed(x), columns),
        lambda pull: _for_each_column(pull, x, columns),
    )


def _for_each_column(directions: casadi.MX, matrix: casadi.MX, columns: int) -> casadi.MX:
    """Each of that many equal parts, side by side, times the matrix."""
    if columns == 1:
        return multiply(directions, matrix)
    return casadi.horzcat(*(multiply(part, matrix) for part in casadi.horzsplit(directions, matrix.size1())))
