"""The rounding of torch's operators as random noise (Monte Carlo arithmetic): the yardstick of every tolerance.

The model runs in float64 while each operator's floating output is multiplied by 1 + a·u·N(0, 1), u the unit roundoff
of the precision in question. Operators that round nothing (views, maxima, relu, …) are left alone. A contraction or
reduction of length n also rounds inside: its inputs are multiplied likewise by max(1, sqrt(n) / 2) times that noise,
which models cancellation as well. The spread of a few such runs says, per output element, how far off a result may be
that differs from the exact one by rounding only. (Parker, "Monte Carlo Arithmetic", 1997; measured thresholds are in
`parity.checks.tolerance`.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import sqrt
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

UNIT = {"float32": 2.0**-24, "float64": 2.0**-53}
"""Unit roundoff."""
AMPLIFICATION = {"float32": 1.0, "float64": 2.0**17}
"""float64 cannot hold 1 + 2⁻⁵³·N(0, 1): there the noise is made 2¹⁷ times larger, and the spread divided by it."""

EXACT = {
    # views, copies and selections
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "alias", "detach", "clone", "copy_", "_to_copy", "expand"),
    *("permute", "transpose", "t", "squeeze", "unsqueeze", "select", "slice", "split", "split_with_sizes", "unbind"),
    *("as_strided", "cat", "stack", "index", "gather", "index_select", "flip", "roll", "repeat", "contiguous", "lift"),
    *("select_backward", "slice_backward", "unfold", "fill", "fill_", "full", "full_like", "zeros", "zeros_like"),
    *("ones", "ones_like", "empty", "empty_like", "new_zeros", "new_empty", "new_empty_strided", "eye", "arange"),
    *("scalar_tensor", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d"),
    *("replication_pad2d", "upsample_nearest1d", "upsample_nearest2d", "masked_fill", "tril", "triu", "diagonal"),
    # comparisons and piecewise choices
    *("relu", "neg", "abs", "sign", "sgn", "clamp", "clamp_min", "clamp_max", "maximum", "minimum", "where"),
    *("hardtanh", "floor", "ceil", "round"),
    *("max", "min", "amax", "amin", "max_pool2d_with_indices", "max_pool3d_with_indices", "threshold_backward"),
    *("hardtanh_backward", "max_pool2d_with_indices_backward", "dropout", "native_dropout", "eq", "ne", "gt", "lt"),
}
ELEMENTWISE_BACKWARD = {
    *("gelu", "silu", "mish", "elu", "sigmoid", "tanh", "softplus", "hardswish", "hardsigmoid"),
    *("leaky_relu", "log_sigmoid", "prelu", "hardshrink", "softshrink", "_prelu_kernel"),
}


class Rounding(TorchDispatchMode):
    """Within this mode, operators round at random. `unit` is the relative size of one rounding."""

    def __init__(self, unit: float, seed: int) -> None:
        super().__init__()
        self.unit = unit
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name == "_efficientzerotensor":  # a placeholder without memory, which plain operators cannot take
            return torch.zeros(*args, **(kwargs or {}))
        if name in EXACT:
            return func(*args, **(kwargs or {}))
        if length := _reduction_length(name, args):
            args = tree_map(self._noisy(self.unit * max(1.0, sqrt(length) / 2)), args)
        exact = func(*args, **(kwargs or {}))
        result = tree_map(self._noisy(self.unit), exact)
        for term in _terms_inside(name, args, exact):
            error = self._noisy(self.unit)(term) - term
            result = (result[0] + error, *result[1:]) if isinstance(result, tuple) else result + error
        return result

    def _noisy(self, unit: float) -> Callable[[Any], Any]:
        def noisy(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or not value.is_floating_point():
                return value
            return value * (1 + unit * torch.randn(value.shape, generator=self.generator, dtype=value.dtype))

        return noisy


def _reduction_length(name: str, args: tuple[Any, ...]) -> int:
    """How many products or terms one output element is made of; 0 for an elementwise operator."""
    tensors = [value for value in args if isinstance(value, torch.Tensor)]
    if name in ("mm", "bmm", "mv", "dot"):
        return int(tensors[0].shape[-1])
    if name in ("addmm", "baddbmm", "addmv"):
        return int(tensors[1].shape[-1])
    if name == "convolution":
        return int(args[1][0].numel()) if not args[6] else int(args[1][:, 0].numel())
    if name == "convolution_backward":
        return int(max(args[2][0].numel(), args[0].numel() // max(1, args[0].shape[1])))
    if name.endswith("_backward") and name.removesuffix("_backward") in ELEMENTWISE_BACKWARD:
        return 1  # its formula crosses zero by cancellation, where its argument's rounding shows
    if "upsample" in name:  # computes coordinates, which are as large as the axes are long
        return int((2 * max(max(tensor.shape[2:]) for tensor in tensors)) ** 2)
    if any(word in name for word in ("norm", "softmax", "sum", "mean", "var", "pool", "logsumexp")):
        return int(max(tensor.numel() for tensor in tensors) // max(1, tensors[0].shape[0] if tensors[0].dim() else 1))
    return 0


def _terms_inside(name: str, args: tuple[Any, ...], result: Any) -> list[torch.Tensor]:
    """Terms that an operator adds up inside: where they cancel, their roundings are larger than the result's own.

    GELU is x·(1 + erf)/2. Normalization with statistics of its own input is computed as x·scale − mean·scale.
    """
    if name in ("gelu", "gelu_backward"):
        return [args[0] / 2]
    if name == "native_layer_norm":
        x, _, weight = args[:3]
        _, mean, scale = result
    elif name == "native_group_norm":
        x, weight, _, batch, channels, _, groups, _ = args
        mean, scale = (
            statistic.reshape(batch, groups, 1).expand(batch, groups, channels // groups).reshape(batch, channels)
            for statistic in result[1:]
        )
        per_channel = (batch, channels, *[1] * (x.dim() - 2))
        mean, scale = mean.reshape(per_channel), scale.reshape(per_channel)
        weight = None if weight is None else weight.reshape(per_channel[1:])
    elif name == "native_batch_norm" and result[2].numel():
        x, weight = args[0], args[1]
        per_channel = (1, x.shape[1], *[1] * (x.dim() - 2))
        mean, scale = result[1].reshape(per_channel), result[2].reshape(per_channel)
        weight = None if weight is None else weight.reshape(per_channel)
    else:
        return []
    scale = scale if weight is None else scale * weight
    return [x * scale, mean * scale]


@contextmanager
def rounding(dtype: str, seed: int) -> Iterator[float]:
    """Random rounding of `dtype` for the float64 torch code inside; gives the factor by which it is amplified."""
    with Rounding(UNIT[dtype] * AMPLIFICATION[dtype], seed):
        yield AMPLIFICATION[dtype]
