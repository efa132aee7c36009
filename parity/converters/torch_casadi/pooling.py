"""Pooling and resampling. What is linear is a product of one small matrix for each spatial dimension."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import casadi
import numpy as np
import scipy.sparse
import torch
from torch import nn
from torch.nn import functional

from parity.converters.registry import lowers
from parity.converters.torch_casadi.convolution import each, windows
from parity.converters.torch_casadi.tensor import Tensor, elementwise, sparse
from parity.errors import Unsupported


def separable(x: Tensor, matrices: Sequence[np.ndarray]) -> Tensor:
    """Each of the last dimensions times its matrix (outputs, inputs), in one sparse product."""
    operator = reduce(scipy.sparse.kron, (scipy.sparse.csc_matrix(matrix) for matrix in matrices))
    return x.transform(sparse(operator), len(matrices), tuple(len(matrix) for matrix in matrices))


def _count(length: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Windows along a dimension. With `ceil_mode` the last may reach over the end, but must start before it."""
    room = length + 2 * padding - dilation * (kernel - 1) - 1
    count = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    return count - 1 if ceil_mode and (count - 1) * stride >= length + padding else count


def max_pool(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    rank: int,
) -> Tensor:
    """torch.nn.functional.max_pool1d, …; a tap on padding repeats another element of its window."""
    if return_indices:
        raise Unsupported("return_indices=True")
    kernel, spatial = each(kernel_size, rank), x.shape[-rank:]
    stride, padding, dilation = each(stride or kernel, rank), each(padding, rank), each(dilation, rank)
    counts = [_count(*sizes, ceil_mode) for sizes in zip(spatial, kernel, stride, padding, dilation, strict=True)]
    grid = np.pad(np.arange(math.prod(spatial)).reshape(spatial), [(p, p + s + k * d) for p, s, k, d in
                  zip(padding, stride, kernel, dilation, strict=True)], constant_values=-1)  # fmt: skip
    met = windows(grid, kernel, stride, dilation)[(slice(None), *(slice(count) for count in counts))]
    valid = met >= 0
    if not valid.any(axis=0).all():
        raise Unsupported("a window holds nothing but padding, whose maximum is -inf")
    first = np.take_along_axis(met, valid.argmax(axis=0)[None], axis=0)
    met = np.where(valid, met, first).reshape(len(met), -1)
    return _largest(x, list(met), counts)


def _largest(x: Tensor, taps: Sequence[np.ndarray], lengths: Sequence[int]) -> Tensor:
    """The elementwise maximum over taps, each an index into the last `len(lengths)` dimensions."""
    lead = x.shape[: x.ndim - len(lengths)]
    positions = x.positions.reshape(*lead, -1)
    parts = [x.take(positions[..., tap].reshape(*lead, *lengths)) for tap in taps]
    return reduce(lambda left, right: elementwise(_larger, left, right), parts)


def _larger(first: casadi.MX, second: casadi.MX) -> casadi.MX:
    """The first of equals, as in torch; and CasADi evaluates this faster than fmax."""
    return casadi.if_else(second > first, second, first)


def average_pool(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    rank: int,
) -> Tensor:
    """torch.nn.functional.avg_pool1d, …"""
    kernel, padding = each(kernel_size, rank), each(padding, rank)
    sizes = zip(x.shape[-rank:], kernel, each(stride or kernel, rank), padding, strict=True)
    pooled = separable(x, [_averages(*size, ceil_mode, count_include_pad, divisor_override) for size in sizes])
    return pooled / divisor_override if divisor_override else pooled


def _averages(
    length: int, kernel: int, stride: int, padding: int, ceil_mode: bool, count_include_pad: bool, raw: object
) -> np.ndarray:
    """One dimension's averages, or sums if `raw`. Padding counts, but not what lies beyond it (`ceil_mode`)."""
    matrix = np.zeros((_count(length, kernel, stride, padding, 1, ceil_mode), length))
    for row, weights in enumerate(matrix):
        start = row * stride - padding
        end = min(start + kernel, length + padding)
        inside = slice(max(start, 0), min(end, length))
        divisor = end - start if count_include_pad else inside.stop - inside.start
        weights[inside] = 1.0 if raw else 1.0 / divisor
    return matrix


def _bins(length: int, count: int) -> list[range]:
    return [range(place * length // count, -(-(place + 1) * length // count)) for place in range(count)]


def _adaptive_size(x: Tensor, output_size: Any, rank: int) -> list[tuple[int, int]]:
    given = tuple(output_size) if isinstance(output_size, Sequence) else (output_size,)
    sizes = given if len(given) == rank else given * rank
    return [(n, n if size is None else size) for n, size in zip(x.shape[-rank:], sizes, strict=True)]


def adaptive_average_pool(x: Tensor, output_size: Any, *, rank: int) -> Tensor:
    """torch.nn.functional.adaptive_avg_pool1d, …"""
    matrices = []
    for length, count in _adaptive_size(x, output_size, rank):
        matrices.append(np.zeros((count, length)))
        for weights, places in zip(matrices[-1], _bins(length, count), strict=True):
            weights[places] = 1.0 / len(places)
    return separable(x, matrices)


def adaptive_max_pool(x: Tensor, output_size: Any, return_indices: bool = False, *, rank: int) -> Tensor:
    """torch.nn.functional.adaptive_max_pool1d, …; short bins repeat their last element."""
    if return_indices:
        raise Unsupported("return_indices=True")
    index, lengths, spatial = [], [], x.shape[-rank:]
    for length, count in _adaptive_size(x, output_size, rank):
        bins = _bins(length, count)
        longest = max(len(places) for places in bins)
        index.append(np.array([[places[min(tap, len(places) - 1)] for places in bins] for tap in range(longest)]))
        lengths.append(count)
    grid = np.arange(math.prod(spatial)).reshape(spatial)
    choices = np.ndindex(*(len(taps) for taps in index))
    taps = [grid[np.ix_(*(taps[place] for taps, place in zip(index, choice, strict=True)))] for choice in choices]
    return _largest(x, [tap.ravel() for tap in taps], lengths)


# --- resampling -------------------------------------------------------------------------------------------------------


def _sources(length: int, count: int, scale: float | None, align_corners: bool) -> np.ndarray:
    """Where each output lies between the inputs."""
    places = np.arange(count)
    if align_corners:
        return places * ((length - 1) / (count - 1) if count > 1 else 0.0)
    return (places + 0.5) * (1.0 / scale if scale else length / count) - 0.5


def _linear(length: int, count: int, scale: float | None, align_corners: bool) -> np.ndarray:
    source = np.maximum(_sources(length, count, scale, align_corners), 0.0)
    below = np.minimum(np.floor(source).astype(int), length - 1)
    fraction = np.clip(source - below, 0.0, 1.0)
    matrix = np.zeros((count, length))
    rows = np.arange(count)
    np.add.at(matrix, (rows, below), 1.0 - fraction)
    np.add.at(matrix, (rows, np.minimum(below + 1, length - 1)), fraction)
    return matrix


def _cubic(length: int, count: int, scale: float | None, align_corners: bool) -> np.ndarray:
    """Keys (1981), with torch's a = -0.75."""
    source = _sources(length, count, scale, align_corners)
    below, a = np.floor(source).astype(int), -0.75
    matrix = np.zeros((count, length))
    for tap in (-1, 0, 1, 2):
        far = np.abs(source - below - tap)
        near = ((a + 2) * far - (a + 3)) * far * far + 1
        weight = np.where(far <= 1, near, ((far - 5) * far + 8) * far * a - 4 * a)
        np.add.at(matrix, (np.arange(count), np.clip(below + tap, 0, length - 1)), weight)
    return matrix


def _nearest(length: int, count: int, scale: float | None, exact: bool) -> np.ndarray:
    """Positions. torch computes them in float32, whatever the tensor's type."""
    step = np.float32(1.0 / scale) if scale else np.float32(length) / np.float32(count)
    places = np.arange(count, dtype=np.float32) + np.float32(0.5 if exact else 0.0)
    return np.minimum(np.floor(places * step).astype(int), length - 1)


SMOOTH: dict[str, Callable[..., np.ndarray]] = {"linear": _linear, "bilinear": _linear, "trilinear": _linear,
                                                "bicubic": _cubic}  # fmt: skip


@lowers(functional.interpolate, functional.upsample, to="casadi")
def interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """torch.nn.functional.interpolate, on the dimensions from the third on."""
    lengths = input.shape[2:]
    scales: list[float | None] = [None] * len(lengths)
    if antialias or mode not in (*SMOOTH, "nearest", "nearest-exact"):
        raise Unsupported(f"mode={mode!r}, antialias={antialias}: nearest, linear and cubic modes have a lowering")
    if size is not None:
        counts = each(size, len(lengths))
    else:
        factors = (scale_factor,) * len(lengths) if isinstance(scale_factor, int | float) else scale_factor
        counts = tuple(math.floor(n * factor) for n, factor in zip(lengths, factors, strict=True))
        scales = scales if recompute_scale_factor else list(factors)
    steps = list(zip(lengths, counts, scales, strict=True))
    if mode in SMOOTH:
        return separable(input, [SMOOTH[mode](*step, bool(align_corners)) for step in steps])
    index = [_nearest(*step, mode == "nearest-exact") for step in steps]
    return input.take(input.positions[np.ix_(*(range(n) for n in input.shape[:2]), *index)])


@lowers(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, to="casadi")
def upsample_layer(layer: Any, x: Tensor) -> Tensor:
    return interpolate(x, layer.size, layer.scale_factor, layer.mode, layer.align_corners, layer.recompute_scale_factor)


# --- layers and functions of each rank --------------------------------------------------------------------------------

KINDS: tuple[tuple[str, str, Callable[..., Tensor], tuple[str, ...]], ...] = (
    ("MaxPool", "max_pool", max_pool,
     ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")),
    ("AvgPool", "avg_pool", average_pool,
     ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")),
    ("AdaptiveAvgPool", "adaptive_avg_pool", adaptive_average_pool, ("output_size",)),
    ("AdaptiveMaxPool", "adaptive_max_pool", adaptive_max_pool, ("output_size", "return_indices")),
)  # fmt: skip


def _register(type_name: str, name: str, function: Callable[..., Tensor], attributes: Sequence[str], rank: int) -> None:
    def lower(input: Tensor, *arguments: Any, **options: Any) -> Tensor:
        return function(input, *arguments, **options, rank=rank)

    def lower_layer(layer: nn.Module, x: Tensor) -> Tensor:
        return lower(x, **{name: getattr(layer, name) for name in attributes if hasattr(layer, name)})

    functions = {getattr(place, f"{name}{rank}d", None): None for place in (functional, torch)}
    lowers(*(found for found in functions if found is not None), to="casadi")(lower)
    lowers(getattr(nn, f"{type_name}{rank}d"), to="casadi")(lower_layer)


for _type_name, _name, _function, _attributes in KINDS:
    for _rank in (1, 2, 3):
        _register(_type_name, _name, _function, _attributes, _rank)
