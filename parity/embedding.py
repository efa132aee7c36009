"""A network inside a solver's model: what converters to `optimization` give. Imports no framework and no solver.

The artifact is data. What solves it is the runtime of its type, in `parity.runtimes.optimization`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Assign = Callable[[np.ndarray, Mapping[str, np.ndarray]], np.ndarray]
"""From an input and the true output of every layer, by name, to the value of every variable of the model."""


@dataclass(frozen=True)
class Size:
    """How large a model is, in scalars. `binaries` also counts special ordered sets: both are branched on."""

    variables: int
    constraints: int
    binaries: int


@dataclass(frozen=True)
class Label:
    """Where a variable or a constraint comes from: the layer, and what it says of it."""

    layer: str
    name: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.name}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedding:
    """A network as part of an optimization model, over a box of inputs. Arrays are float64 vectors, row-major."""

    lower: np.ndarray
    upper: np.ndarray
    """The box that the inputs lie in: bounds of the model hold only there."""
    outputs: int
    solver: str
    local: bool
    """The solver proves no global optimum: it stops at a local one."""
    kinks: bool
    """The model has expressions without a derivative somewhere, where a solver that needs one may get stuck."""
    error: float
    """How far off one activation may be in a point that the solver calls feasible; see `activation_error`."""
    time_limit: float
    """Seconds for one solve."""
    size: Size


@dataclass(frozen=True, kw_only=True, eq=False)
class CasadiEmbedding(Embedding):
    """A model in CasADi's terms: bounds on a vector of variables, the inputs first, and on a vector of rows.

    To use it in a problem of your own, `x, y = embedding.add_to(opti)`.
    """

    function: Any
    """`casadi.Function` x ↦ y: the network's expression, every variable replaced by what it stands for."""
    model: Any
    """`casadi.Function` variables ↦ (rows, y)."""
    bounds: tuple[np.ndarray, np.ndarray]
    row_bounds: tuple[np.ndarray, np.ndarray]
    integer: np.ndarray
    sets: tuple[tuple[int, ...], ...] = ()
    """Special ordered sets of type 1: variables of which at most one is not zero."""
    linear: bool = False
    labels: Sequence[Label] = ()
    row_labels: Sequence[Label] = ()
    assign: Assign | None = None
    keep: Any = None
    """What must live as long as the functions: CasADi holds no reference to a callback."""

    def add_to(self, opti: Any) -> tuple[Any, Any]:
        """Add the variables and constraints to a `casadi.Opti`; gives its expressions of x and y.

        Raises `Unsupported` for special ordered sets, which Opti has no words for. Integer variables are declared as
        such: choose a solver that takes them (bonmin).
        """
        import casadi

        from parity.errors import Unsupported

        if self.sets:
            raise Unsupported("casadi.Opti has no special ordered sets: convert with another formulation of ReLU")
        blocks = []
        for block in np.split(np.arange(len(self.integer)), np.flatnonzero(np.diff(self.integer)) + 1):
            blocks.append(opti.variable(len(block)))
            if self.integer[block[0]]:
                opti.set_domain(blocks[-1], "integer")
        variables = casadi.vertcat(*blocks)
        rows, y = self.model(variables)
        opti.subject_to(opti.bounded(self.bounds[0], variables, self.bounds[1]))
        if rows.numel():
            opti.subject_to(opti.bounded(self.row_bounds[0], rows, self.row_bounds[1]))
        return variables[: len(self.lower)], y


@dataclass(frozen=True, kw_only=True, eq=False)
class PyomoEmbedding(Embedding):
    """A `pyomo.environ.ConcreteModel` or block, with the lists of its scalar inputs and outputs."""

    model: Any
    x: Sequence[Any]
    y: Sequence[Any]
    """Scalar variables or expressions."""
    explicit: bool = False
    """The outputs are expressions of the inputs alone, which can be evaluated without a solver."""
    variables: Sequence[Any] = ()
    """Every scalar variable, the inputs first, in the order of `labels` and of what `assign` gives."""
    rows: Sequence[Any] = ()
    labels: Sequence[Label] = ()
    row_labels: Sequence[Label] = ()
    assign: Assign | None = None
    solver_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class ScipEmbedding(Embedding):
    """A `pyscipopt.Model`, with the lists of its input and output variables."""

    model: Any
    x: Sequence[Any]
    y: Sequence[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class GurobiEmbedding(Embedding):
    """A `gurobipy.Model`, with the lists of its input and output variables."""

    model: Any
    x: Sequence[Any]
    y: Sequence[Any]


FEASIBILITY = 1e-9
"""What every solver is asked for: the largest residual of a constraint, and distance of a binary from an integer.

Solvers default to 1e-6, which a deep network amplifies to errors that look like a wrong formula.
"""


def activation_error(*, products: bool = False, approximation: float = 0.0, feasibility: float = FEASIBILITY) -> float:
    """How far off one activation may be where no residual exceeds `feasibility`.

    A residual of an equation is the error itself. A product y·s = 0 that holds to ε only says that the smaller factor
    is at most √ε. An approximation adds its own error.
    """
    return (feasibility**0.5 if products else feasibility) + approximation
