"""An N-dimensional tensor over CasADi, whose matrices have two dimensions and columns first: what lowerings work with.

A row-major tensor of shape (N, k) in one column is the same memory as a column-major k×N matrix with a sample in each
column. So reshaping is free, and a matrix product or a reduction works on all samples at once. Everything that moves
elements is one gather, its index written with numpy on `positions`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Union

import casadi
import numpy as np
import scipy.sparse

from parity.converters.torch_casadi.products import multiply
from parity.errors import Unsupported

Operand = Union["Tensor", np.ndarray, float]
"""What arithmetic takes: a symbolic tensor, a constant one, or a number."""
Axes = int | Sequence[int] | None


@dataclass(frozen=True, eq=False)
class Tensor:
    """A symbolic tensor: its elements in row-major order in one dense column, and its shape."""

    data: casadi.MX
    shape: tuple[int, ...]
    __array_ufunc__ = None
    """Tells numpy to leave `array * tensor` to `Tensor`."""

    def __post_init__(self) -> None:
        # A product with a sparse matrix may have structural zeros; gathers count on there being none.
        object.__setattr__(self, "data", casadi.densify(self.data))
        object.__setattr__(self, "shape", tuple(int(length) for length in self.shape))
        if self.data.shape != (math.prod(self.shape), 1):
            raise ValueError(f"a column of shape {self.data.shape} does not hold a tensor of shape {self.shape}")

    @staticmethod
    def of(value: Operand) -> Tensor:
        """The value itself, or a constant as a tensor."""
        if isinstance(value, Tensor):
            return value
        array = np.asarray(value, dtype=np.float64)
        return Tensor(casadi.MX(casadi.DM(array.ravel())), array.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def positions(self) -> np.ndarray:
        """The index of every element into `data`, in the tensor's shape: index it as numpy does, then `take`."""
        return np.arange(self.size).reshape(self.shape)

    def axes(self, dims: Axes = None) -> tuple[int, ...]:
        """Dimensions counted from the front; all of them for None or for none given, as in torch's reductions."""
        dims = range(self.ndim) if dims is None or dims == () else dims
        return tuple(dim % max(self.ndim, 1) for dim in ((dims,) if isinstance(dims, int) else dims))

    # Moving elements

    def take(self, index: np.ndarray) -> Tensor:
        """The elements at `index` (into `data`), in the shape of `index`."""
        flat = np.asarray(index).ravel()
        in_order = flat.size == self.size and np.array_equal(flat, np.arange(self.size))
        # CasADi takes a single element for a row vector when it is indexed, so that must be turned.
        return Tensor(self.data if in_order else casadi.vec(self.data[flat.tolist()]), np.shape(index))

    def reshape(self, *shape: int) -> Tensor:
        return Tensor(self.data, np.broadcast_to(0, self.shape).reshape(shape).shape)

    def permute(self, *dims: int) -> Tensor:
        return self.take(self.positions.transpose(dims))

    def expand(self, *shape: int) -> Tensor:
        return self.take(np.broadcast_to(self.positions, shape))

    def __getitem__(self, key: Any) -> Tensor:
        if any(isinstance(part, Tensor) for part in (key if isinstance(key, tuple) else (key,))):
            raise Unsupported("indexing by a computed tensor: the shape or the elements would depend on the data")
        return self.take(self.positions[key])

    # Elementwise arithmetic

    def __add__(self, other: Operand) -> Tensor:
        return elementwise(casadi.plus, self, other)

    def __radd__(self, other: Operand) -> Tensor:
        return elementwise(casadi.plus, other, self)

    def __sub__(self, other: Operand) -> Tensor:
        return elementwise(casadi.minus, self, other)

    def __rsub__(self, other: Operand) -> Tensor:
        return elementwise(casadi.minus, other, self)

    def __mul__(self, other: Operand) -> Tensor:
        return elementwise(casadi.times, self, other)

    def __rmul__(self, other: Operand) -> Tensor:
        return elementwise(casadi.times, other, self)

    def __truediv__(self, other: Operand) -> Tensor:
        return elementwise(casadi.rdivide, self, other)

    def __rtruediv__(self, other: Operand) -> Tensor:
        return elementwise(casadi.rdivide, other, self)

    def __pow__(self, other: Operand) -> Tensor:
        return elementwise(casadi.power, self, other)

    def __rpow__(self, other: Operand) -> Tensor:
        return elementwise(casadi.power, other, self)

    def __neg__(self) -> Tensor:
        return Tensor(-self.data, self.shape)

    def __abs__(self) -> Tensor:
        return Tensor(casadi.fabs(self.data), self.shape)

    # Reductions: over the given dimensions, or over all of them

    def sum(self, dims: Axes = None, keepdim: bool = False) -> Tensor:
        return self._reduce(casadi.sum1, dims, keepdim)

    def mean(self, dims: Axes = None, keepdim: bool = False) -> Tensor:
        return self.sum(dims, keepdim) / math.prod(self.shape[axis] for axis in self.axes(dims))

    def max(self, dims: Axes = None, keepdim: bool = False) -> Tensor:
        return self._reduce(partial(_fold, casadi.fmax), dims, keepdim)

    def min(self, dims: Axes = None, keepdim: bool = False) -> Tensor:
        return self._reduce(partial(_fold, casadi.fmin), dims, keepdim)

    def variance(self, dims: Axes = None, keepdim: bool = False, correction: float = 0) -> Tensor:
        """The mean squared distance from the mean (two passes), its divisor lessened by `correction`."""
        deviation = self - self.mean(dims, keepdim=True)
        count = math.prod(self.shape[axis] for axis in self.axes(dims))
        return (deviation * deviation).sum(dims, keepdim) / (count - correction)

    def _reduce(self, function: Callable[[casadi.MX], casadi.MX], dims: Axes, keepdim: bool) -> Tensor:
        """`function` reduces the columns of a matrix to one row."""
        reduced = self.axes(dims)
        kept = tuple(axis for axis in range(self.ndim) if axis not in reduced)
        lengths = [1 if axis in reduced else length for axis, length in enumerate(self.shape)]
        rows = math.prod(self.shape[axis] for axis in reduced)
        row = function(self.permute(*kept, *reduced).matrix(rows))
        result = Tensor(casadi.vec(row), tuple(lengths))
        return result if keepdim else result.reshape(*(self.shape[axis] for axis in kept))

    # Linear algebra

    def matrix(self, rows: int) -> casadi.MX:
        """The elements as a matrix with that many rows: the trailing dimensions (`rows` elements) down each column."""
        shape = (rows, self.size // rows if rows else 0)
        if self.data.is_constant():  # CasADi would reshape it in every call
            return casadi.MX(casadi.reshape(self.data.to_DM(), *shape))
        return casadi.reshape(self.data, *shape)

    def transform(self, operator: casadi.MX, axes: int, shape: Sequence[int], offset: Operand | None = None) -> Tensor:
        """The linear operator applied to the last `axes` dimensions of every sample, which get that `shape`.

        `offset`, if any, is added to every sample and broadcasts to `shape`.
        """
        columns = self.matrix(operator.size2())
        product = multiply(operator, columns, repeated(offset, shape, columns.size2()))
        return Tensor(casadi.vec(product), (*self.shape[: self.ndim - axes], *shape))

    def affine(self, weight: Operand, offset: Operand | None = None) -> Tensor:
        """`weight` (outputs, inputs) times the last dimension, plus `offset` (outputs).

        The product is taken transposed: CasADi then runs along contiguous columns of the weight, which is more than
        twice as fast as `weight @ x`, and a symbolic weight needs no transposition.
        """
        outputs, inputs = np.shape(weight) if isinstance(weight, np.ndarray) else Tensor.of(weight).shape
        rows = self.matrix(inputs).T
        start = repeated(offset, (outputs,), rows.size1()).T
        product = multiply(rows, Tensor.of(weight).matrix(inputs), start)
        return Tensor(casadi.vec(product.T), (*self.shape[:-1], outputs))

    def __matmul__(self, other: Operand) -> Tensor:
        return matmul(self, other)

    def __rmatmul__(self, other: Operand) -> Tensor:
        return matmul(other, self)


def elementwise(function: Callable[..., casadi.MX], *operands: Operand) -> Tensor:
    """`function` of the operands' elements, after torch's broadcasting."""
    shape = np.broadcast_shapes(*(np.shape(operand) if not isinstance(operand, Tensor) else operand.shape
                                  for operand in operands))  # fmt: skip
    result = function(*(_broadcast(operand, shape) for operand in operands))
    return Tensor(result, shape)


def sparse(matrix: scipy.sparse.spmatrix) -> casadi.MX:
    """A constant, for `transform`."""
    return casadi.MX(casadi.DM(scipy.sparse.csc_matrix(matrix)))


def held(x: casadi.MX) -> casadi.MX:
    """The same numbers, constant to CasADi's differentiation, which takes the derivative of `floor` to be 0.

    A double times 2**500 is a whole number, and `floor` leaves it alone, for sizes from 1e-135 to 1e157.
    """
    return casadi.floor(x * 2.0**500) * 2.0**-500


def _broadcast(operand: Operand, shape: tuple[int, ...]) -> casadi.MX | casadi.DM | float:
    """The operand's elements for a result of that shape. A single one stays so, as CasADi broadcasts those itself."""
    if isinstance(operand, Tensor):
        return operand.data if operand.size == 1 else operand.expand(*shape).data
    array = np.asarray(operand, dtype=np.float64)
    return float(array.item()) if array.size == 1 else casadi.DM(np.broadcast_to(array, shape).ravel())


def repeated(offset: Operand | None, shape: Sequence[int], times: int) -> casadi.MX:
    """The offset of one sample in each of so many columns; zeros for None."""
    size = math.prod(shape)
    if isinstance(offset, Tensor):
        return casadi.repmat(offset.expand(*shape).data, 1, times)
    array = np.broadcast_to(0.0 if offset is None else offset, shape)
    return casadi.MX(casadi.repmat(casadi.DM(array.astype(np.float64).reshape(size, 1)), 1, times))


def _fold(function: Callable[..., casadi.MX], matrix: casadi.MX) -> casadi.MX:
    """Reduce every column by halving. An odd middle row meets itself, which an idempotent function forgives."""
    while (rows := matrix.shape[0]) > 1:
        half = (rows + 1) // 2
        matrix = function(matrix[:half, :], matrix[rows - half :, :])
    return matrix


def concatenate(tensors: Sequence[Operand], dim: int = 0) -> Tensor:
    """torch.cat."""
    parts = [Tensor.of(tensor) for tensor in tensors]
    offsets = np.cumsum([0, *(part.size for part in parts)])
    index = np.concatenate([part.positions + offset for part, offset in zip(parts, offsets, strict=False)], axis=dim)
    return Tensor(casadi.vertcat(*(part.data for part in parts)), (offsets[-1],)).take(index)


def stack(tensors: Sequence[Operand], dim: int = 0) -> Tensor:
    """torch.stack."""
    parts = [Tensor.of(tensor) for tensor in tensors]
    return concatenate([part.take(np.expand_dims(part.positions, dim)) for part in parts], dim)


def matmul(left: Operand, right: Operand) -> Tensor:
    """torch.matmul: vectors, matrices and batches of them, with broadcasting."""
    a, b = Tensor.of(left), Tensor.of(right)
    if b.ndim == 1:
        return matmul(a, b.reshape(-1, 1))[..., 0]
    if a.ndim == 1:
        return matmul(a.reshape(1, -1), b)[..., 0, :]
    rows, inner, columns = a.shape[-2], a.shape[-1], b.shape[-1]
    if b.ndim == 2:  # one matrix for all samples: one product
        product = multiply(b.matrix(columns), a.matrix(inner))
        return Tensor(casadi.vec(product), (*a.shape[:-1], columns))
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = a.expand(*batch, rows, inner), b.expand(*batch, inner, columns)
    products = [
        multiply(transposed_b, transposed_a)
        for transposed_a, transposed_b in zip(
            casadi.horzsplit(a.matrix(inner), rows), casadi.horzsplit(b.matrix(columns), inner), strict=True
        )
    ]
    return Tensor(casadi.vec(casadi.horzcat(*products)), (*batch, rows, columns))
