"""Writes a program as a Pyomo model, scalar by scalar."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyomo.environ as pyo
import scipy.sparse as sp
from pyomo.core.expr.numeric_expr import LinearExpression, MonomialTermExpression

from parity.converters.torch_optimization import expressions as ex
from parity.converters.torch_optimization.expressions import Expression
from parity.converters.torch_optimization.program import Program
from parity.embedding import Label, PyomoEmbedding, Size
from parity.errors import Unsupported

LINEAR = (int, float, LinearExpression, MonomialTermExpression)
LOCAL = ("ipopt", "bonmin", "casadi:ipopt", "casadi:bonmin")


def to_pyomo(program: Program, solver: str | None, time_limit: float) -> PyomoEmbedding:
    """The program as a concrete model without an objective, with a solver that takes what is in it."""
    chosen = solver or _solver(program)
    model = pyo.ConcreteModel()
    known: dict[Expression, Any] = {}
    scalars: list[Any] = []
    labels: list[Label] = []
    for number, variable in enumerate(program.variables):
        domain = pyo.Binary if variable.integer else pyo.Reals
        pairs = [(_bound(low), _bound(high)) for low, high in zip(variable.lower, variable.upper, strict=True)]
        block = pyo.Var(range(variable.size), domain=domain, bounds=lambda _, index, pairs=pairs: pairs[index])
        model.add_component(f"v{number}_{variable.name.replace(' ', '_')}", block)
        known[variable] = [block[index] for index in range(variable.size)]
        scalars += known[variable]
        labels += [Label(variable.layer, variable.name)] * variable.size
    model.shared = pyo.Expression(pyo.Any)
    language = Scalars(chosen, model.shared)
    rows, row_labels = _rows(model, program, language, known)
    _sets(model, program, known)
    y = ex.write(program.output, language, known)
    branched = sum(each.size for each in program.variables if each.integer) + sum(
        each.first.size for each in program.pairs
    )
    return PyomoEmbedding(
        lower=program.variables[0].lower,
        upper=program.variables[0].upper,
        outputs=program.output.size,
        solver=chosen,
        local=chosen in LOCAL,
        kinks=program.kinks,
        error=program.error,
        time_limit=time_limit,
        size=Size(len(scalars), len(rows), branched),
        model=model,
        x=known[program.variables[0]],
        y=y,
        explicit=len(program.variables) == 1,
        variables=scalars,
        rows=rows,
        labels=labels,
        row_labels=row_labels,
        assign=program.assign,
    )


def _solver(program: Program) -> str:
    if program.linear and not program.pairs:
        return "casadi:highs"
    if program.integer or program.pairs or program.error > 1e-6:
        return "scip"
    return "casadi:ipopt"


def _bound(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _rows(
    model: Any, program: Program, language: Scalars, known: dict[Expression, Any]
) -> tuple[list[Any], list[Label]]:
    rows, labels = [], []
    for number, constraint in enumerate(program.constraints):
        bodies = ex.write(constraint.expression, language, known)
        block = pyo.Constraint(pyo.Any)
        model.add_component(f"c{number}_{constraint.name.replace(' ', '_').replace('-', '_')}", block)
        for index, body in enumerate(bodies):
            low, high = _bound(constraint.lower[index]), _bound(constraint.upper[index])
            if isinstance(body, int | float) or (low is None and high is None):
                continue
            block[index] = body == low if low == high else pyo.inequality(low, body, high)
            rows.append(block[index])
            labels.append(Label(constraint.layer, constraint.name))
    return rows, labels


def _sets(model: Any, program: Program, known: dict[Expression, Any]) -> None:
    """At most one of each pair is not zero."""
    number = 0
    for each in program.pairs:
        for first, second in zip(known[each.first], known[each.second], strict=True):
            pair = [first, second]
            model.add_component(f"s{number}", pyo.SOSConstraint(rule=lambda _, pair=pair: (pair, [1, 2]), sos=1))
            number += 1


class Scalars:
    """Pyomo's language: a vector is a list of scalar expressions.

    Pyomo's expressions are trees: what is used more than once is named, or each layer would multiply their size.
    """

    def __init__(self, solver: str, shared: Any) -> None:
        self.shared = shared
        self.functions = FUNCTIONS | (SCIP_FUNCTIONS if solver == "scip" else {})

    def affine(self, matrix: sp.csr_array, operand: list[Any], offset: np.ndarray) -> list[Any]:
        result = []
        for row in range(matrix.shape[0]):
            columns = range(matrix.indptr[row], matrix.indptr[row + 1])
            # Python's floats: NumPy's would be written to a file with as many digits as their own type needs
            terms = [float(matrix.data[place]) * operand[matrix.indices[place]]
                     if matrix.data[place] != 1 else operand[matrix.indices[place]] for place in columns]  # fmt: skip
            if offset[row] or not terms:
                terms.append(float(offset[row]))
            result.append(self._named(sum(terms[1:], terms[0]) if len(terms) > 1 else terms[0]))
        return result

    def _named(self, term: Any) -> Any:
        """The same, and a name for it unless it is linear in variables: asking for its degree would walk all of it."""
        if isinstance(term, LINEAR) or not term.is_expression_type() or term.is_named_expression_type():
            return term
        self.shared[len(self.shared)] = term
        return self.shared[len(self.shared) - 1]

    def combination(self, kind: str, parts: list[list[Any]]) -> list[Any]:
        if kind == "stack":
            return [element for part in parts for element in part]
        result = parts[0]
        for part in parts[1:]:
            result = [self._named(COMBINATIONS[kind](a, b)) for a, b in zip(result, part, strict=True)]
        return result

    def apply(self, function: str, operand: list[Any], parameters: tuple[float, ...], bounds: Expression) -> list[Any]:
        if function == "gelu":
            raise Unsupported(
                "GELU needs the error function, which Pyomo lacks: use approximate='tanh' or a casadi converter"
            )
        if function == "softplus" and (parameters[0] * bounds.upper > parameters[1]).any():
            raise Unsupported(
                f"Softplus(beta={parameters[0]:g}, threshold={parameters[1]:g}) may switch to the identity in the box, "
                "which Pyomo cannot: make the box smaller, or use a casadi converter"
            )
        return [self._named(self.functions[function](element, *parameters)) for element in operand]

    def softmax(self, operand: list[Any], groups: tuple[tuple[int, ...], ...]) -> list[Any]:
        """1 / Σ exp(u_j - u_i), which cannot give NaN where the quotient of two overflows would."""
        result: list[Any] = [None] * len(operand)
        for group in groups:
            for index in group:
                others = [pyo.exp(operand[other] - operand[index]) for other in group if other != index]
                result[index] = self._named(1 / (1 + sum(others))) if others else 1.0
        return result


def _relu(u: Any) -> Any:
    return 0.5 * (u + abs(u))


def _expm1(u: Any) -> Any:
    """exp(u) - 1 without cancellation."""
    return 2 * pyo.sinh(0.5 * u) * pyo.exp(0.5 * u)


def _minimum(u: Any) -> Any:
    return 0.5 * (u - abs(u))


COMBINATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "sum": lambda a, b: a + b,
    "product": lambda a, b: a * b,
    "quotient": lambda a, b: a / b,
    "maximum": lambda a, b: a + _relu(b - a),
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": pyo.exp,
    "log": pyo.log,
    "sqrt": pyo.sqrt,
    "tanh": pyo.tanh,
    "sigmoid": lambda u: 1 / (1 + pyo.exp(-u)),
    "softplus": lambda u, beta, threshold: pyo.log(1 + pyo.exp(beta * u)) / beta,
    "gelu_tanh": lambda u: 0.5 * u * (1 + pyo.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))),
    "silu": lambda u: u / (1 + pyo.exp(-u)),
    "elu": lambda u, alpha: _relu(u) + alpha * _expm1(_minimum(u)),
    "relu": _relu,
    "leaky_relu": lambda u, slope: _relu(u) + slope * _minimum(u),
    "clip": lambda u, low, high: low + _relu(u - low) - _relu(u - high),
    "smooth_relu": lambda u, epsilon: 0.5 * (u + pyo.sqrt(u * u + epsilon * epsilon)),
}
SCIP_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "elu": lambda u, alpha: _relu(u) + alpha * (pyo.exp(_minimum(u)) - 1),
}
"""SCIP does not know sinh. Its own tolerance is far above what is lost by rounding."""
