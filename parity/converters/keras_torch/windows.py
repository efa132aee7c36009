"""Windows that slide over the spatial axes: Keras' paddings, which depend on the length, and its axis order."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def same_padding(length: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Elements that TensorFlow adds before and after an axis for `padding="same"`: the odd one goes after."""
    total = max((-(-length // stride) - 1) * stride + dilation * (kernel - 1) + 1 - length, 0)
    return total // 2, total - total // 2


def pad_borders(
    x: Tensor, border: str, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], value: float = 0.0
) -> Tensor:
    """`x` (batch, channels, *spatial), padded for `border`: valid, same or causal."""
    amounts: list[int] = []
    for axis in range(len(kernel)):
        if border == "same":
            before, after = same_padding(x.shape[2 + axis], kernel[axis], stride[axis], dilation[axis])
        else:
            before, after = (dilation[axis] * (kernel[axis] - 1) if border == "causal" else 0), 0
        amounts = [before, after, *amounts]  # F.pad counts axes from the last
    return F.pad(x, amounts, value=value) if any(amounts) else x


def channels_to_front(x: Tensor) -> Tensor:
    """(batch, *spatial, channels) seen as (batch, channels, *spatial): a view, in channels_last memory format."""
    return x.movedim(-1, 1)


def channels_to_back(x: Tensor) -> Tensor:
    return x.movedim(1, -1)
