"""Matrix products: dense layers, `matmul`, `einsum`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from parity.converters.registry import lowers
from parity.converters.torch_casadi.parameters import weights
from parity.converters.torch_casadi.spelling import spelled
from parity.converters.torch_casadi.tensor import Operand, Tensor, matmul
from parity.errors import Unsupported


@lowers(torch.nn.functional.linear, to="casadi")
def linear(input: Operand, weight: Operand, bias: Operand | None = None) -> Tensor:
    """`input @ weight.T + bias`."""
    if len(np.shape(weight)) == 2 and (isinstance(weight, np.ndarray) or bias is None or len(np.shape(bias)) == 1):
        return Tensor.of(input).affine(weight, bias)
    axes = (1, 0) if len(np.shape(weight)) == 2 else (0,)
    product = matmul(input, Tensor.of(weight).permute(*axes))
    return product if bias is None else product + bias


@lowers(nn.Linear, to="casadi")
def linear_layer(layer: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, *weights(layer, "weight", "bias"))


@lowers(torch.nn.functional.bilinear, to="casadi")
def bilinear(input1: Tensor, input2: Tensor, weight: np.ndarray, bias: np.ndarray | None = None) -> Tensor:
    """The sum over i, j of input1[i] weight[k, i, j] input2[j], plus bias[k]."""
    outputs, first, second = weight.shape
    by_input = Tensor.of(weight).permute(0, 2, 1).reshape(-1, first)
    mixed = input1.affine(by_input).reshape(*input1.shape[:-1], outputs, second)
    product = (mixed * input2.reshape(*input2.shape[:-1], 1, second)).sum(-1)
    return product if bias is None else product + bias


@lowers(nn.Bilinear, to="casadi")
def bilinear_layer(layer: nn.Bilinear, input1: Tensor, input2: Tensor) -> Tensor:
    return bilinear(input1, input2, *weights(layer, "weight", "bias"))


@lowers(*spelled("matmul", "bmm", "mm", "mv", "dot", "inner"), to="casadi")
def product(input: Operand, other: Operand) -> Tensor:
    if isinstance(input, Tensor) and isinstance(other, np.ndarray) and other.ndim == 2 and input.ndim > 0:
        return input.affine(other.T)
    return matmul(input, other)


lowers(torch.inner, "inner", to="casadi", replace=True)(lambda input, other: linear(input, other))


@lowers(*spelled("addmm", "addmv", "baddbmm"), to="casadi")
def add_matmul(input: Operand, a: Operand, b: Operand, *, beta: float = 1, alpha: float = 1) -> Tensor:
    scaled = product(a, b) if alpha == 1 else product(a, b) * alpha
    return scaled + (input if beta == 1 else Tensor.of(input) * beta)


@lowers(*spelled("outer", "ger"), to="casadi")
def outer(input: Operand, vec2: Operand) -> Tensor:
    return Tensor.of(input).reshape(-1, 1) * vec2


@lowers(*spelled("einsum"), to="casadi")
def einsum(equation: Any, *operands: Any) -> Tensor:
    """Operands are contracted from the left, each step one batch of matrix products."""
    if not isinstance(equation, str):
        raise Unsupported("einsum of sublists: write the equation as a string")
    parts = [Tensor.of(part) for part in (operands[0] if isinstance(operands[0], list | tuple) else operands)]
    given, arrow, output = equation.replace(" ", "").partition("->")
    terms = given.split(",")
    if "..." in equation:
        terms, output = _spell_ellipsis(terms, output, parts, arrow)
        given, arrow = "".join(terms), "->"
    if not arrow:
        output = "".join(sorted(letter for letter in set(given) - {","} if given.count(letter) == 1))
    left, term = parts[0], terms[0]
    for place in range(1, len(parts)):
        later = set(output).union(*terms[place + 1 :])
        left, term = _contract(left, term, parts[place], terms[place], later)
    return _arrange(left, term, output)


def _spell_ellipsis(terms: list[str], output: str, parts: list[Tensor], arrow: str) -> tuple[list[str], str]:
    """Capital letters from the end of the alphabet for the dimensions that `...` stands for."""
    missing = [part.ndim - len(term.replace("...", "")) for term, part in zip(terms, parts, strict=True)]
    most = max(n for n, term in zip(missing, terms, strict=True) if "..." in term)
    letters = "ZYXWVUTSRQ"[:most]
    spelt = [term.replace("...", letters[most - n :]) for n, term in zip(missing, terms, strict=True)]
    if not arrow:
        single = [letter for letter in "".join(terms).replace(".", "") if "".join(terms).count(letter) == 1]
        output = "..." + "".join(sorted(single))
    return spelt, output.replace("...", letters)


def _arrange(x: Tensor, term: str, output: str) -> Tensor:
    """Diagonals of repeated letters, sums over letters that are not in `output`, and its order."""
    positions = x.positions
    while repeated := next((letter for letter in term if term.count(letter) > 1), None):
        first = term.index(repeated)
        second = term.index(repeated, first + 1)
        positions = np.diagonal(positions, axis1=first, axis2=second)
        term = term[:first] + term[first + 1 : second] + term[second + 1 :] + repeated
    x = x.take(positions)
    summed = tuple(place for place, letter in enumerate(term) if letter not in output)
    x = x.sum(summed) if summed else x
    kept = [letter for letter in term if letter in output]
    return x.permute(*(kept.index(letter) for letter in output))


def _contract(a: Tensor, first: str, b: Tensor, second: str, later: set[str]) -> tuple[Tensor, str]:
    """One product of two operands; letters that nobody needs later are summed."""
    shared = [letter for letter in dict.fromkeys(first) if letter in second]
    batch = "".join(letter for letter in shared if letter in later)
    inner = "".join(letter for letter in shared if letter not in later)
    rows = "".join(letter for letter in dict.fromkeys(first) if letter not in second and letter in later)
    columns = "".join(letter for letter in dict.fromkeys(second) if letter not in first and letter in later)
    a, b = _arrange(a, first, batch + rows + inner), _arrange(b, second, batch + inner + columns)
    count, split_a, split_b = len(batch), len(batch + rows), len(batch + inner)
    lengths = (a.shape[:count], a.shape[count:split_a], a.shape[split_a:], b.shape[split_b:])
    batch_shape, row_shape, inner_shape, column_shape = lengths
    joint = np.broadcast_shapes(batch_shape, b.shape[:count])
    result = matmul(
        a.reshape(*batch_shape, int(np.prod(row_shape)), int(np.prod(inner_shape))),
        b.reshape(*b.shape[:count], int(np.prod(inner_shape)), int(np.prod(column_shape))),
    )
    return result.reshape(*joint, *row_shape, *column_shape), batch + rows + columns
