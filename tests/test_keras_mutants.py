"""The 44 known traps of keras→torch, each planted into the reference converter: the vocabulary's own cases see them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from keras_oracle import errors, layer_oracle
from torch import nn

from parity.converters import registry
from parity.converters.keras_torch import (
    activations,
    attention,
    contractions,
    convert,
    merges,
    normalization,
    pooling,
    recurrent,
    resizing,
    shapes,
    transposed,
    windows,
)

CASES = 12
ACTIVATION_CASES = 32
"""The layer Activation has 29 functions to choose from, and `choice` walks through them."""
MUTANTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], tuple[str, ...]]] = {}


def mutant(*names: str) -> Callable[[Callable], Callable]:
    """Register a planted bug, and the layers whose cases are to see it."""

    def register(plant: Callable) -> Callable:
        MUTANTS[plant.__name__] = (plant, names)
        return plant

    return register


def relowered(patch: pytest.MonkeyPatch, name: str, change: Callable[[Any, Any], Any]) -> None:
    """Let `change(layer, module)` have the last word about a layer's module."""
    original = registry._LOWERINGS["torch", name]
    patch.setitem(registry._LOWERINGS, ("torch", name), lambda layer: change(layer, original(layer)))


def changed(**attributes: Any) -> Callable[[Any, Any], Any]:
    def change(layer: Any, module: Any) -> Any:
        for name, value in attributes.items():
            setattr(module, name, value)
        return module

    return change


def state(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Any, Any], Any]:
    """A change of the module's tensors, in place."""

    def apply(layer: Any, module: Any) -> Any:
        with torch.no_grad():
            change(module.state_dict())
        return module

    return apply


def both_sides(x, border, kernel, stride, dilation, value=0.0):
    amounts = [k // 2 for k in reversed(kernel) for _ in range(2)] if border != "valid" else [0]
    return F.pad(x, amounts if any(amounts) else [0, 0], value=value)


@mutant("Conv2D", "DepthwiseConv2D")
def convolution_pads_same_on_both_sides(patch):
    patch.setattr(contractions, "pad_borders", both_sides)


@mutant("Conv1D")
def causal_pads_on_both_sides(patch):
    def pad(x, border, kernel, stride, dilation, value=0.0):
        total = dilation[0] * (kernel[0] - 1)
        return (
            F.pad(x, [total // 2, total - total // 2])
            if border == "causal"
            else windows.pad_borders(x, border, kernel, stride, dilation, value)
        )

    patch.setattr(contractions, "pad_borders", pad)


@mutant("AveragePooling2D", "AveragePooling1D")
def average_pooling_counts_zeros(patch):
    functions = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
    patch.setattr(
        pooling.AvgPool,
        "pool",
        lambda self, x: functions[x.ndim - 3](self.padded(x, 0.0), self.pool_size, self.stride),
    )


@mutant("AveragePooling2D")
def average_pooling_repeats_the_border(patch):
    def pool(self, x):
        amounts = []
        for axis in range(2):
            pair = windows.same_padding(x.shape[2 + axis], self.pool_size[axis], self.stride[axis])
            amounts = [*(pair if self.border == "same" else (0, 0)), *amounts]
        return F.avg_pool2d(F.pad(x, amounts, mode="replicate"), self.pool_size, self.stride)

    patch.setattr(pooling.AvgPool, "pool", pool)


@mutant("MaxPooling2D", "MaxPooling1D")
def max_pooling_pads_with_zeros(patch):
    original = pooling._Pooling.padded
    patch.setattr(pooling._Pooling, "padded", lambda self, x, value: original(self, x, 0.0))


@mutant("BatchNormalization")
def batch_norm_epsilon(patch):
    relowered(patch, "BatchNormalization", changed(eps=1e-5))


@mutant("BatchNormalization")
def batch_norm_gain_and_variance_swapped(patch):
    def swap(tensors):
        if "weight" in tensors:
            kept = tensors["weight"].clone()
            tensors["weight"].copy_(tensors["running_var"])
            tensors["running_var"].copy_(kept)

    relowered(patch, "BatchNormalization", state(swap))


@mutant("BatchNormalization")
def batch_norm_in_train_mode(patch):
    patch.setattr(
        normalization.BatchNorm, "training", property(lambda self: True, lambda self, value: None), raising=False
    )


@mutant("LeakyReLU")
def leaky_relu_with_torch_default(patch):
    relowered(patch, "LeakyReLU", lambda layer, module: nn.LeakyReLU())


@mutant("Activation")
def leaky_relu_activation_with_the_layers_default(patch):
    patch.setitem(activations.FUNCTIONS, "leaky_relu", lambda x: F.leaky_relu(x, 0.3))


@mutant("PReLU")
def prelu_as_relu(patch):
    relowered(patch, "PReLU", lambda layer, module: nn.ReLU())


@mutant("PReLU")
def prelu_averaged_per_channel(patch):
    relowered(patch, "PReLU", state(lambda tensors: tensors["weight"].copy_(tensors["weight"].mean())))


@mutant("GRU")
def gru_gates_in_keras_order(patch):
    patch.setattr(recurrent, "_reset_first", lambda array: array)


@mutant("GRU")
def gru_reset_always_after(patch):
    patch.setattr(recurrent.GRU, "loop", lambda self, x, states, mask: self.kernel(x, states) if mask is None else None)
    patch.setattr(recurrent.GRU, "has_kernel", lambda self: True)
    patch.setattr(
        recurrent.GRU,
        "flat_weights",
        lambda self: [self.weight_ih, self.weight_hh, *([self.zero_bias()] * 2 if self.bias is None else
                      list(self.bias) if self.reset_after else [self.bias, self.zero_bias()])],
    )  # fmt: skip


@mutant("GRU")
def gru_biases_merged(patch):
    def merge(tensors):
        if "bias" in tensors and tensors["bias"].ndim == 2:
            tensors["bias"][0] += tensors["bias"][1]
            tensors["bias"][1] = 0

    relowered(patch, "GRU", state(merge))


@mutant("LSTM")
def lstm_ignores_the_recurrent_activation(patch):
    relowered(patch, "LSTM", changed(recurrent_activation=torch.sigmoid))


@mutant("LSTM")
def lstm_forget_bias_dropped(patch):
    def drop(tensors):
        if "bias" in tensors:
            units = len(tensors["bias"]) // 4
            tensors["bias"][units : 2 * units] = 0

    relowered(patch, "LSTM", state(drop))


@mutant("LSTM")
def lstm_gates_in_another_order(patch):
    def swap(tensors):
        for tensor in tensors.values():
            i, f, c, o = tensor.clone().chunk(4)
            tensor.copy_(torch.cat([i, o, f, c]))

    relowered(patch, "LSTM", state(swap))


@mutant("Bidirectional")
def bidirectional_takes_the_last_step_of_both(patch):
    def forward(self, sequences, initial_state=None, mask=None):
        ahead, back = self.forward_layer(sequences), self.backward_layer(sequences)
        back = back.flip(1) if self.forward_layer.return_sequences else self.backward_layer(sequences[:, -1:])
        return self.merge(ahead, back)

    patch.setattr(recurrent.Bidirectional, "forward", forward)


@mutant("Bidirectional")
def bidirectional_does_not_turn_back(patch):
    def forward(self, sequences, initial_state=None, mask=None):
        return self.merge(self.forward_layer(sequences, None, mask), self.backward_layer(sequences, None, mask))

    patch.setattr(recurrent.Bidirectional, "forward", forward)


@mutant("Flatten")
def flatten_channels_first(patch):
    relowered(patch, "Flatten", lambda layer, module: shapes.Flatten(channels_last=False))


@mutant("Dense")
def dense_kernel_not_transposed(patch):
    relowered(patch, "Dense", state(lambda tensors: tensors["weight"].copy_(tensors["weight"].T.clone())))


@mutant("Activation", "Dense", "Conv1D", "Conv2D")
def softmax_over_the_first_axis(patch):
    patch.setitem(activations.FUNCTIONS, "softmax", lambda x: F.softmax(x, dim=1))


def without_bias(tensors):
    if "bias" in tensors:
        tensors["bias"].zero_()


@mutant("Dense")
def dense_bias_dropped(patch):
    relowered(patch, "Dense", state(without_bias))


@mutant("Conv2D")
def convolution_bias_dropped(patch):
    relowered(patch, "Conv2D", state(without_bias))


@mutant("LayerNormalization")
def layer_norm_epsilon(patch):
    relowered(patch, "LayerNormalization", changed(eps=1e-5))


@mutant("GroupNormalization")
def group_norm_epsilon(patch):
    relowered(patch, "GroupNormalization", changed(eps=1e-5))


@mutant("Activation")
def gelu_by_tanh(patch):
    patch.setitem(activations.FUNCTIONS, "gelu", lambda x: F.gelu(x, approximate="tanh"))


@mutant("Activation", "LSTM")
def hard_sigmoid_of_keras_2(patch):
    patch.setitem(activations.FUNCTIONS, "hard_sigmoid", lambda x: torch.clamp(0.2 * x + 0.5, 0, 1))


def resized(**options: Any) -> Callable[..., Any]:
    return lambda images, size, interpolation: F.interpolate(images, size, **options[interpolation])


@mutant("Resizing", "UpSampling2D")
def bilinear_aligned_at_corners(patch):
    original = resizing.resize
    patch.setattr(
        resizing,
        "resize",
        lambda images, size, mode: (
            F.interpolate(images, size, mode="bilinear", align_corners=True)
            if mode == "bilinear"
            else original(images, size, mode)
        ),
    )


@mutant("Resizing", "UpSampling2D")
def bicubic_of_torch(patch):
    patch.setattr(resizing, "bicubic", lambda images, size: F.interpolate(images, size, mode="bicubic"))


@mutant("Resizing")
def nearest_by_rounding_down(patch):
    original = resizing.resize
    patch.setattr(
        resizing,
        "resize",
        lambda images, size, mode: (
            F.interpolate(images, size, mode="nearest") if mode == "nearest" else original(images, size, mode)
        ),
    )


@mutant("Conv2DTranspose")
def transposed_convolution_padded_as_torch_does(patch):
    def crop(self, axis, length):
        stride, window = self.stride[axis], self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        padding = max(window - stride + 1, 0) // 2 if self.border == "same" else 0
        result = length * stride if self.border == "same" else (length - 1) * stride + max(window, stride)
        return -padding, result - ((length - 1) * stride + window - padding)

    patch.setattr(transposed._TransposedConvolution, "crop", crop)


@mutant("DepthwiseConv2D")
def depthwise_multiplier_first(patch):
    patch.setattr(
        contractions,
        "_per_channel",
        lambda kernel: np.moveaxis(kernel, (-1, -2), (0, 1)).reshape(-1, 1, *kernel.shape[:-2]),
    )


@mutant("Conv2D")
def convolution_kernel_axes_swapped(patch):
    original = contractions._convolution
    patch.setattr(
        contractions,
        "_convolution",
        lambda layer, weight, *rest: original(layer, weight.swapaxes(2, 3) if weight.ndim == 4 else weight, *rest),
    )


@mutant("ZeroPadding2D")
def zero_padding_by_columns_first(patch):
    patch.setattr(shapes, "_pairs", lambda value: tuple(map(tuple, reversed(value))))


@mutant("MaskedRecurrent")
def mask_ignored(patch):
    patch.setattr(convert._Wiring, "_masks_for", lambda self, *arguments: {})
    original = convert._Wiring._call

    def call(self, name, args, kwargs):
        return original(self, name, args, {key: value for key, value in kwargs.items() if "mask" not in key})

    patch.setattr(convert._Wiring, "_call", call)


@mutant("MultiHeadAttention")
def attention_takes_query_key_value(patch):
    original = attention.MultiHeadAttention.forward

    def forward(self, query, value, key=None, **options):
        return original(self, query, key, value, **options)

    patch.setattr(attention.MultiHeadAttention, "forward", forward)


@mutant("MultiHeadAttention")
def attention_scaled_by_the_width(patch):
    relowered(
        patch,
        "MultiHeadAttention",
        lambda layer, module: changed(key_dim=module.query_dense.in_features / module.heads)(layer, module),
    )


@mutant("Subtract")
def inputs_in_another_order(patch):
    patch.setattr(merges.Subtract, "forward", lambda self, inputs: inputs[1] - inputs[0])


@mutant("ReLU")
def relu_without_limits(patch):
    relowered(patch, "ReLU", lambda layer, module: nn.ReLU())


@mutant("Conv2D", "Conv1D")
def dilation_lost(patch):
    for name in ("Conv1D", "Conv2D"):
        relowered(patch, name, lambda layer, module: changed(dilation=(1,) * len(module.dilation))(layer, module))


@mutant("LayerNormalization")
def layer_norm_over_everything(patch):
    relowered(
        patch,
        "LayerNormalization",
        lambda layer, module: type(
            "All", (nn.Module,), {"forward": lambda self, x: F.layer_norm(x, x.shape[1:], eps=module.eps)}
        )(),
    )


@mutant("LayerNormalization", "GroupNormalization")
def unbiased_variance(patch):
    original = torch.var_mean
    patch.setattr(
        torch, "var_mean", lambda x, dim, correction, keepdim=False: original(x, dim=dim, correction=1, keepdim=keepdim)
    )


def test_there_are_44():
    assert len(MUTANTS) == 44


@pytest.mark.parametrize("name", list(MUTANTS))
def test_the_cases_of_the_layers_see_it(name, monkeypatch):
    plant, layers = MUTANTS[name]
    plant(monkeypatch)
    assert any(
        seen(layer, number)
        for layer in layers
        for number in range(ACTIVATION_CASES if layer == "Activation" else CASES)
    )


def seen(layer: str, number: int) -> bool:
    try:
        return max(errors(layer_oracle(layer, number, "float64"))) > 1
    except Exception:  # a crash is seen, too: wrong shapes, missing arguments
        return True
