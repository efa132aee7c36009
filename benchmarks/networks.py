"""The six networks that converters torch→casadi are timed on, with trained-like weights from a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from parity.cases.torch_modules import AttentionBlock
from parity.cases.weights import fill


@dataclass(frozen=True)
class Network:
    """A model and the shape of its input, batch axis included."""

    name: str
    shape: tuple[int, ...]
    build: Callable[[], nn.Module]

    def model(self) -> nn.Module:
        """The model in eval mode, float32; the same weights every time."""
        model = self.build().eval()
        fill(model, self.name)
        return model


class Unrolled(nn.Module):
    """An LSTM cell over the steps of (batch, steps, features), and a linear layer of its last state."""

    def __init__(self, steps: int, features: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.steps = steps
        self.cell, self.output = nn.LSTMCell(features, hidden), nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        hidden, memory = self.cell(x[:, 0])
        for step in range(1, self.steps):
            hidden, memory = self.cell(x[:, step], (hidden, memory))
        return self.output(hidden)


def multilayer_perceptron(*widths: int, activation: type[nn.Module], norm: bool = False) -> nn.Sequential:
    """Linear layers, with the activation (after a layer norm, where asked for) between them."""
    *_, last, outputs_of_all = widths
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs), *([nn.LayerNorm(outputs)] if norm else []), activation()]
    return nn.Sequential(*layers, nn.Linear(last, outputs_of_all))


NETWORKS = (
    Network("mlp-tanh", (1, 2), lambda: multilayer_perceptron(2, 32, 32, 1, activation=nn.Tanh)),
    Network("mlp-relu", (1, 12), lambda: multilayer_perceptron(12, 256, 256, 12, activation=nn.ReLU)),
    Network("mlp-norm", (1, 4), lambda: multilayer_perceptron(4, 64, 64, 64, 4, activation=nn.GELU, norm=True)),
    Network(
        "cnn",
        (1, 1, 16, 16),
        lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 10)),
    ),
    Network("lstm", (1, 10, 4), lambda: Unrolled(10, 4, 16, 4)),
    Network("attention", (1, 8, 16), lambda: AttentionBlock(16, 2)),
)
