"""SimpleRNN, LSTM, GRU, Bidirectional and TimeDistributed.

With the usual activations and without a mask, torch's own kernels run; else a loop over the steps. Parameters have
torch's layout: gates one below the other (LSTM: input, forget, cell, output; GRU: reset, update, new). Unlike
`nn.LSTM` there is one bias where Keras has one, so that a step of training moves it as far as in Keras.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.converters.keras_torch.activations import Activation, activation_of
from parity.converters.keras_torch.layer import Layer, lower, make
from parity.converters.registry import lowers


class _Recurrent(nn.Module):
    """Steps over (batch, steps, features), from the last to the first if `go_backwards`."""

    gates = 1
    states = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        zero_output_for_mask: bool = False,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.return_sequences, self.return_state, self.go_backwards = return_sequences, return_state, go_backwards
        self.zero_output_for_mask = zero_output_for_mask
        self.dropout, self.recurrent_dropout = dropout, recurrent_dropout
        self.several_outputs = return_state
        self.weight_ih = nn.Parameter(torch.empty(self.gates * hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(self.gates * hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.empty(self.bias_shape)) if bias else None

    @property
    def bias_shape(self) -> tuple[int, ...]:
        return (self.gates * self.hidden_size,)

    def forward(self, sequences: Tensor, initial_state: Any = None, mask: Tensor | None = None) -> Any:
        x = sequences.flip(1) if self.go_backwards else sequences
        if self.training and self.dropout > 0:  # one pattern for all steps
            x = x * F.dropout(torch.ones_like(x[:, :1]), self.dropout)
        if self.training and self.recurrent_dropout > 0:
            raise NotImplementedError("training with recurrent_dropout: set it to 0, or call eval()")
        zeros = x.new_zeros(x.shape[0], self.hidden_size)
        given = (initial_state,) if isinstance(initial_state, Tensor) else initial_state
        start = [zeros] * self.states if given is None else list(given)
        if mask is None and self.has_kernel():
            outputs, states = self.kernel(x, start)
        else:
            outputs, states = self.loop(x, start, mask.flip(1) if mask is not None and self.go_backwards else mask)
        result = outputs if self.return_sequences else outputs[:, -1]
        return (result, *states) if self.return_state else result

    def loop(self, x: Tensor, states: list[Tensor], mask: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Where a mask is false, the states stay, and the output is the last one (or 0)."""
        projected = F.linear(x, self.weight_ih, self.input_bias())
        outputs: list[Tensor] = []
        for step in range(x.shape[1]):
            new = self.step(projected[:, step], states)
            output = new[0]
            if mask is not None:
                keep = mask[:, step].unsqueeze(-1)
                before = outputs[-1] if outputs and not self.zero_output_for_mask else torch.zeros_like(output)
                output = torch.where(keep, output, before)
                new = [torch.where(keep, state, old) for state, old in zip(new, states, strict=True)]
            outputs.append(output)
            states = new
        return torch.stack(outputs, dim=1), states

    def input_bias(self) -> Tensor | None:
        return self.bias

    def zero_bias(self) -> Tensor:
        return self.weight_ih.new_zeros(self.gates * self.hidden_size)

    def flat_weights(self) -> list[Tensor]:
        """For torch's kernels, which have a bias for the input and one for the state."""
        first = self.zero_bias() if self.bias is None else self.bias
        return [self.weight_ih, self.weight_hh, first, self.zero_bias()]

    def has_kernel(self) -> bool:
        raise NotImplementedError

    def kernel(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        raise NotImplementedError

    def step(self, projected: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
        """The new states, of which the first is the output."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, return_sequences={self.return_sequences}"


class SimpleRNN(_Recurrent):
    """h' = activation(W x + U h + b)"""

    def __init__(
        self, input_size: int, hidden_size: int, activation: Activation | None = torch.tanh, **options: Any
    ) -> None:
        super().__init__(input_size, hidden_size, **options)
        self.activation = activation

    def has_kernel(self) -> bool:
        return self.activation is torch.tanh

    def kernel(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        start = states[0].unsqueeze(0)
        outputs, last = torch.rnn_tanh(x, start, self.flat_weights(), True, 1, 0.0, False, False, True)
        return outputs, [last[0]]

    def step(self, projected: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
        total = projected + F.linear(states[0], self.weight_hh)
        return [self.activation(total) if self.activation else total]


class LSTM(_Recurrent):
    """Long short-term memory (Hochreiter & Schmidhuber, 1997)."""

    gates = 4
    states = 2

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        activation: Activation | None = torch.tanh,
        recurrent_activation: Activation | None = torch.sigmoid,
        **options: Any,
    ) -> None:
        super().__init__(input_size, hidden_size, **options)
        self.activation, self.recurrent_activation = activation, recurrent_activation

    def has_kernel(self) -> bool:
        return self.activation is torch.tanh and self.recurrent_activation is torch.sigmoid

    def kernel(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        start = [state.unsqueeze(0) for state in states]
        outputs, hidden, cell = torch.lstm(x, start, self.flat_weights(), True, 1, 0.0, False, False, True)
        return outputs, [hidden[0], cell[0]]

    def step(self, projected: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
        gate, act = self.recurrent_activation or torch.clone, self.activation or torch.clone
        hidden, cell = states
        i, f, c, o = (projected + F.linear(hidden, self.weight_hh)).chunk(4, dim=-1)
        cell = gate(f) * cell + gate(i) * act(c)
        return [gate(o) * act(cell), cell]


class GRU(_Recurrent):
    """Gated recurrent unit (Cho et al., 2014); `reset_after` applies the reset gate after the matrix product."""

    gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        activation: Activation | None = torch.tanh,
        recurrent_activation: Activation | None = torch.sigmoid,
        reset_after: bool = True,
        **options: Any,
    ) -> None:
        self.reset_after = reset_after
        super().__init__(input_size, hidden_size, **options)
        self.activation, self.recurrent_activation = activation, recurrent_activation

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """With `reset_after`, a bias for the input and one for the state: what the reset gate scales has its own."""
        return (2, 3 * self.hidden_size) if self.reset_after else (3 * self.hidden_size,)

    def has_kernel(self) -> bool:
        usual = self.activation is torch.tanh and self.recurrent_activation is torch.sigmoid
        return usual and self.reset_after

    def flat_weights(self) -> list[Tensor]:
        biases = [self.zero_bias()] * 2 if self.bias is None else list(self.bias)
        return [self.weight_ih, self.weight_hh, *biases]

    def kernel(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        start = states[0].unsqueeze(0)
        outputs, last = torch.gru(x, start, self.flat_weights(), True, 1, 0.0, False, False, True)
        return outputs, [last[0]]

    def input_bias(self) -> Tensor | None:
        return self.bias[0] if self.bias is not None and self.reset_after else self.bias

    def step(self, projected: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
        gate, act = self.recurrent_activation or torch.clone, self.activation or torch.clone
        hidden = states[0]
        x_r, x_z, x_n = projected.chunk(3, dim=-1)
        if self.reset_after:
            bias = None if self.bias is None else self.bias[1]
            h_r, h_z, h_n = F.linear(hidden, self.weight_hh, bias).chunk(3, dim=-1)
            new = act(x_n + gate(x_r + h_r) * h_n)
        else:
            gates, candidate = self.weight_hh.split((2 * self.hidden_size, self.hidden_size))
            h_r, h_z = F.linear(hidden, gates).chunk(2, dim=-1)
            new = act(x_n + F.linear(gate(x_r + h_r) * hidden, candidate))
        update = gate(x_z + h_z)
        return [update * hidden + (1 - update) * new]


class Bidirectional(nn.Module):
    """Two recurrent layers, of which the second reads the steps backwards."""

    def __init__(self, forward_layer: nn.Module, backward_layer: nn.Module, merge_mode: str | None = "concat") -> None:
        super().__init__()
        self.forward_layer, self.backward_layer, self.merge_mode = forward_layer, backward_layer, merge_mode
        self.several_outputs = merge_mode is None or bool(forward_layer.several_outputs)

    def forward(self, sequences: Tensor, initial_state: Any = None, mask: Tensor | None = None) -> Any:
        half = len(initial_state) // 2 if initial_state is not None else 0
        ahead_start, back_start = (initial_state[:half], initial_state[half:]) if half else (None, None)
        ahead = self.forward_layer(sequences, ahead_start, mask)
        back = self.backward_layer(sequences, back_start, mask)
        states: tuple[Tensor, ...] = ()
        if self.forward_layer.return_state:
            states = (*ahead[1:], *back[1:])
            ahead, back = ahead[0], back[0]
        if self.forward_layer.return_sequences:
            back = back.flip(1)
        if self.merge_mode is None:
            return ahead, back, *states
        merged = self.merge(ahead, back)
        return (merged, *states) if states else merged

    def merge(self, ahead: Tensor, back: Tensor) -> Tensor:
        if self.merge_mode == "concat":
            return torch.cat([ahead, back], dim=-1)
        if self.merge_mode == "mul":
            return ahead * back
        return (ahead + back) / 2 if self.merge_mode == "ave" else ahead + back


class TimeDistributed(nn.Module):
    """A layer applied to each step alike: steps and batch are one axis meanwhile."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        if self.training:  # batch statistics are those of one step
            return torch.stack([self.layer(step) for step in x.unbind(1)], dim=1)
        y = self.layer(x.flatten(0, 1))
        return y.reshape(x.shape[0], x.shape[1], *y.shape[1:])


@lowers("SimpleRNN", to="torch")
def simple_rnn(layer: Layer) -> nn.Module:
    kernel, recurrent, bias = _cell(layer)
    options = {"activation": activation_of(layer), **_options(layer)}
    return _build(SimpleRNN, kernel.T, recurrent.T, bias, options)


@lowers("LSTM", to="torch")
def lstm(layer: Layer) -> nn.Module:
    kernel, recurrent, bias = _cell(layer)  # Keras' gates have torch's order
    return _build(LSTM, kernel.T, recurrent.T, bias, {**_activations(layer), **_options(layer)})


@lowers("GRU", to="torch")
def gru(layer: Layer) -> nn.Module:
    kernel, recurrent, bias = _cell(layer)
    options = {"reset_after": layer.config.get("reset_after", True), **_activations(layer), **_options(layer)}
    reordered = [None if array is None else _reset_first(array) for array in (kernel, recurrent, bias)]
    return _build(GRU, reordered[0].T, reordered[1].T, reordered[2], options)  # type: ignore[union-attr]


def _reset_first(array: np.ndarray) -> np.ndarray:
    """Keras' gates are update, reset, new; torch's are reset, update, new."""
    update, reset, new = np.split(array, 3, axis=-1)
    return np.concatenate([reset, update, new], axis=-1)


def _activations(layer: Layer) -> dict[str, Any]:
    return {key: activation_of(layer, key) for key in ("activation", "recurrent_activation")}


def _cell(layer: Layer) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    if layer.config.get("stateful"):
        raise layer.refuse("its state lives on from call to call", "make it stateful=False, and pass initial_state")
    variables = layer.weights.child("cell").variables or layer.variables
    kernel, recurrent, *bias = variables
    return kernel, recurrent, bias[0] if bias else None


def _options(layer: Layer) -> dict[str, Any]:
    flags = ("return_sequences", "return_state", "go_backwards", "zero_output_for_mask")
    options = {key: True for key in flags if layer.config.get(key)}
    if layer.frozen:
        return options
    rates = ("dropout", "recurrent_dropout")
    return options | {key: float(layer.config[key]) for key in rates if layer.config.get(key)}


def _build(
    build: type[_Recurrent],
    weight_ih: np.ndarray,
    weight_hh: np.ndarray,
    bias: np.ndarray | None,
    options: dict[str, Any],
) -> nn.Module:
    state = {"weight_ih": weight_ih, "weight_hh": weight_hh} | ({} if bias is None else {"bias": bias})
    return make(build, weight_ih.shape[1], weight_hh.shape[1], bias=bias is not None, state=state, **options)


@lowers("Bidirectional", to="torch")
def bidirectional(layer: Layer) -> nn.Module:
    config = layer.config
    ahead = layer.inside("forward_layer", config["layer"])
    backward = config.get("backward_layer") or config["layer"]
    if not config.get("backward_layer"):
        backward = {**backward, "config": {**backward["config"], "go_backwards": not ahead.config.get("go_backwards")}}
    back = layer.inside("backward_layer", backward)
    first, second = lower(_masked_as_inside(ahead)), lower(_masked_as_inside(back))
    if not (isinstance(first, _Recurrent) and isinstance(second, _Recurrent)):
        raise layer.refuse("only SimpleRNN, LSTM and GRU inside are converted")
    return Bidirectional(first, second, merge_mode=config.get("merge_mode", "concat"))


def _masked_as_inside(layer: Layer) -> Layer:
    """Keras sets this argument of the two layers itself."""
    return replace(layer, config={**layer.config, "zero_output_for_mask": layer.config.get("return_sequences", False)})


@lowers("TimeDistributed", to="torch")
def time_distributed(layer: Layer) -> nn.Module:
    return TimeDistributed(lower(layer.inside("layer", layer.config["layer"])))
