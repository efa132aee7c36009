"""Ways to be wrong: each changes a layer of a model in place, as a mistaken converter would have understood it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class ChannelsLastFlatten(nn.Module):
    """Flattens in the order of frameworks that keep channels last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.movedim(1, -1).flatten(1)


def leaky_slope(layer: nn.LeakyReLU) -> None:
    layer.negative_slope *= 1.1


def epsilon(layer: nn.LayerNorm) -> None:
    layer.eps *= 0.1


def other_gelu(layer: nn.GELU) -> None:
    layer.approximate = "tanh" if layer.approximate == "none" else "none"


def no_running_mean(layer: nn.BatchNorm1d) -> None:
    layer.running_mean.zero_()


def one_sign(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight[0, 0] *= -1


def padding_count(layer: nn.AvgPool2d) -> None:
    layer.count_include_pad = not layer.count_include_pad


def other_axis(layer: nn.Softmax) -> None:
    layer.dim = 1 if layer.dim in (-1, 2, 3) else 2


MUTATIONS: dict[str, tuple[type[nn.Module], Callable[..., None]]] = {
    "LeakyReLU slope": (nn.LeakyReLU, leaky_slope),
    "LayerNorm epsilon": (nn.LayerNorm, epsilon),
    "GELU form": (nn.GELU, other_gelu),
    "BatchNorm1d without running mean": (nn.BatchNorm1d, no_running_mean),
    "BatchNorm2d without running mean": (nn.BatchNorm2d, no_running_mean),
    "sign of one weight": (nn.Linear, one_sign),
    "AvgPool2d count_include_pad": (nn.AvgPool2d, padding_count),
    "Softmax over another axis": (nn.Softmax, other_axis),
}
"""The layer that each is about, and the change; a flatten in the wrong order is a layer of its own, above."""
