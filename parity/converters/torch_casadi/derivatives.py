"""Derivatives of CasADi functions, all directions at once.

CasADi's own algorithmic differentiation writes one copy of the graph for each direction, and forgets which BLAS a
product was to use. Here an operation is differentiated once and applied to a matrix that holds one direction in each
row: a dense layer is one product for all directions, and the graph grows with the number of operations only.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import casadi
import numpy as np

from parity.converters.torch_casadi.local_derivatives import Local, NotDifferentiated, Scaling, local_derivatives
from parity.converters.torch_casadi.products import multiply

FEWEST = 4
"""Directions from which on one graph for all of them is faster than CasADi's copies."""
BLOCK = 64
"""CasADi asks for at most so many directions at once."""
MOST_TERMS = 2
"""Matrices in a sum that is not yet carried out."""
HEAVY = 20_000
"""Multiplications of a product that the gradient must do well, too."""
LARGEST = 4_000_000
"""Elements of the widest matrix of directions: beyond it (32 MB) the memory is not worth it."""


@dataclass(frozen=True)
class Step:
    """One instruction of a function. Values are numbered in the order in which they are made."""

    node: casadi.MX
    operands: tuple[int, ...]
    results: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """The steps of a function; which value each input is, and which values, of what size, make up each output."""

    steps: tuple[Step, ...]
    inputs: dict[int, int]
    outputs: list[list[tuple[int, int]]]
    widest: int
    """Nonzeros of the largest value."""


def read_graph(function: casadi.Function) -> Graph:
    """The instructions of an `MXFunction` of columns, its reused work memory renamed to values written once."""
    memory: dict[int, int] = {}
    steps: list[Step] = []
    inputs: dict[int, int] = {}
    outputs: list[list[tuple[int, int]]] = [[] for _ in range(function.n_out())]
    widest = count = 0
    for place in range(function.n_instructions()):
        operator, node = function.instruction_id(place), function.instruction_MX(place)
        read, written = function.instruction_input(place), function.instruction_output(place)
        if operator == casadi.OP_OUTPUT:
            outputs[written[0]].append((memory[read[0]], node.dep().nnz()))
            continue
        results = tuple(range(count, count + len(written)))
        count += len(written)
        widest = max(widest, node.nnz())
        if operator == casadi.OP_INPUT:
            inputs[read[0]] = results[0]
        elif operator != casadi.OP_CONST:
            steps.append(Step(node, tuple(memory[slot] for slot in read), results))
        memory.update(zip(written, results, strict=True))
    return Graph(tuple(steps), inputs, outputs, widest)


# --- matrices of directions -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Directions:
    """A sum of matrices, a direction in each row, whose columns are still to be scaled (by None: not at all).

    So a chain of elementwise functions costs products of columns only, and one scaling of the matrix at its end.
    """

    terms: tuple[tuple[casadi.MX, casadi.MX | None], ...]

    def scaled(self, factors: casadi.MX | None) -> Directions:
        if factors is None:
            return self
        return Directions(tuple((matrix, factors if old is None else old * factors) for matrix, old in self.terms))

    def plus(self, other: Directions) -> Directions:
        terms = list(self.terms)
        for matrix, factors in other.terms:
            for place, (known, old) in enumerate(terms):
                if casadi.is_equal(known, matrix):
                    terms[place] = (matrix, _ones(old, matrix) + _ones(factors, matrix))
                    break
            else:
                terms.append((matrix, factors))
        total = Directions(tuple(terms))
        return total if len(terms) <= MOST_TERMS else Directions(((total.matrix(), None),))

    def matrix(self) -> casadi.MX:
        total: casadi.MX | None = None
        for matrix, factors in self.terms:
            if factors is not None and matrix.size1() > 1:
                scaling = casadi.MX(casadi.Sparsity.diag(factors.numel()), factors)
                total = multiply(matrix, scaling, total)  # a sparse product is how CasADi scales columns
            else:
                scaled = matrix if factors is None else matrix * factors.T
                total = scaled if total is None else total + scaled
        assert total is not None
        return total


def _ones(factors: casadi.MX | None, matrix: casadi.MX) -> casadi.MX:
    return casadi.MX(casadi.DM.ones(matrix.size2())) if factors is None else factors


Known = dict[int, Directions]


def _add(known: Known, value: int, more: Directions) -> None:
    known[value] = known[value].plus(more) if value in known else more


def _matrix(known: Known, value: int) -> casadi.MX:
    """The value's directions as one matrix, which stands for them from now on."""
    matrix = known[value].matrix()
    known[value] = Directions(((matrix, None),))
    return matrix


def push_forward(graph: Graph, seeds: dict[int, casadi.MX]) -> list[casadi.MX | None]:
    """The directions of all outputs, from those of the inputs by their number; None for zeros."""
    known = {graph.inputs[n]: Directions(((seed, None),)) for n, seed in seeds.items() if n in graph.inputs}
    for step in graph.steps:
        for result, operand, local in _derivatives(step, known):
            if isinstance(local, Scaling):
                _add(known, result, known[operand].scaled(local.factors))
            else:
                _add(known, result, Directions(((local.push(_matrix(known, operand)), None),)))
    rows = next(iter(seeds.values())).size1()
    return [
        casadi.horzcat(*(_matrix(known, value) if value in known else casadi.MX(rows, size) for value, size in parts))
        if any(value in known for value, _ in parts) else None
        for parts in graph.outputs
    ]  # fmt: skip


def pull_back(graph: Graph, seeds: Sequence[casadi.MX]) -> dict[int, casadi.MX]:
    """The adjoints of the inputs, by their number, from those of all outputs; zeros are left out."""
    depends = set(graph.inputs.values())
    for step in graph.steps:
        if not depends.isdisjoint(step.operands):
            depends.update(step.results)
    known: Known = {}
    for parts, seed in zip(graph.outputs, seeds, strict=True):
        ends = np.cumsum([0, *(size for _, size in parts)]).tolist()
        for (value, _), start, end in zip(parts, ends, ends[1:], strict=False):
            _add(known, value, Directions(((seed[:, start:end], None),)))
    for step in reversed(graph.steps):
        if known.keys().isdisjoint(step.results):
            continue
        for result, operand, local in _derivatives(step, depends):
            if result not in known:
                continue
            if isinstance(local, Scaling):
                _add(known, operand, known[result].scaled(local.factors))
            else:
                _add(known, operand, Directions(((local.pull(_matrix(known, result)), None),)))
    return {number: _matrix(known, value) for number, value in graph.inputs.items() if value in known}


def _derivatives(step: Step, wanted: Container[int]) -> Iterator[tuple[int, int, Local]]:
    places = [place for place, operand in enumerate(step.operands) if operand in wanted]
    for result, place, local in local_derivatives(step.node, places) if places else ():
        yield step.results[result], step.operands[place], local


# --- functions as CasADi names them -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expressions:
    """A function before it is made: columns, dense or empty, and their names."""

    name: str
    inputs: Sequence[casadi.MX]
    input_names: Sequence[str]
    outputs: Sequence[casadi.MX]
    output_names: Sequence[str]

    def function(self, cache: dict[str, casadi.Function] | None = None) -> casadi.Function:
        """`cache` holds derivative functions, by the names that CasADi gives them."""
        options: Any = {
            "allow_duplicate_io_names": True,
            "cache": cache or {},
        }  # an argument of `forward` may be named y
        return casadi.Function(
            self.name, [*self.inputs], [*self.outputs], [*self.input_names], [*self.output_names], options
        )


@dataclass(frozen=True)
class Derivatives:
    """Functions by the names that CasADi gives them: of a function, and of its gradient (None: too large)."""

    first: dict[str, casadi.Function]
    gradient: Expressions | None
    second: dict[str, casadi.Function]


def with_derivatives(expressions: Expressions) -> casadi.Function:
    """The function, holding those derivative functions that CasADi would otherwise make more slowly.

    They are for dense Jacobians and Hessians by one input or by all of them. What is not among them, or is not
    understood, CasADi makes.
    """
    try:
        made = derivatives(expressions, FEWEST)
    except NotDifferentiated:
        return expressions.function()
    gradient = {made.gradient.name: made.gradient.function(made.second)} if made.gradient else {}
    return expressions.function(made.first | gradient)


def derivatives(expressions: Expressions, fewest: int) -> Derivatives:
    """The derivative functions of at least so many directions. Raises NotDifferentiated."""
    wide, tall = (
        {count for count in _counts(columns) | {1} if count >= fewest}
        for columns in (expressions.inputs, expressions.outputs)
    )
    graph = read_graph(expressions.function())
    inputs, outputs = (sum(column.numel() for column in c) for c in (expressions.inputs, expressions.outputs))
    if inputs <= 2 * outputs:  # CasADi's own choice of a mode, too
        first = {f.name: f.function() for f in (_onward(expressions, graph, n) for n in wide if _fits(graph, n))}
    else:
        first = {f.name: f.function() for f in (_backward(expressions, graph, n) for n in tall if _fits(graph, n))}
    if not any(_fits(graph, count) for count in wide):
        return Derivatives(first, None, {})
    gradient = _gradient(expressions, graph)
    steps = read_graph(gradient.function())
    made = [_onward(gradient, steps, count) for count in sorted(wide) if _fits(steps, count)]
    return Derivatives(first, gradient, {derivative.name: derivative.function() for derivative in made})


def single_derivatives(expressions: Expressions) -> Derivatives:
    """CasADi's own functions for one direction, of which it makes all others where it must."""
    function = expressions.function()
    reverse = function.reverse(1)
    gradient = Expressions(reverse.name(), *_called(reverse))
    forward, second = function.forward(1), gradient.function().forward(1)
    return Derivatives({forward.name(): forward}, gradient, {second.name(): second})


def _called(function: casadi.Function) -> tuple[Any, Any, Any, Any]:
    inputs = [casadi.MX.sym(function.name_in(n), function.sparsity_in(n)) for n in range(function.n_in())]
    return inputs, function.name_in(), function.call(inputs, True, False), function.name_out()


def _counts(columns: Sequence[casadi.MX]) -> set[int]:
    """How many directions CasADi asks for at once: as many as one column has, or all, in blocks."""
    totals = {*(column.numel() for column in columns), sum(column.numel() for column in columns)}
    return {size for total in totals for size in (min(total, BLOCK), total % BLOCK) if size}


def _fits(graph: Graph, count: int) -> bool:
    return count * graph.widest <= LARGEST


def _onward(expressions: Expressions, graph: Graph, count: int) -> Expressions:
    """That many directional derivatives."""
    seeds, seed_names = _matrices("fwd", expressions.inputs, expressions.input_names, count)
    pushed = push_forward(graph, {number: seed.T for number, seed in enumerate(seeds)})
    inputs, names = _with_results(expressions)
    return Expressions(
        f"fwd{count}_{expressions.name}",
        [*inputs, *seeds],
        [*names, *seed_names],
        [casadi.MX(column.numel(), count) if rows is None else rows.T
         for rows, column in zip(pushed, expressions.outputs, strict=True)],
        [f"fwd_{name}" for name in expressions.output_names],
    )  # fmt: skip


def _backward(expressions: Expressions, graph: Graph, count: int) -> Expressions:
    """That many products of the transposed Jacobian with adjoints."""
    seeds, seed_names = _matrices("adj", expressions.outputs, expressions.output_names, count)
    pulled = pull_back(graph, [seed.T for seed in seeds])
    inputs, names = _with_results(expressions)
    return Expressions(
        f"adj{count}_{expressions.name}",
        [*inputs, *seeds],
        [*names, *seed_names],
        [pulled[number].T if number in pulled else casadi.MX(column.numel(), count)
         for number, column in enumerate(expressions.inputs)],
        [f"adj_{name}" for name in expressions.input_names],
    )  # fmt: skip


def _gradient(expressions: Expressions, graph: Graph) -> Expressions:
    """The product with one adjoint. CasADi's own is the simpler graph to differentiate again, but multiplies slowly."""
    own = _backward(expressions, graph, 1)
    products = (step.node for step in graph.steps if step.node.op() == casadi.OP_MTIMES)
    if any(product.dep(1).is_dense() and product.dep(2).nnz() * product.size1() >= HEAVY for product in products):
        return own
    reverse = expressions.function().reverse(1)
    return replace(own, outputs=reverse.call([*own.inputs], True, False))


def _with_results(expressions: Expressions) -> tuple[list[casadi.MX], list[str]]:
    """The inputs of a derivative: CasADi passes the function's results as well, which ours do not read."""
    names = [f"out_{name}" for name in expressions.output_names]
    unread = [casadi.MX.sym(name, casadi.Sparsity(*output.shape))
              for name, output in zip(names, expressions.outputs, strict=True)]  # fmt: skip
    return [*expressions.inputs, *unread], [*expressions.input_names, *names]


def _matrices(
    prefix: str, columns: Sequence[casadi.MX], names: Sequence[str], count: int
) -> tuple[list[casadi.MX], list[str]]:
    """A direction in each column; none of the elements of what is empty."""
    named = [f"{prefix}_{name}" for name in names]
    return [
        casadi.MX.sym(name, casadi.repmat(column.sparsity(), 1, count))
        for name, column in zip(named, columns, strict=True)
    ], named
