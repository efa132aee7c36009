"""What moves elements or asks for shapes: views, joins, indexing, padding, and casts, which do nothing here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from parity.converters.registry import lowers
from parity.converters.torch_casadi.spelling import spelled
from parity.converters.torch_casadi.tensor import Operand, Tensor, concatenate, elementwise, held, stack
from parity.errors import Unsupported

Sizes = Any
"""Integers, or one sequence of them."""


def _integers(sizes: tuple[Sizes, ...]) -> tuple[int, ...]:
    first = sizes[0] if len(sizes) == 1 else sizes
    if isinstance(first, torch.dtype):
        raise Unsupported(f"the same bits read as {first}")
    return tuple(int(size) for size in (first if isinstance(first, Sequence) else (first,)))


# --- asking -----------------------------------------------------------------------------------------------------------

ATTRIBUTES: dict[str, Callable[[Tensor], Any]] = {
    "shape": lambda x: torch.Size(x.shape),
    "ndim": lambda x: x.ndim,
    "dtype": lambda x: torch.float64,
    "device": lambda x: torch.device("cpu"),
    "is_cuda": lambda x: False,
    "layout": lambda x: torch.strided,
    "T": lambda x: x.permute(*reversed(range(x.ndim))),
    "mT": lambda x: x.take(x.positions.swapaxes(-2, -1)),
    "data": lambda x: elementwise(held, x),
}


@lowers(getattr, to="casadi")
def attribute(x: Any, name: str, *default: Any) -> Any:
    if not isinstance(x, Tensor):
        return getattr(x, name, *default)
    if name not in ATTRIBUTES:
        raise Unsupported(f"the tensor attribute {name}: {', '.join(ATTRIBUTES)} have a lowering")
    return ATTRIBUTES[name](x)


@lowers("size", to="casadi")
def size(x: Tensor, dim: int | None = None) -> Any:
    return torch.Size(x.shape) if dim is None else x.shape[dim]


lowers("dim", "ndimension", to="casadi")(lambda x: x.ndim)
lowers(*spelled("numel", "nelement"), to="casadi")(lambda input: input.size)
lowers(len, "__len__", to="casadi")(lambda x: x.shape[0] if isinstance(x, Tensor) else len(x))
lowers(*spelled("is_floating_point"), to="casadi")(lambda input: True)
lowers("is_contiguous", to="casadi")(lambda input, **options: True)
lowers(torch.broadcast_shapes, to="casadi")(lambda *shapes: torch.Size(np.broadcast_shapes(*shapes)))

# --- the same elements ------------------------------------------------------------------------------------------------

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@lowers(*spelled("clone"), "contiguous", "cpu", "float", "double", "half", "bfloat16", to="casadi")
def same(input: Tensor, **options: Any) -> Tensor:
    return input


@lowers("to", "type", "type_as", to="casadi")
def cast(input: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """Between floating types: everything is float64."""
    for value in (*arguments, *options.values()):
        if isinstance(value, torch.dtype) and value not in FLOATING:
            raise Unsupported(f"a cast to {value}: only floating types have a lowering")
        if isinstance(value, np.ndarray) and value.dtype.kind != "f":
            raise Unsupported("a cast to the type of a tensor of integers: only floating types have a lowering")
        if isinstance(value, str) and "Tensor" in value and not value.endswith(("FloatTensor", "DoubleTensor")):
            raise Unsupported(f"a cast to {value}: only floating types have a lowering")
    return input


@lowers(*spelled("detach"), to="casadi")
def detach(input: Tensor) -> Tensor:
    return elementwise(held, input)


@lowers(nn.Identity, to="casadi")
def identity(layer: nn.Identity, x: Tensor) -> Tensor:
    return x


@lowers(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, to="casadi")
def dropout_layer(layer: nn.Module, x: Tensor) -> Tensor:
    return x


@lowers(*spelled("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
        to="casadi")  # fmt: skip
def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if training and p > 0:
        raise Unsupported("it drops elements at random: pass training=self.training and call model.eval()")
    return input


# --- views ------------------------------------------------------------------------------------------------------------


@lowers(*spelled("reshape"), "view", to="casadi")
def reshape(input: Tensor, *shape: Sizes) -> Tensor:
    return input.reshape(*_integers(shape))


lowers("view_as", "reshape_as", to="casadi")(lambda input, other: input.reshape(*np.shape(other)))


@lowers(*spelled("flatten"), to="casadi")
def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    first, last = input.axes((start_dim, end_dim))
    return input.reshape(*input.shape[:first], math.prod(input.shape[first : last + 1]), *input.shape[last + 1 :])


lowers(*spelled("ravel"), to="casadi")(lambda input: input.reshape(-1))


@lowers(nn.Flatten, to="casadi")
def flatten_layer(layer: nn.Flatten, x: Tensor) -> Tensor:
    return flatten(x, layer.start_dim, layer.end_dim)


@lowers(*spelled("unflatten"), to="casadi")
def unflatten(input: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    axis = input.axes(dim)[0]
    lengths = np.broadcast_to(0, input.shape[axis]).reshape(sizes).shape
    return input.reshape(*input.shape[:axis], *lengths, *input.shape[axis + 1 :])


@lowers(nn.Unflatten, to="casadi")
def unflatten_layer(layer: nn.Unflatten, x: Tensor) -> Tensor:
    if not isinstance(layer.dim, int):
        raise Unsupported("named dimensions")
    return unflatten(x, layer.dim, tuple(layer.unflattened_size))


@lowers(*spelled("squeeze"), to="casadi")
def squeeze(input: Tensor, *dims: Sizes) -> Tensor:
    chosen = input.axes(_integers(dims)) if dims else range(input.ndim)
    return input.reshape(*(n for axis, n in enumerate(input.shape) if n != 1 or axis not in chosen))


@lowers(*spelled("unsqueeze"), to="casadi")
def unsqueeze(input: Tensor, dim: int) -> Tensor:
    return input.take(np.expand_dims(input.positions, dim))


@lowers(*spelled("permute"), to="casadi")
def permute(input: Tensor, *dims: Sizes) -> Tensor:
    return input.permute(*_integers(dims))


@lowers(*spelled("transpose", "swapaxes", "swapdims"), to="casadi")
def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    return input.take(input.positions.swapaxes(dim0, dim1))


lowers(*spelled("t", "adjoint"), to="casadi")(lambda input: transpose(input, -1, -2) if input.ndim > 1 else input)


@lowers(*spelled("movedim", "moveaxis"), to="casadi")
def move_dimension(input: Tensor, source: Any, destination: Any) -> Tensor:
    return input.take(np.moveaxis(input.positions, source, destination))


@lowers("expand", to="casadi")
def expand(input: Tensor, *sizes: Sizes) -> Tensor:
    """-1 keeps a length."""
    lengths = _integers(sizes)
    own = (1,) * (len(lengths) - input.ndim) + input.shape
    return input.expand(*(old if new == -1 else new for old, new in zip(own, lengths, strict=True)))


lowers("expand_as", to="casadi")(lambda input, other: input.expand(*np.shape(other)))
lowers(*spelled("broadcast_to"), to="casadi")(lambda input, *size: expand(input, *size))


@lowers("repeat", *spelled("tile"), to="casadi")
def repeat(input: Tensor, *sizes: Sizes) -> Tensor:
    return input.take(np.tile(input.positions, _integers(sizes)))


@lowers(*spelled("repeat_interleave"), to="casadi")
def repeat_interleave(input: Tensor, repeats: Any, dim: int | None = None) -> Tensor:
    return input.take(np.repeat(input.positions, repeats, axis=dim))


@lowers(*spelled("flip"), to="casadi")
def flip(input: Tensor, *dims: Sizes) -> Tensor:
    return input.take(np.flip(input.positions, _integers(dims)))


@lowers(*spelled("roll"), to="casadi")
def roll(input: Tensor, shifts: Any, dims: Any = None) -> Tensor:
    return input.take(np.roll(input.positions, shifts, axis=dims or None if dims == () else dims))


# --- parts ------------------------------------------------------------------------------------------------------------


@lowers(*spelled("getitem"), to="casadi")
def item(x: Any, key: Any) -> Any:
    return x[key]


@lowers(*spelled("select"), to="casadi")
def select(input: Tensor, dim: int, index: int) -> Tensor:
    return input.take(np.take(input.positions, index, axis=dim))


@lowers(*spelled("narrow"), to="casadi")
def narrow(input: Tensor, dim: int, start: int, length: int) -> Tensor:
    return input.take(np.take(input.positions, range(start, start + length), axis=dim))


@lowers(*spelled("index_select"), to="casadi")
def index_select(input: Tensor, dim: int, index: Any) -> Tensor:
    return input.take(np.take(input.positions, _fixed(index), axis=dim))


@lowers(*spelled("gather"), to="casadi")
def gather(input: Tensor, dim: int, index: Any, *, sparse_grad: bool = False) -> Tensor:
    index = _fixed(index)
    places = list(np.indices(index.shape))
    places[dim] = index
    return input.take(input.positions[tuple(places)])


@lowers("unfold", to="casadi")
def windows_along(input: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """Every window of that size, in a new last dimension."""
    windows = np.lib.stride_tricks.sliding_window_view(input.positions, size, axis=dimension)
    return input.take(windows[(*(slice(None),) * (dimension % input.ndim), slice(None, None, step))])


@lowers(*spelled("diagonal"), to="casadi")
def diagonal(input: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    return input.take(np.diagonal(input.positions, offset, dim1, dim2))


def _fixed(index: Any) -> np.ndarray:
    if isinstance(index, Tensor):
        raise Unsupported("indexing by a computed tensor: the elements would depend on the data")
    return np.asarray(index)


@lowers(*spelled("chunk"), to="casadi")
def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    return split(input, -(-input.shape[dim] // chunks), dim)


@lowers(*spelled("split", "split_with_sizes"), to="casadi")
def split(tensor: Tensor, split_size_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    length, sizes = tensor.shape[dim], split_size_or_sections
    ends = range(sizes, length, sizes) if isinstance(sizes, int) else np.cumsum(sizes)[:-1]
    return tuple(tensor.take(part) for part in np.split(tensor.positions, list(ends), axis=dim))


lowers("split", to="casadi", replace=True)(lambda self, split_size, dim=0: split(self, split_size, dim))


@lowers(*spelled("tensor_split"), to="casadi")
def tensor_split(input: Tensor, indices_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    return tuple(input.take(part) for part in np.array_split(input.positions, indices_or_sections, axis=dim))


@lowers(*spelled("unbind"), to="casadi")
def unbind(input: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    return tuple(select(input, dim, place) for place in range(input.shape[dim]))


@lowers(*spelled("tril"), to="casadi")
def lower_triangle(input: Tensor, diagonal: int = 0) -> Tensor:
    return input * np.tril(np.ones(input.shape[-2:]), diagonal)


@lowers(*spelled("triu"), to="casadi")
def upper_triangle(input: Tensor, diagonal: int = 0) -> Tensor:
    return input * np.triu(np.ones(input.shape[-2:]), diagonal)


# --- joins ------------------------------------------------------------------------------------------------------------


@lowers(*spelled("cat", "concat", "concatenate"), to="casadi")
def join(tensors: Sequence[Operand], dim: int = 0) -> Tensor:
    return concatenate(tensors, dim)


@lowers(*spelled("stack"), to="casadi")
def join_new(tensors: Sequence[Operand], dim: int = 0) -> Tensor:
    return stack(tensors, dim)


@lowers(*spelled("hstack"), to="casadi")
def join_columns(tensors: Sequence[Operand]) -> Tensor:
    return concatenate(tensors, 0 if len(np.shape(tensors[0])) == 1 else 1)


@lowers(*spelled("vstack"), to="casadi")
def join_rows(tensors: Sequence[Operand]) -> Tensor:
    return concatenate([Tensor.of(part).reshape(-1, np.shape(part)[-1]) for part in tensors]) \
        if len(np.shape(tensors[0])) < 2 else concatenate(tensors)  # fmt: skip


# --- padding ----------------------------------------------------------------------------------------------------------

MODES: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""torch's modes by numpy's names."""


@lowers(*spelled("pad"), to="casadi")
def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """`pad` counts before and after, of the last dimension first; negative counts cut."""
    pairs = [(0, 0)] * (input.ndim - len(pad) // 2) + list(zip(pad[::2], pad[1::2], strict=True))[::-1]
    cut = tuple(slice(max(0, -low), n - max(0, -high)) for (low, high), n in zip(pairs, input.shape, strict=True))
    widths = [(max(0, low), max(0, high)) for low, high in pairs]
    if mode != "constant":
        return input.take(np.pad(input.positions[cut], widths, mode=MODES[mode]))
    filled = Tensor.of(np.array([value or 0.0]))
    index = np.pad(input.positions[cut], widths, constant_values=input.size)
    return concatenate([input.reshape(-1), filled]).take(index)


@lowers(*(getattr(nn, f"{kind}Pad{rank}d") for kind in ("Zero", "Constant", "Reflection", "Replication", "Circular")
          for rank in (1, 2, 3)), to="casadi")  # fmt: skip
def pad_layer(layer: Any, x: Tensor) -> Tensor:
    kind = type(layer).__name__.split("Pad")[0]
    mode = {"Reflection": "reflect", "Replication": "replicate", "Circular": "circular"}.get(kind, "constant")
    return pad(x, layer.padding, mode, getattr(layer, "value", 0.0))


@lowers(*spelled("pixel_shuffle"), to="casadi")
def pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    *batch, channels, height, width = input.shape
    factor = upscale_factor
    parts = input.positions.reshape(*batch, channels // factor**2, factor, factor, height, width)
    order = (*range(len(batch) + 1), -2, -4, -1, -3)
    return input.take(parts.transpose(order).reshape(*batch, channels // factor**2, height * factor, width * factor))


lowers(nn.PixelShuffle, to="casadi")(lambda layer, x: pixel_shuffle(x, layer.upscale_factor))

# --- constants of a tensor's shape ------------------------------------------------------------------------------------

for _name, _value in (("zeros", 0.0), ("ones", 1.0)):
    lowers(*spelled(f"{_name}_like"), to="casadi")(lambda input, _value=_value, **options: np.full(input.shape, _value))
    lowers(f"new_{_name}", to="casadi")(
        lambda input, *size, _value=_value, **options: np.full(_integers(size or (options["size"],)), _value)
    )
lowers(*spelled("full_like"), to="casadi")(lambda input, fill_value, **options: np.full(input.shape, float(fill_value)))
lowers("new_full", to="casadi")(lambda input, size, fill_value, **options: np.full(size, float(fill_value)))
lowers("new_tensor", to="casadi")(lambda input, data, **options: np.asarray(data, dtype=np.float64))
