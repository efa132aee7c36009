"""A model in the making: layers add variables and constraints to it. Solver-neutral; imports no framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import scipy.sparse as sp

from parity.converters.torch_optimization import expressions as ex
from parity.converters.torch_optimization import formulations as fm
from parity.converters.torch_optimization.expressions import Expression, Variable
from parity.embedding import activation_error
from parity.errors import Unsupported

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Constraint:
    """lower ≤ expression ≤ upper, elementwise."""

    layer: str
    name: str
    expression: Expression
    lower: np.ndarray
    upper: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """Of first[i] and second[i], at most one is not zero: special ordered sets of type 1."""

    layer: str
    first: Variable
    second: Variable


@dataclass(frozen=True)
class Program:
    """A network as variables and constraints; the first variable is the input."""

    variables: tuple[Variable, ...]
    constraints: tuple[Constraint, ...]
    pairs: tuple[Pairs, ...]
    output: Expression
    results: Mapping[str, Variable]
    """The variable that holds a layer's output, by the layer's name, where one does."""
    error: float
    """How far off one activation may be in a feasible point."""

    @property
    def parts(self) -> tuple[Expression, ...]:
        return (*(constraint.expression for constraint in self.constraints), self.output)

    @property
    def linear(self) -> bool:
        return not any(nonlinear(each) for each in walk(self.parts))

    @property
    def kinks(self) -> bool:
        return any(kinked(each) for each in walk(self.parts))

    @property
    def integer(self) -> bool:
        return any(variable.integer for variable in self.variables)

    def assign(self, x: np.ndarray, activations: Mapping[str, np.ndarray]) -> np.ndarray:
        """Every variable's value: a layer's true output where `activations` has it, else what follows from others."""
        values: dict[Expression, np.ndarray] = {self.variables[0]: x}
        for layer, variable in self.results.items():
            if layer in activations:
                values[variable] = activations[layer]
        for variable in self.variables[1:]:
            if variable not in values:
                assert variable.witness is not None, "only the input has no witness"
                values[variable] = ex.write(variable.witness, ex.Numbers(), values)
        return np.concatenate([values[variable] for variable in self.variables])


def walk(expressions: Sequence[Expression]) -> list[Expression]:
    """All that the expressions are made of, each once."""
    found: dict[Expression, None] = {}
    waiting = list(expressions)
    while waiting:
        each = waiting.pop()
        if each not in found:
            found[each] = None
            waiting += each.operands
    return list(found)


def nonlinear(expression: Expression) -> bool:
    if isinstance(expression, ex.Combination):
        return expression.kind not in ("sum", "stack")
    return isinstance(expression, ex.Apply | ex.Softmax)


def kinked(expression: Expression) -> bool:
    if isinstance(expression, ex.Apply):
        if expression.function == "softplus":
            beta, threshold = expression.parameters
            return bool((beta * expression.operand.upper > threshold).any())
        return ex.FUNCTIONS[expression.function].kinked
    return isinstance(expression, ex.Combination) and expression.kind == "maximum"


class Builder:
    """Collects variables and constraints while a network is walked through, layer by layer."""

    def __init__(self, lower: np.ndarray, upper: np.ndarray, *, full: bool, default: fm.Formulation, config: fm.Config,
                 tighten: str = "") -> None:  # fmt: skip
        self.input = Variable(lower, upper, "input", "x")
        self.variables, self.constraints, self.pairs = [self.input], list[Constraint](), list[Pairs]()
        self.results: dict[str, Variable] = {}
        self.full, self.default, self.tighten = full, default, tighten
        self.config = dict(config)
        self.layer, self.formulation = "", default
        self.met: set[Any] = set()
        self.left: set[str] = set()
        self.products, self.approximation = False, 0.0

    def enter(self, layer: str, kind: Any) -> None:
        """From now on, variables and constraints belong to this layer, and it is formulated as the user said."""
        self.layer, self.formulation = layer, self.default
        for key in (layer, kind):
            if key in self.config:
                self.met.add(key)
                self.formulation = fm.formulation(self.config[key])
                return

    def leave(self, value: Value) -> Value:
        """What the layer gave: in full space, a variable of its own unless it is one, or only selects."""
        result = value.expression
        if self.full and not _rearranges(result):
            result = self.variable("output", result.lower, result.upper, result)
            assert result.witness is not None
            self.constrain("equation", ex.subtract(result, result.witness), 0.0, 0.0)
        if self.layer in self.left:
            self.results.pop(self.layer, None)  # called twice: one name, two outputs
        elif isinstance(result, Variable) and result.layer == self.layer:
            self.results[self.layer] = result
        self.left.add(self.layer)
        return Value(self, result, value.shape)

    def variable(self, name: str, lower: Any, upper: Any, witness: Expression, integer: bool = False) -> Variable:
        size = witness.size
        new = Variable(_vector(lower, size), _vector(upper, size), self.layer, name, witness, integer)
        self.variables.append(new)
        return new

    def constrain(self, name: str, expression: Expression, lower: Any, upper: Any) -> None:
        size = expression.size
        self.constraints.append(Constraint(self.layer, name, expression, _vector(lower, size), _vector(upper, size)))

    def finish(self, output: Expression) -> Program:
        """The program, with an error that depends on its formulations."""
        error = activation_error(products=self.products, approximation=self.approximation)
        return Program(tuple(self.variables), tuple(self.constraints), tuple(self.pairs), output, self.results, error)

    # --- max(u, 0) and what is made of it -----------------------------------------------------------------------------

    def relu(self, u: Expression) -> Expression:
        """max(u, 0), formulated as the layer is to be."""
        how = self.formulation
        if isinstance(how, fm.Direct):
            return ex.apply("relu", u)
        if isinstance(how, fm.Smooth):
            self.approximation = max(self.approximation, how.epsilon / 2)
            return ex.apply("smooth_relu", u, how.epsilon)
        if isinstance(how, fm.BigM):
            return self._relu_by_binaries(u, how.bound)
        lower, upper = self.bounds(u)
        y = self.variable("positive part", 0.0, np.maximum(upper, 0), ex.apply("relu", u))
        s = self.variable("negative part", 0.0, np.maximum(-lower, 0), ex.apply("relu", ex.scale(-1.0, u)))
        self.constrain("split", ex.add(y, ex.scale(-1.0, s), ex.scale(-1.0, u)), 0.0, 0.0)
        if isinstance(how, fm.Sos1):
            self.pairs.append(Pairs(self.layer, y, s))
        else:
            self.products = True
            self.constrain("complementarity", ex.multiply(y, s), -np.inf, 0.0)  # as equations they would overdetermine
        return y

    def _relu_by_binaries(self, u: Expression, bound: float | None) -> Expression:
        lower, upper = self.bounds(u) if bound is None else (_vector(-bound, u.size), _vector(bound, u.size))
        self._require_finite(lower, upper)
        y = self.variable("positive part", np.maximum(lower, 0), np.maximum(upper, 0), ex.apply("relu", u))
        difference = ex.subtract(y, u)
        self.constrain("above", difference, 0.0, np.where(lower >= 0, 0.0, np.inf))
        if len(open_signs := np.flatnonzero((lower < 0) & (upper > 0))):
            z = self.variable("active", 0.0, 1.0, ex.apply("is_positive", ex.select(u, open_signs)), integer=True)
            low, high = lower[open_signs], upper[open_signs]
            self.constrain(
                "big-M when active", ex.add(ex.select(difference, open_signs), ex.scale(-low, z)), -np.inf, -low
            )
            self.constrain("big-M when inactive", ex.add(ex.select(y, open_signs), ex.scale(-high, z)), -np.inf, 0.0)
        return y

    def maximum(self, u: Expression, windows: Sequence[Sequence[int]]) -> Expression:
        """The largest of u within each window."""
        if isinstance(self.formulation, fm.BigM):
            return self._maximum_by_binaries(u, windows, self.formulation.bound)
        largest = max(len(window) for window in windows)
        columns = [
            ex.select(u, [window[min(place, len(window) - 1)] for window in windows]) for place in range(largest)
        ]
        if isinstance(self.formulation, fm.Direct):
            return ex.maximum(*columns)
        return ex.by_pairs(columns, self._larger)

    def _larger(self, a: Expression, b: Expression) -> Expression:
        """max(a, b) = a + max(b - a, 0)."""
        total = ex.add(a, self.relu(ex.subtract(b, a)))
        lower, upper = np.maximum(a.lower, b.lower), np.maximum(a.upper, b.upper)
        return ex.Combination(lower, upper, "sum", total.operands)

    def _maximum_by_binaries(self, u: Expression, windows: Sequence[Sequence[int]], bound: float | None) -> Expression:
        lower, upper = self.bounds(u)
        self._require_finite(lower, upper)
        owner = np.repeat(np.arange(len(windows)), [len(window) for window in windows])
        members = np.concatenate([np.asarray(window) for window in windows])
        low = np.array([lower[list(window)].max() for window in windows])
        high = np.array([upper[list(window)].max() for window in windows])
        columns = [
            [window[min(place, len(window) - 1)] for window in windows] for place in range(max(map(len, windows)))
        ]
        largest = ex.maximum(*(ex.select(u, column) for column in columns))
        y = self.variable("largest", low, high, largest)
        slack = ex.subtract(ex.select(y, owner), ex.select(u, members))
        self.constrain("above", slack, 0.0, np.inf)
        z = self.variable("chosen", 0.0, 1.0, _first_largest(u, largest, windows), integer=True)
        gap = high[owner] - lower[members] if bound is None else _vector(bound, len(owner))
        self.constrain("big-M when chosen", ex.add(slack, ex.scale(gap, z)), -np.inf, gap)
        rows = sp.csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))), shape=(len(windows), len(owner)))
        self.constrain("one is chosen", ex.affine(rows, z), 1.0, 1.0)
        return y

    def bounds(self, u: Expression) -> tuple[np.ndarray, np.ndarray]:
        """Bounds on u by interval arithmetic, tightened by linear or mixed-integer programs if the user asked."""
        if not self.tighten:
            return u.lower, u.upper
        from parity.converters.torch_optimization.linear import tightened

        return tightened(u, self.variables, self.constraints, integer=self.tighten == "milp")

    def _require_finite(self, lower: np.ndarray, upper: np.ndarray) -> None:
        if not (np.isfinite(lower).all() and np.isfinite(upper).all()):
            raise Unsupported("big-M needs finite bounds on what it is applied to: give a finite box of inputs")


def _rearranges(expression: Expression) -> bool:
    """Only variables, in some order: there is nothing to compute."""
    if isinstance(expression, ex.Affine):
        return not expression.offset.any() and ex.selects(expression.matrix) and _rearranges(expression.operand)
    if isinstance(expression, ex.Combination):
        return expression.kind == "stack" and all(_rearranges(part) for part in expression.parts)
    return isinstance(expression, Variable)


def _first_largest(u: Expression, largest: Expression, windows: Sequence[Sequence[int]]) -> Expression:
    """1 for the first element of each window that is the largest, 0 for the others: a witness, never solved for."""
    parts = []
    for number, window in enumerate(windows):
        taken: Expression | None = None
        for index in window:
            below = ex.subtract(ex.select(largest, [number]), ex.select(u, [index]))
            is_it = ex.scale(-1.0, ex.apply("is_positive", below), 1.0)
            if taken is None:
                part = taken = is_it
            else:
                part = ex.multiply(is_it, ex.scale(-1.0, taken, 1.0))
                taken = ex.maximum(taken, is_it)
            parts.append(part)
    return ex.stack(*parts)


def _vector(value: Any, size: int) -> np.ndarray:
    return np.broadcast_to(np.asarray(value, float), (size,)).copy()


class Value:
    """A tensor of the network, without its batch axis, as an expression: what lowerings are given and give back.

    It adds, subtracts, multiplies and divides elementwise, with values of its shape, arrays or numbers.
    """

    def __init__(self, builder: Builder, expression: Expression, shape: Shape) -> None:
        assert expression.size == prod(shape), (expression.size, shape)
        self.builder, self.expression, self.shape = builder, expression, tuple(shape)

    def like(self, expression: Expression, shape: Shape | None = None) -> Value:
        return Value(self.builder, expression, self.shape if shape is None else shape)

    def reshape(self, shape: Shape) -> Value:
        return self.like(self.expression, shape)

    def affine(self, matrix: Any, offset: Any = 0.0, shape: Shape | None = None) -> Value:
        """matrix @ flattened value + offset."""
        expression = ex.affine(matrix, self.expression, offset)
        return self.like(expression, (expression.size,) if shape is None else shape)

    def apply(self, function: str, *parameters: float) -> Value:
        """An elementwise function of `functions.FUNCTIONS`, such as `tanh`."""
        return self.like(ex.apply(function, self.expression, *parameters))

    def relu(self) -> Value:
        """max(·, 0), in the formulation that was chosen for this layer."""
        return self.like(self.builder.relu(self.expression))

    @property
    def direct(self) -> bool:
        """Kinks may be written as they are."""
        return isinstance(self.builder.formulation, fm.Direct)

    def _other(self, other: Any) -> Expression | np.ndarray:
        if isinstance(other, Value):
            if other.shape != self.shape:
                raise Unsupported(f"shapes {self.shape} and {other.shape} differ: broadcasting has no lowering")
            return other.expression
        return np.broadcast_to(np.asarray(other, float), self.shape).ravel()

    def __add__(self, other: Any) -> Value:
        term = self._other(other)
        return self.like(
            ex.add(self.expression, term) if isinstance(term, Expression) else ex.scale(1.0, self.expression, term)
        )

    def __mul__(self, other: Any) -> Value:
        term = self._other(other)
        return self.like(
            ex.multiply(self.expression, term) if isinstance(term, Expression) else ex.scale(term, self.expression)
        )

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Value:
        return self * -1.0

    def __sub__(self, other: Any) -> Value:
        return self + (-other if isinstance(other, Value) else -np.asarray(other, float))

    def __rsub__(self, other: Any) -> Value:
        return -self + other

    def __truediv__(self, other: Any) -> Value:
        term = self._other(other)
        if not isinstance(term, Expression):
            return self * (1.0 / term)
        if (term.lower <= 0).any():
            raise Unsupported("the bounds of a divisor reach 0: a quotient needs a positive one")
        return self.like(ex.divide(self.expression, term))
