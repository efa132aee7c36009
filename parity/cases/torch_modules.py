"""Modules of the torch vocabulary that `torch.nn` has no name for, written as users write them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Add(nn.Module):
    """The sum of two tensors of one shape: a residual connection when one descends from the other."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first + second


class Multiply(nn.Module):
    """The elementwise product of two tensors of one shape: a gate."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first * second


class Concatenate(nn.Module):
    """Two tensors joined along an axis (0 is the batch)."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first, second], dim=self.axis)


class AttentionBlock(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017) of (batch, tokens, width) by plain tensor functions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self.split(project(x)) for project in (self.query, self.key, self.value))
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))
        mixed = torch.softmax(scores, dim=-1) @ value
        return self.output(mixed.transpose(1, 2).reshape(x.size(0), x.size(1), -1))

    def split(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to (batch, heads, tokens, width / heads)."""
        return x.reshape(x.size(0), x.size(1), self.heads, -1).transpose(1, 2)


class SpatialAttention(nn.Module):
    """A gate from the channels' mean and maximum (Woo et al., 2018)."""

    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mean, largest = x.mean(dim=1, keepdim=True), x.max(dim=1, keepdim=True).values
        return x * torch.sigmoid(self.conv(torch.cat([mean, largest], dim=1)))
