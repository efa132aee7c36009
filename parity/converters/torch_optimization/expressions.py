"""Vector expressions that know their bounds, over variables of a model. Solver-neutral; imports no framework.

Each expression is built by the function of the same name, which also does the interval arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import scipy.sparse as sp

from parity.converters.torch_optimization.functions import FUNCTIONS

Term = TypeVar("Term")


@dataclass(frozen=True, eq=False)
class Expression:
    """A vector, with bounds that hold for every input in the box."""

    lower: np.ndarray
    upper: np.ndarray

    @property
    def size(self) -> int:
        return len(self.lower)

    @property
    def operands(self) -> tuple[Expression, ...]:
        return ()


@dataclass(frozen=True, eq=False)
class Variable(Expression):
    """A vector of decision variables; its bounds are the model's. `witness` is the value that the network gives it."""

    layer: str
    name: str
    witness: Expression | None = None
    integer: bool = False


@dataclass(frozen=True, eq=False)
class Affine(Expression):
    """matrix @ operand + offset."""

    matrix: sp.csr_array
    operand: Expression
    offset: np.ndarray

    @property
    def operands(self) -> tuple[Expression, ...]:
        return (self.operand,)


@dataclass(frozen=True, eq=False)
class Combination(Expression):
    """An elementwise `sum`, `product`, `quotient` or `maximum`, or a `stack` of one after the other."""

    kind: str
    parts: tuple[Expression, ...]

    @property
    def operands(self) -> tuple[Expression, ...]:
        return self.parts


@dataclass(frozen=True, eq=False)
class Apply(Expression):
    """An elementwise function of `functions.FUNCTIONS`."""

    function: str
    operand: Expression
    parameters: tuple[float, ...]

    @property
    def operands(self) -> tuple[Expression, ...]:
        return (self.operand,)


@dataclass(frozen=True, eq=False)
class Softmax(Expression):
    """exp(u) over its sum within each group; `groups[i]` is the group that element i belongs to."""

    operand: Expression
    groups: tuple[tuple[int, ...], ...]

    @property
    def operands(self) -> tuple[Expression, ...]:
        return (self.operand,)


def affine(matrix: Any, operand: Expression, offset: Any = 0.0) -> Expression:
    matrix = sp.csr_array(matrix)
    matrix.eliminate_zeros()
    offset = np.broadcast_to(np.asarray(offset, float), matrix.shape[:1]).copy()
    if isinstance(operand, Affine) and not operand.offset.any() and selects(operand.matrix):
        matrix, operand = sp.csr_array(matrix @ operand.matrix), operand.operand  # selecting rounds nothing
    rising, falling = matrix.maximum(0), matrix.minimum(0)
    lower = rising @ operand.lower + falling @ operand.upper + offset
    upper = rising @ operand.upper + falling @ operand.lower + offset
    return Affine(lower, upper, matrix, operand, offset)


def select(operand: Expression, indices: Any) -> Expression:
    """Elements of an expression, in that order."""
    if list(indices) == list(range(operand.size)):
        return operand
    ones = np.ones(len(indices))
    return affine(sp.csr_array((ones, (np.arange(len(indices)), indices)), shape=(len(indices), operand.size)), operand)


def constant(values: Any, like: Expression) -> Expression:
    """A vector that depends on nothing; `like` is any expression of the model."""
    values = np.asarray(values, float)
    return affine(sp.csr_array((len(values), like.size)), like, values)


def scale(factor: Any, operand: Expression, offset: Any = 0.0) -> Expression:
    factors = np.broadcast_to(np.asarray(factor, float), (operand.size,))
    return affine(sp.diags_array(factors), operand, offset)


def add(*parts: Expression) -> Expression:
    lower, upper = np.sum([part.lower for part in parts], axis=0), np.sum([part.upper for part in parts], axis=0)
    return Combination(lower, upper, "sum", parts)


def subtract(first: Expression, second: Expression) -> Expression:
    return add(first, scale(-1.0, second))


def multiply(first: Expression, second: Expression) -> Expression:
    with np.errstate(invalid="ignore"):
        corners = [np.nan_to_num(a * b, nan=0.0, posinf=np.inf, neginf=-np.inf)
                   for a in (first.lower, first.upper) for b in (second.lower, second.upper)]  # fmt: skip
    lower, upper = np.min(corners, axis=0), np.max(corners, axis=0)
    if first is second:  # a square
        lower = np.where((first.lower < 0) & (first.upper > 0), 0.0, np.maximum(lower, 0.0))
    return Combination(lower, upper, "product", (first, second))


def divide(first: Expression, second: Expression) -> Expression:
    """`first / second`, whose second is positive."""
    with np.errstate(divide="ignore", invalid="ignore"):
        corners = [np.nan_to_num(a / b, nan=0.0, posinf=np.inf, neginf=-np.inf)
                   for a in (first.lower, first.upper) for b in (second.lower, second.upper)]  # fmt: skip
    return Combination(np.min(corners, axis=0), np.max(corners, axis=0), "quotient", (first, second))


def maximum(*parts: Expression) -> Expression:
    def larger(a: Expression, b: Expression) -> Expression:
        return Combination(np.maximum(a.lower, b.lower), np.maximum(a.upper, b.upper), "maximum", (a, b))

    return by_pairs(parts, larger)


def by_pairs(parts: Sequence[Expression], join: Callable[[Expression, Expression], Expression]) -> Expression:
    """All parts joined, neighbours first: nested log₂ n deep, since max(a, b) names a three times in some languages."""
    while len(parts) > 1:
        rest = parts[-1:] if len(parts) % 2 else ()
        parts = (*map(join, parts[:-1:2], parts[1::2]), *rest)
    return parts[0]


def stack(*parts: Expression) -> Expression:
    lower, upper = np.concatenate([part.lower for part in parts]), np.concatenate([part.upper for part in parts])
    return Combination(lower, upper, "stack", parts) if len(parts) > 1 else parts[0]


def apply(function: str, operand: Expression, *parameters: float) -> Expression:
    return Apply(
        *FUNCTIONS[function].interval(operand.lower, operand.upper, *parameters), function, operand, parameters
    )


def softmax(operand: Expression, groups: Sequence[Sequence[int]]) -> Expression:
    lower, upper = np.empty(operand.size), np.empty(operand.size)
    with np.errstate(over="ignore"):
        for group in (list(each) for each in groups):
            for place, index in enumerate(group):
                others = [each for other, each in enumerate(group) if other != place]
                lower[index] = 1 / (1 + np.exp(operand.upper[others] - operand.lower[index]).sum())
                upper[index] = 1 / (1 + np.exp(operand.lower[others] - operand.upper[index]).sum())
    return Softmax(lower, upper, operand, tuple(tuple(group) for group in groups))


def selects(matrix: sp.csr_array) -> bool:
    """Every row of the matrix holds a single one, or nothing."""
    return bool((np.diff(matrix.indptr) <= 1).all() and (matrix.data == 1).all())


class Language(Protocol, Generic[Term]):
    """The words in which a writer expresses vectors. One for NumPy's numbers, one for each modelling language."""

    def affine(self, matrix: sp.csr_array, operand: Term, offset: np.ndarray) -> Term: ...
    def combination(self, kind: str, parts: list[Term]) -> Term: ...
    def apply(self, function: str, operand: Term, parameters: tuple[float, ...], bounds: Expression) -> Term: ...
    def softmax(self, operand: Term, groups: tuple[tuple[int, ...], ...]) -> Term: ...


def write(expression: Expression, language: Language[Term], known: dict[Expression, Term]) -> Term:
    """The expression in that language; `known` holds the variables, and is filled with all that is written."""
    if expression in known:
        return known[expression]
    operands = [write(operand, language, known) for operand in expression.operands]
    if isinstance(expression, Affine):
        term = language.affine(expression.matrix, operands[0], expression.offset)
    elif isinstance(expression, Combination):
        term = language.combination(expression.kind, operands)
    elif isinstance(expression, Apply):
        term = language.apply(expression.function, operands[0], expression.parameters, expression.operand)
    elif isinstance(expression, Softmax):
        term = language.softmax(operands[0], expression.groups)
    else:
        raise TypeError(f"variable {getattr(expression, 'name', expression)} is not among the model's")
    known[expression] = term
    return term


class Numbers:
    """NumPy's language: the value of an expression."""

    def affine(self, matrix: sp.csr_array, operand: np.ndarray, offset: np.ndarray) -> np.ndarray:
        return np.asarray(matrix @ operand + offset)

    def combination(self, kind: str, parts: list[np.ndarray]) -> np.ndarray:
        if kind == "stack":
            return np.concatenate(parts)
        ways = {"sum": np.add, "product": np.multiply, "quotient": np.divide, "maximum": np.maximum}
        result = parts[0]
        for part in parts[1:]:
            result = ways[kind](result, part)
        return np.asarray(result)

    def apply(self, function: str, operand: np.ndarray, parameters: tuple[float, ...], bounds: object) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.asarray(FUNCTIONS[function].evaluate(operand, *parameters))

    def softmax(self, operand: np.ndarray, groups: tuple[tuple[int, ...], ...]) -> np.ndarray:
        result = np.empty(len(operand))
        for group in groups:
            powers = np.exp(operand[list(group)] - operand[list(group)].max())
            result[list(group)] = powers / powers.sum()
        return result
