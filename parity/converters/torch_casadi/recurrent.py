"""Recurrent layers, unrolled over the example's number of steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import casadi
import numpy as np
from torch import nn

from parity.converters.registry import lowers
from parity.converters.torch_casadi.activations import logistic
from parity.converters.torch_casadi.linear import linear
from parity.converters.torch_casadi.parameters import weights
from parity.converters.torch_casadi.tensor import Operand, Tensor, concatenate, elementwise, stack

State = tuple[Operand, ...]
Step = Callable[[Tensor, State], State]
"""One step: the input's part of the gates and the state, to the next state, whose first tensor is the output."""


def _sigmoid(x: Tensor) -> Tensor:
    return elementwise(logistic, x)


def _tanh(x: Tensor) -> Tensor:
    return elementwise(casadi.tanh, x)


def _relu(x: Tensor) -> Tensor:
    return elementwise(lambda e: casadi.if_else(e > 0, e, 0), x)


def _parts(x: Tensor, count: int) -> list[Tensor]:
    return [x.take(part) for part in np.split(x.positions, count, axis=-1)]


def _recurrent(weight: Any, bias: Any, state: Operand) -> Tensor:
    return linear(Tensor.of(state), weight, bias)


def _plain_step(activation: Callable[[Tensor], Tensor], weight: Any, bias: Any, gates: Tensor, state: State) -> State:
    return (activation(gates + _recurrent(weight, bias, state[0])),)


def _lstm_step(projection: Any, weight: Any, bias: Any, gates: Tensor, state: State) -> State:
    """Hochreiter and Schmidhuber (1997); `projection` (or None) shrinks the output."""
    enter, forget, cell, leave = _parts(gates + _recurrent(weight, bias, state[0]), 4)
    memory = _sigmoid(forget) * state[1] + _sigmoid(enter) * _tanh(cell)
    output = _sigmoid(leave) * _tanh(memory)
    return (output if projection is None else linear(output, projection)), memory


def _gru_step(weight: Any, bias: Any, gates: Tensor, state: State) -> State:
    """Cho et al. (2014), with the reset gate after the product, as in torch and cuDNN."""
    reset, update, new = _parts(gates, 3)
    own_reset, own_update, own_new = _parts(_recurrent(weight, bias, state[0]), 3)
    candidate = _tanh(new + _sigmoid(reset + own_reset) * own_new)
    keep = _sigmoid(update + own_update)
    return ((1 - keep) * candidate + keep * state[0],)


def _step(layer: Any, weight: Any, bias: Any, projection: Any = None) -> Step:
    kind = type(layer)
    if kind in (nn.LSTM, nn.LSTMCell):
        return partial(_lstm_step, projection, weight, bias)
    if kind in (nn.GRU, nn.GRUCell):
        return partial(_gru_step, weight, bias)
    return partial(_plain_step, {"tanh": _tanh, "relu": _relu}[layer.nonlinearity], weight, bias)


@lowers(nn.RNN, nn.LSTM, nn.GRU, to="casadi")
def recurrent_layer(layer: Any, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
    """All outputs, and the last state of every layer and direction."""
    single = input.ndim == 2
    x = input.reshape(input.shape[0], 1, -1) if single else input.permute(1, 0, 2) if layer.batch_first else input
    directions = 2 if layer.bidirectional else 1
    initial = _initial(layer, hx, x.shape[1], single, directions * layer.num_layers)
    finals: list[State] = []
    for depth in range(layer.num_layers):
        outputs = []
        for direction in range(directions):
            state = tuple(Tensor.of(part)[len(finals)] for part in initial)
            sequence, last = _run(layer, x, state, f"l{depth}{'_reverse' if direction else ''}", bool(direction))
            outputs.append(sequence)
            finals.append(last)
        x = outputs[0] if directions == 1 else concatenate(outputs, -1)
    last_states = [stack([final[place] for final in finals]) for place in range(len(initial))]
    if single:
        x, last_states = x[:, 0], [state[:, 0] for state in last_states]
    elif layer.batch_first:
        x = x.permute(1, 0, 2)
    return x, tuple(last_states) if isinstance(layer, nn.LSTM) else last_states[0]


def _initial(layer: Any, hx: Any, batch: int, single: bool, count: int) -> State:
    """The given first states, or zeros, of shape (layers, batch, features)."""
    sizes = [layer.proj_size or layer.hidden_size, *([layer.hidden_size] if isinstance(layer, nn.LSTM) else [])]
    if hx is None:
        return tuple(np.zeros((count, batch, size)) for size in sizes)
    given = hx if isinstance(layer, nn.LSTM) else (hx,)
    return tuple(part.reshape(count, 1, size) if single else part for part, size in zip(given, sizes, strict=True))


def _run(layer: Any, x: Tensor, state: State, suffix: str, backward: bool) -> tuple[Tensor, State]:
    """One direction of one layer over x (steps, batch, features); the input's products are taken all at once."""
    names = (f"{name}_{suffix}" for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh", "weight_hr"))
    weight_in, bias_in, weight, bias, projection = weights(layer, *names)
    gates = linear(x, weight_in, bias_in)
    step = _step(layer, weight, bias, projection)
    outputs: list[Operand] = []
    for place in reversed(range(x.shape[0])) if backward else range(x.shape[0]):
        state = step(gates[place], state)
        outputs.append(state[0])
    return stack(outputs[::-1] if backward else outputs), state


@lowers(nn.RNNCell, nn.LSTMCell, nn.GRUCell, to="casadi")
def recurrent_cell(layer: Any, input: Operand, hx: Any = None) -> Any:
    """One step."""
    x = Tensor.of(input)
    weight_in, bias_in, weight, bias = weights(layer, "weight_ih", "bias_ih", "weight_hh", "bias_hh")
    zeros = np.zeros((*x.shape[:-1], layer.hidden_size))
    memory = isinstance(layer, nn.LSTMCell)
    state = ((zeros, zeros) if memory else (zeros,)) if hx is None else tuple(hx) if memory else (hx,)
    after = _step(layer, weight, bias)(linear(x, weight_in, bias_in), state)
    return after if memory else after[0]
