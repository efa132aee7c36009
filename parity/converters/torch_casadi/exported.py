"""Lowers what `torch.export` captured: operations of torch's own library, `aten`.

Most are named, and called, as the torch functions that users call, and so have a lowering already; here is the rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import casadi
import numpy as np
import torch
from torch.export.graph_signature import InputKind, OutputKind

from parity.converters.registry import find_lowering, lowers
from parity.converters.torch_casadi import convolution, normalization, pooling, recurrent, shape
from parity.converters.torch_casadi.arithmetic import Extreme, Indices, vector_norm
from parity.converters.torch_casadi.capture import Arguments, export
from parity.converters.torch_casadi.lowering import Lowering, has_tensor
from parity.converters.torch_casadi.parameters import open_parameters, symbol_of
from parity.converters.torch_casadi.spelling import PLACES
from parity.converters.torch_casadi.tensor import Operand, Tensor, concatenate
from parity.errors import Unsupported

IGNORED = frozenset((
    "layout", "device", "pin_memory", "memory_format", "non_blocking", "copy", "implicit", "cudnn_enable",
    "cudnn_enabled", "sparse_grad", "path", "half_to_float", "generator"
))  # fmt: skip
"""Arguments that do not change the numbers."""
USUAL_NAMES = {"log_sigmoid": "logsigmoid"}


def run_exported(
    model: torch.nn.Module, arguments: Arguments, inputs: Sequence[Tensor], symbolic: bool
) -> tuple[Any, casadi.MX | None]:
    """The model's result, and the symbol of its parameters if they are `symbolic`. Raises Unsupported."""
    program = export(model, arguments)
    parameters = open_parameters(model, "p") if symbolic else None
    signature, rest, values = program.graph_signature, iter(inputs), []
    own = dict(model.named_parameters(remove_duplicate=False))
    for spec in signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            values.append(next(rest, None))
        else:
            tensor = program.constants.get(spec.target, program.state_dict.get(spec.target))
            values.append(symbol_of(own.get(spec.target)) or tensor)
    for output in signature.output_specs:
        if output.kind != OutputKind.USER_OUTPUT:
            raise Unsupported(f"{type(model).__name__}.forward writes to {output.target}: a function keeps no state")
    for node in list(program.graph.nodes):
        if "_assert" in str(node.target):
            program.graph.erase_node(node)  # torch.export notes what it took for granted: shapes and types
    return _ExportedLowering(program.graph_module, program.graph).run(*values, enable_io_processing=False), parameters


class _ExportedLowering(Lowering):
    """Runs a graph of `aten` operations on symbolic tensors."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if not isinstance(target, torch._ops.OpOverload):
            return super().call_function(target, args, kwargs)
        name = target._schema.name.removeprefix("aten::")
        lowering = _find(name)
        if lowering is not None and has_tensor((args, kwargs)):
            args, kwargs = _bound(target, lowering, args, kwargs)
        return self._call(lowering, target, f"aten.{name}", args, kwargs)


def _find(name: str) -> Callable[..., Any] | None:
    name = name.removesuffix("_") if not name.startswith("__") else name
    if own := find_lowering(f"aten.{name}", "casadi"):
        return own
    name = USUAL_NAMES.get(name, name)
    functions = (getattr(place, name, None) for place in PLACES)
    found = (find_lowering(function, "casadi") for function in functions if function is not None)
    return next((lowering for lowering in found if lowering), None) or find_lowering(name, "casadi")


def _bound(target: torch._ops.OpOverload, lowering: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The call by what the lowering takes: aten gives by place what torch's functions give by name."""
    parameters = inspect.signature(lowering).parameters.values()
    several = any(parameter.kind == parameter.VAR_POSITIONAL for parameter in parameters)
    room = sum(
        parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) for parameter in parameters
    )
    given = [(argument.name, value) for argument, value in zip(target._schema.arguments, args, strict=False)]
    while given and given[-1][0] in IGNORED:
        given.pop()
    by_name = {name: value for name, value in kwargs.items() if name not in IGNORED}
    if not several:
        by_name |= {name: value for name, value in given[room:] if name not in IGNORED}
        given = given[:room]
    dtype = by_name.get("dtype")
    if dtype is None or dtype.is_floating_point:
        by_name.pop("dtype", None)
    return tuple(value for _, value in given), by_name


# --- what is called otherwise than users call it ----------------------------------------------------------------------


@lowers("aten.slice", to="casadi")
def slice_(input: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Tensor:
    return input.take(_sliced(input, dim, start, end, step))


def _sliced(x: Tensor, dim: int, start: int | None, end: int | None, step: int) -> np.ndarray:
    return x.positions[(*(slice(None),) * (dim % x.ndim), slice(start, end, step))]


@lowers("aten.slice_scatter", to="casadi")
def slice_scatter(
    input: Operand, src: Operand, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    x = Tensor.of(input)
    return _written(x, _sliced(x, dim, start, end, step), src)


@lowers("aten.select_scatter", to="casadi")
def select_scatter(input: Operand, src: Operand, dim: int, index: int) -> Tensor:
    x = Tensor.of(input)
    return _written(x, np.take(x.positions, index, axis=dim), src)


@lowers("aten.index", to="casadi")
def index(input: Operand, indices: Sequence[Any]) -> Tensor:
    return Tensor.of(input)[_key(indices)]


@lowers("aten.index_put", to="casadi")
def index_put(input: Operand, indices: Sequence[Any], values: Operand, accumulate: bool = False) -> Tensor:
    if accumulate:
        raise Unsupported("accumulate=True")
    x = Tensor.of(input)
    return _written(x, x.positions[_key(indices)], values)


def _key(indices: Sequence[Any]) -> tuple[Any, ...]:
    if any(isinstance(part, Tensor) for part in indices):
        raise Unsupported("indexing by a computed tensor: the shape or the elements would depend on the data")
    return tuple(slice(None) if part is None else part for part in indices)


def _written(x: Tensor, places: np.ndarray, values: Operand) -> Tensor:
    """`x` with the values, after broadcasting, at those places."""
    new = Tensor.of(values).expand(*places.shape)
    order = x.positions.ravel().copy()
    order[places.ravel()] = x.size + np.arange(new.size)
    return concatenate([x.reshape(-1), new.reshape(-1)]).take(order.reshape(x.shape))


@lowers("aten.copy", to="casadi")
def copy(input: Operand, src: Operand) -> Tensor:
    return Tensor.of(src).expand(*Tensor.of(input).shape)


lowers("aten.alias", "aten.lift_fresh_copy", "aten.lift_fresh", to="casadi")(lambda input: input)
lowers("aten.unfold", to="casadi")(shape.windows_along)
lowers("aten.im2col", to="casadi")(convolution.unfold)
lowers("aten._unsafe_view", to="casadi")(lambda input, size: input.reshape(*size))
lowers("aten.sym_size", to="casadi")(lambda input, dim: input.shape[dim])
lowers("aten.linalg_vector_norm", to="casadi")(vector_norm)
lowers("aten.fill", to="casadi")(lambda input, value: copy(input, value))


@lowers("aten._to_copy", "aten.to", to="casadi")
def to(input: Tensor, dtype: torch.dtype | None = None, *arguments: Any) -> Tensor:
    return shape.cast(input, *(() if dtype is None else (dtype,)))


@lowers("aten.batch_norm", to="casadi")
def batch_norm(
    input: Tensor, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: bool, momentum: float,
    eps: float,
) -> Tensor:  # fmt: skip
    return normalization.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


@lowers("aten._native_batch_norm_legit_no_training", to="casadi")
def batch_norm_of_running_statistics(
    input: Tensor, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: float, eps: float
) -> tuple[Tensor, None, None]:
    return normalization.batch_norm(input, running_mean, running_var, weight, bias, eps=eps), None, None


@lowers("aten.instance_norm", to="casadi")
def instance_norm(
    input: Tensor, weight: Any, bias: Any, running_mean: Any, running_var: Any, use_input_stats: bool, momentum: float,
    eps: float,
) -> Tensor:  # fmt: skip
    return normalization.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


@lowers("aten.upsample_linear1d", "aten.upsample_bilinear2d", "aten.upsample_trilinear3d", to="casadi")
def upsample_linear(input: Tensor, size: Any, align_corners: bool, scale_factors: Any = None) -> Tensor:
    return pooling.interpolate(input, size, scale_factors, "linear", align_corners)


@lowers("aten.upsample_bicubic2d", to="casadi")
def upsample_cubic(input: Tensor, size: Any, align_corners: bool, scale_factors: Any = None) -> Tensor:
    return pooling.interpolate(input, size, scale_factors, "bicubic", align_corners)


for _rank in (1, 2, 3):
    lowers(f"aten.upsample_nearest{_rank}d", to="casadi")(
        lambda input, size, scale_factors=None: pooling.interpolate(input, size, scale_factors)
    )
    lowers(f"aten._upsample_nearest_exact{_rank}d", to="casadi")(
        lambda input, size, scale_factors=None: pooling.interpolate(input, size, scale_factors, "nearest-exact")
    )
    lowers(f"aten.adaptive_max_pool{_rank}d", to="casadi")(
        lambda input, output_size, _rank=_rank: Extreme(
            pooling.adaptive_max_pool(input, output_size, rank=_rank), Indices()
        )
    )
    lowers(f"aten.max_pool{_rank}d_with_indices", to="casadi")(
        lambda input, *window, _rank=_rank: Extreme(pooling.max_pool(input, *window, rank=_rank), Indices())
    )


# --- recurrent layers -------------------------------------------------------------------------------------------------


def _give(layer: Any, values: Sequence[Any]) -> None:
    """Put the values in the place of the layer's parameters, which are in torch's usual order."""
    names = list(layer._parameters)
    if getattr(layer, "proj_size", 0):  # made without it: a projection comes after each direction's other parameters
        each = len(names) // (layer.num_layers * (2 if layer.bidirectional else 1))
        names = [
            name for start in range(0, len(names), each)
            for name in (*names[start : start + each], names[start].replace("weight_ih", "weight_hr"))
        ]  # fmt: skip
    layer._parameters.clear()
    layer.__dict__.update(zip(names, values, strict=True))


def _recurrent(kind: Callable[..., Any], gates: int, **fixed: Any) -> Callable[..., tuple[Tensor, ...]]:
    def lower(
        input: Tensor, hx: Any, params: Sequence[Any], has_biases: bool, num_layers: int, dropout: float, train: bool,
        bidirectional: bool, batch_first: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        if train and dropout > 0:
            raise Unsupported("it drops elements at random: call model.eval() before converting")
        options = {"bias": has_biases, "batch_first": batch_first, "bidirectional": bidirectional, **fixed}
        layer = kind(1, 1, num_layers=num_layers, device="meta", **options)
        layer.hidden_size = params[0].shape[0] // gates
        projected = params[1].shape[1] != layer.hidden_size
        layer.proj_size = params[1].shape[1] if projected else 0
        _give(layer, params)
        output, state = recurrent.recurrent_layer(layer, input, tuple(hx) if isinstance(hx, list | tuple) else hx)
        return (output, *state) if isinstance(state, tuple) else (output, state)

    return lower


lowers("aten.lstm", to="casadi")(_recurrent(torch.nn.LSTM, 4))
lowers("aten.gru", to="casadi")(_recurrent(torch.nn.GRU, 3))
lowers("aten.rnn_tanh", to="casadi")(_recurrent(torch.nn.RNN, 1, nonlinearity="tanh"))
lowers("aten.rnn_relu", to="casadi")(_recurrent(torch.nn.RNN, 1, nonlinearity="relu"))


def _cell(kind: Callable[..., Any], **fixed: Any) -> Callable[..., Any]:
    def lower(input: Operand, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> Any:
        values = [w_ih, w_hh, *([] if b_ih is None else [b_ih, b_hh])]
        layer = kind(1, w_hh.shape[1], b_ih is not None, device="meta", **fixed)
        _give(layer, values)
        return recurrent.recurrent_cell(layer, input, hx)

    return lower


lowers("aten.lstm_cell", to="casadi")(_cell(torch.nn.LSTMCell))
lowers("aten.gru_cell", to="casadi")(_cell(torch.nn.GRUCell))
lowers("aten.rnn_tanh_cell", to="casadi")(_cell(torch.nn.RNNCell, nonlinearity="tanh"))
lowers("aten.rnn_relu_cell", to="casadi")(_cell(torch.nn.RNNCell, nonlinearity="relu"))
