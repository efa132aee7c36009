"""Convolutions and transposed convolutions, of any number of spatial dimensions.

Each is one sparse matrix, or, where many outputs read the same elements, a dense product of the weight with the
elements that its taps meet: four times faster for 8 channels of 3×3 taps, in C as in CasADi's virtual machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import casadi
import numpy as np
import scipy.sparse
import torch
from torch import nn

from parity.converters.registry import lowers
from parity.converters.torch_casadi.parameters import weights
from parity.converters.torch_casadi.products import multiply, transposed
from parity.converters.torch_casadi.shape import MODES
from parity.converters.torch_casadi.tensor import Tensor, concatenate, repeated, sparse
from parity.errors import Unsupported

Pairs = Sequence[tuple[int, int]]
Weight = Any
"""An array, or a `Tensor`."""
FEWEST_OUTPUTS = 4
"""Channels that must read the same elements for it to pay to gather them first."""


def each(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """One number for each spatial dimension."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * rank if len(values) == 1 else values


def windows(grid: np.ndarray, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> np.ndarray:
    """What each tap of the kernel meets: shape (taps, *output), the elements those of the padded `grid`."""
    counts = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(grid.shape, kernel, stride, dilation, strict=True)]
    if min(counts) < 1:
        raise Unsupported(f"the kernel {tuple(kernel)} is larger than its padded input {grid.shape}")
    steps = list(zip(counts, stride, dilation, strict=True))
    return np.stack(
        [
            grid[tuple(slice(t * d, t * d + (n - 1) * s + 1, s) for t, (n, s, d) in zip(tap, steps, strict=True))]
            for tap in np.ndindex(*kernel)
        ]
    )


def _operator(weight: Weight, met: np.ndarray, groups: int, size: int, transposed: bool = False) -> casadi.MX:
    """The convolution of `weight` (outputs, inputs / groups, taps) as a sparse matrix, or its transpose.

    `met` (taps, places) is the position, among the `size` of one input channel, that a tap meets at an output place;
    -1 where it meets padding.
    """
    outputs, inputs, _ = weight.shape
    taps, places = np.nonzero(met >= 0)
    channel = np.arange(outputs)[:, None, None]
    source = np.arange(inputs)[None, :, None] + channel // (outputs // groups) * inputs
    rows = np.broadcast_to(channel * met.shape[1] + places, (outputs, inputs, taps.size)).ravel()
    columns = (source * size + met[taps, places]).ravel()
    shape = (outputs * met.shape[1], groups * inputs * size)
    if transposed:
        rows, columns, shape = columns, rows, shape[::-1]
    if isinstance(weight, np.ndarray):
        return sparse(scipy.sparse.coo_matrix((weight[:, :, taps].ravel(), (rows, columns)), shape))
    places, nonzeros = np.unique(columns * shape[0] + rows, return_inverse=True)  # two taps may meet one element
    chosen = weight.positions[:, :, taps].ravel()
    gather = scipy.sparse.coo_matrix((np.ones(chosen.size), (nonzeros, chosen)), (places.size, weight.size))
    pattern = casadi.Sparsity.triplet(*shape, (places % shape[0]).tolist(), (places // shape[0]).tolist())
    return casadi.MX(pattern, casadi.densify(casadi.mtimes(sparse(gather), weight.data)))


def _pairs(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> Pairs:
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(count, count) for count in each(padding, len(kernel))]


def convolve(
    x: Tensor,
    weight: Weight,
    bias: Weight = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """torch.nn.functional.conv1d, conv2d and conv3d, with the layers' padding modes as well."""
    kernel = weight.shape[2:]
    rank = len(kernel)
    spatial = x.shape[-rank:]
    stride, dilation = each(stride, rank), each(dilation, rank)
    grid = np.arange(math.prod(spatial)).reshape(spatial)
    pairs = _pairs(padding, kernel, dilation)
    if padding_mode == "zeros":
        grid = np.pad(grid, pairs, constant_values=-1)
    else:
        grid = np.pad(grid, pairs, mode=MODES[padding_mode])
    met = windows(grid, kernel, stride, dilation)
    taps, shape = len(met), (weight.shape[0], *met.shape[1:])
    met = met.reshape(taps, -1)
    if groups == 1 and weight.shape[0] >= FEWEST_OUTPUTS and math.prod(x.shape[:-rank]) == weight.shape[1]:
        return _dense(x, weight.reshape(weight.shape[0], -1), bias, met, rank).reshape(*x.shape[: -rank - 1], *shape)
    matrix = _operator(weight.reshape(*weight.shape[:2], taps), met, groups, math.prod(spatial))
    return x.transform(matrix, rank + 1, shape, _per_channel(bias, rank))


def _dense(x: Tensor, weight: Weight, bias: Weight, met: np.ndarray, rank: int) -> Tensor:
    """The convolution of one sample by `weight` (outputs, inputs * taps), as (outputs, places)."""
    outputs, places = weight.shape[0], met.shape[1]
    rows = casadi.reshape(gather(x, met, rank).data, places, -1)
    start = transposed(repeated(bias, (outputs,), places))
    product = multiply(rows, Tensor.of(weight).matrix(weight.shape[1]), start)
    return Tensor(casadi.vec(product), (outputs, places))


def gather(x: Tensor, met: np.ndarray, rank: int) -> Tensor:
    """What each tap meets at each place: (…, channels * taps, places) of (…, channels, *spatial), 0 where it is -1."""
    *lead, channels = x.shape[:-rank]
    positions = x.positions.reshape(*lead, channels, -1)[..., met]
    chosen = np.where(met >= 0, positions, x.size).reshape(*lead, channels * len(met), -1)
    padded = concatenate([x.reshape(-1), np.zeros(1)]) if (met < 0).any() else x
    return padded.take(chosen)


def convolve_transposed(
    x: Tensor,
    weight: Weight,
    bias: Weight = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """torch.nn.functional.conv_transpose1d, …: the transpose of the convolution that maps its output to its input."""
    kernel = weight.shape[2:]
    rank = len(kernel)
    spatial = x.shape[-rank:]
    stride, dilation, padding = each(stride, rank), each(dilation, rank), each(padding, rank)
    extras = each(output_padding, rank)
    lengths = [
        (n - 1) * s - 2 * p + d * (k - 1) + extra + 1
        for n, s, p, d, k, extra in zip(spatial, stride, padding, dilation, kernel, extras, strict=True)
    ]
    grid = np.pad(np.arange(math.prod(lengths)).reshape(lengths), [(p, p) for p in padding], constant_values=-1)
    met = windows(grid, kernel, stride, dilation)
    met = met[(slice(None), *(slice(n) for n in spatial))]  # output padding may make room for one more place
    taps = len(met)
    grouped = weight.reshape(*weight.shape[:2], taps)
    matrix = _operator(grouped, met.reshape(taps, -1), groups, math.prod(lengths), transposed=True)
    return x.transform(matrix, rank + 1, (groups * weight.shape[1], *lengths), _per_channel(bias, rank))


def _per_channel(bias: Any, rank: int) -> Any:
    return None if bias is None else bias.reshape(-1, *(1,) * rank)


lowers(torch.conv1d, torch.conv2d, torch.conv3d, to="casadi")(convolve)
lowers(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d, to="casadi")(convolve_transposed)


@lowers(nn.Conv1d, nn.Conv2d, nn.Conv3d, to="casadi")
def convolution_layer(layer: Any, x: Tensor) -> Tensor:
    arguments = (layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
    weight, bias = weights(layer, "weight", "bias")
    return convolve(x, weight, bias, *arguments)


@lowers(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, to="casadi")
def transposed_convolution_layer(layer: Any, x: Tensor, output_size: Any = None) -> Tensor:
    if output_size is not None:
        raise Unsupported("output_size: give output_padding to the layer")
    arguments = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
    weight, bias = weights(layer, "weight", "bias")
    return convolve_transposed(x, weight, bias, *arguments)


@lowers(torch.nn.functional.unfold, to="casadi")
def unfold(input: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Tensor:
    """The elements that each place of a two-dimensional kernel meets, in one column for each place."""
    spatial = input.shape[-2:]
    kernel, stride, dilation = each(kernel_size, 2), each(stride, 2), each(dilation, 2)
    pairs = [(count, count) for count in each(padding, 2)]
    grid = np.pad(np.arange(math.prod(spatial)).reshape(spatial), pairs, constant_values=-1)
    return gather(input, windows(grid, kernel, stride, dilation).reshape(math.prod(kernel), -1), 2)


@lowers(nn.Unfold, to="casadi")
def unfold_layer(layer: nn.Unfold, x: Tensor) -> Tensor:
    return unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
