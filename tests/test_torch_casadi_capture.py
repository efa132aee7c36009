"""torch→casadi: capture by torch.export, alone and where torch.fx cannot."""

from __future__ import annotations

import casadi
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_torch_casadi_functions import ONE
from torch import nn
from torch_casadi import Call, check, draw

from parity.cases.weights import fill
from parity.converters.torch_casadi import reference
from parity.errors import Unsupported

X = np.array([[0.3, -1.2, 0.8], [1.7, -0.4, 0.25]])
FEW = ("powers", "matmul", "einsum", "cat", "views", "index", "mask index", "variance", "extremes", "norms", "where",
       "masked fill", "comparisons", "activations", "normalizations", "pad", "interpolate", "convolution", "attention",
       "casts", "unfold", "names")  # fmt: skip
"""Those whose operations torch.export spells in its own way; all of `ONE` pass, at a second each."""


class Several(nn.Module):
    """The given functions' results, flattened, one after the other."""

    def forward(self, x):
        return torch.cat([ONE[name](x).flatten() for name in FEW])


def test_functions_by_export():
    check(Several(), (X,), capture="export")


class Layers(nn.Module):
    """Layers that torch.export opens, and others that it keeps."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True, proj_size=2)
        self.gru = nn.GRU(4, 4, batch_first=True, bias=False)
        self.rnn = nn.RNN(4, 4, nonlinearity="relu", batch_first=True)
        self.cells = nn.ModuleList([nn.LSTMCell(4, 4), nn.GRUCell(4, 4), nn.RNNCell(4, 4)])
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm, self.batch_norm, self.instance_norm = nn.LayerNorm(4), nn.BatchNorm1d(4), nn.InstanceNorm1d(4)
        self.group_norm = nn.GroupNorm(2, 4)
        self.convolution = nn.ConvTranspose1d(4, 2, 3, stride=2, padding=1)
        self.pools = nn.ModuleList([nn.AdaptiveMaxPool1d(2), nn.MaxPool1d(2), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(2)])
        self.prelu = nn.PReLU(4)

    def forward(self, x):
        y = self.norm(self.rnn(self.gru(self.lstm(x)[0])[0])[0])
        state = (y[:, 0], y[:, 1])
        state = self.cells[0](y[:, -1], state)
        hidden = self.cells[2](state[0], self.cells[1](state[1], state[0]))
        y = self.attention(y, y, y)[0] + hidden[:, None]
        y = self.prelu(self.group_norm(self.instance_norm(self.batch_norm(y.transpose(1, 2)))))
        y = torch.cat([pool(y) for pool in self.pools], -1)
        return F.interpolate(self.convolution(y), scale_factor=2, mode="nearest-exact")


def test_layers_by_export():
    model = Layers().eval()
    fill(model, "export")
    check(model, draw((1, 4, 3)), 1e-11, capture="export")
    check(model, draw((1, 4, 3)), 1e-11, capture="fx")


class LooksAtShapes(nn.Module):
    """Loops over what torch.fx does not know."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, x, *, scale=2.0):
        total = torch.zeros(x.shape[0], dtype=x.dtype)
        for step in range(x.shape[1]):
            total = total + x[:, step] ** (step + 1) * self.table[step]
        result = torch.zeros_like(x)
        result[:, 0] = total
        result[:, 1:] += x[:, :-1]
        result[:, torch.tensor([True, False, False])] *= scale
        return result if len(x.shape) > 1 and x.shape[1] > 2 else x


def test_what_fx_cannot_trace_is_exported():
    with pytest.raises(Unsupported, match=r"torch.fx cannot trace LooksAtShapes: .* object cannot be interpreted"):
        reference(LooksAtShapes(), (torch.ones(1, 3),), capture="fx")
    check(LooksAtShapes(), (X,))


def test_forward_hooks_run():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_hook(lambda layer, inputs, output: output * 2)
    with pytest.raises(Unsupported, match="forward hooks"):
        reference(model, (torch.ones(1, 2),), capture="fx")
    check(model, draw((1, 2)))


def test_layers_without_a_lowering_are_opened():
    with pytest.raises(Unsupported, match=r"LPPool1d.*has no lowering"):
        reference(nn.LPPool1d(2, 2), (torch.ones(1, 1, 4),), capture="fx")
    check(nn.LPPool1d(2, 2), (np.array([[[0.5, 2.0, -1.5, 0.25]]]),))


def test_both_reasons_are_given():
    model = Call(lambda x: x if float(x.sum()) > 0 else torch.linalg.inv(x))
    with pytest.raises(Unsupported) as caught:
        reference(model, (torch.ones(2, 2),))
    message = str(caught.value)
    assert "torch.fx cannot trace Call" in message and "torch.export cannot capture Call" in message
    assert "\n" not in message and "lower it whole with @parity.lowers" in message


def test_state_is_refused():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls.add_(1)
            return x * self.calls

    with pytest.raises(Unsupported, match=r"Counter.forward writes to calls: a function keeps no state"):
        reference(Counter(), (torch.ones(1, 1),), capture="export")


def test_random_numbers_are_refused():
    for draws in (torch.rand_like, lambda x: x + torch.randn(2), lambda x: x * np.random.rand(), F.dropout):
        with pytest.raises(Unsupported, match=r"draws random numbers|drops elements at random"):
            reference(Call(draws), (torch.ones(1, 2),), capture="export")


def test_names_and_outputs():
    function = reference(Call(lambda x: {"a": x, "b": (x + 1, torch.ones(2))}), (torch.ones(1, 2),), capture="export")
    assert (function.name_in(), function.name_out()) == (["x"], ["y0", "y1", "y2"])
    assert [float(value[0]) for value in function.call([casadi.DM([3, 4])])] == [3, 4, 1]
