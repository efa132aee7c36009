"""Attention (Vaswani et al., 2017) and the transformer layers that torch has."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import nn
from torch.nn import functional

from parity.converters.registry import find_lowering, lowers
from parity.converters.torch_casadi.activations import softmax
from parity.converters.torch_casadi.arithmetic import where
from parity.converters.torch_casadi.linear import linear
from parity.converters.torch_casadi.parameters import weights
from parity.converters.torch_casadi.shape import repeat_interleave
from parity.converters.torch_casadi.tensor import Operand, Tensor, matmul
from parity.errors import Unsupported


def _scores(query: Tensor, key: Tensor, scale: float | None) -> Tensor:
    return matmul(query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale), _transposed(key))


def _transposed(x: Tensor) -> Tensor:
    return x.take(x.positions.swapaxes(-1, -2))


def _masked(scores: Tensor, mask: Operand | None, keep: bool) -> Tensor:
    """`mask` added to the scores; a boolean one says which to keep (or, if not `keep`, which to drop)."""
    if mask is None:
        return scores
    if isinstance(mask, np.ndarray) and mask.dtype == bool:
        return where(mask if keep else ~mask, scores, -np.inf)
    return scores + mask


@lowers(functional.scaled_dot_product_attention, to="casadi")
def scaled_dot_product_attention(
    query: Operand, key: Operand, value: Operand, attn_mask: Operand | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """softmax(query @ keyᵀ * scale + mask) @ value. A computed mask must be additive."""
    if dropout_p > 0:
        raise Unsupported("dropout_p > 0 drops elements at random")
    if enable_gqa:
        times = Tensor.of(query).shape[-3] // Tensor.of(key).shape[-3]
        key, value = (repeat_interleave(Tensor.of(x), times, -3) for x in (key, value))
    scores = _scores(Tensor.of(query), Tensor.of(key), scale)
    if is_causal:
        attn_mask = np.tril(np.ones(scores.shape[-2:], dtype=bool))
    if isinstance(attn_mask, np.ndarray) and attn_mask.dtype == bool:
        attends = np.any(attn_mask, axis=-1, keepdims=True)  # torch gives a query without keys zeros, not NaN
        return matmul(softmax(_masked(scores, attn_mask | ~attends, keep=True), -1) * attends, value)
    return matmul(softmax(_masked(scores, attn_mask, keep=True), -1), value)


@lowers(nn.MultiheadAttention, to="casadi")
def multihead_attention(
    layer: nn.MultiheadAttention, query: Operand, key: Operand, value: Operand,
    key_padding_mask: Operand | None = None, need_weights: bool = True, attn_mask: Operand | None = None,
    average_attn_weights: bool = True, is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The mixed values, and the weights of the mix if they are needed. True in a mask means: not to be attended."""
    if layer.bias_k is not None or layer.add_zero_attn:
        raise Unsupported("add_bias_kv and add_zero_attn")
    inputs = [Tensor.of(x) for x in (query, key, value)]
    single = inputs[0].ndim == 2
    if single:
        inputs = [x.reshape(1, *x.shape) for x in inputs]
    elif not layer.batch_first:
        inputs = [x.permute(1, 0, 2) for x in inputs]
    heads = [_split(x, layer.num_heads) for x in _project(layer, *inputs)]
    scores = _masked(_scores(heads[0], heads[1], None), _per_head(attn_mask, layer.num_heads), keep=False)
    if key_padding_mask is not None:
        if not isinstance(key_padding_mask, np.ndarray):
            raise Unsupported("a key_padding_mask that depends on the inputs")
        scores = _masked(scores, key_padding_mask.reshape(-1, 1, 1, key_padding_mask.shape[-1]), keep=False)
    mix = softmax(scores, -1)
    mixed = matmul(mix, heads[2]).permute(0, 2, 1, 3).reshape(*inputs[0].shape)
    output = linear(mixed, *weights(layer.out_proj, "weight", "bias"))
    shown = (mix.mean(1) if average_attn_weights else mix) if need_weights else None
    if single:
        return output[0], None if shown is None else shown[0]
    return output if layer.batch_first else output.permute(1, 0, 2), shown


def _project(layer: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    stacked, bias = weights(layer, "in_proj_weight", "in_proj_bias")
    matrices = _thirds(stacked) if stacked is not None else weights(
        layer, "q_proj_weight", "k_proj_weight", "v_proj_weight")  # fmt: skip
    biases = (None,) * 3 if bias is None else _thirds(bias)
    return [linear(x, weight, b) for x, weight, b in zip((query, key, value), matrices, biases, strict=True)]


def _thirds(stacked: Any) -> tuple[Any, ...]:
    size = stacked.shape[0] // 3
    return tuple(stacked[start : start + size] for start in (0, size, 2 * size))


def _split(x: Tensor, heads: int) -> Tensor:
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).permute(0, 2, 1, 3)


def _per_head(mask: Operand | None, heads: int) -> Operand | None:
    """A mask of shape (batch * heads, queries, keys) by batch and head."""
    if not isinstance(mask, Tensor | np.ndarray) or len(mask.shape) == 2:
        return mask
    return mask.reshape(-1, heads, *mask.shape[-2:])


# --- transformer layers -----------------------------------------------------------------------------------------------


def _lowering_of(layer: nn.Module) -> Any:
    lowering = find_lowering(type(layer), "casadi")
    if lowering is None:
        raise Unsupported(f"its part {type(layer).__name__} has no lowering")
    return lowering


def _apply(layer: nn.Module, x: Tensor) -> Tensor:
    return _lowering_of(layer)(layer, x)


def _activate(function: Any, x: Tensor) -> Tensor:
    if isinstance(function, nn.Module):
        return _apply(function, x)
    lowering = find_lowering(function, "casadi")
    if lowering is None:
        raise Unsupported(f"its activation {getattr(function, '__name__', function)} has no lowering")
    return lowering(x)


@lowers(nn.TransformerEncoderLayer, to="casadi")
def transformer_encoder_layer(
    layer: nn.TransformerEncoderLayer, src: Tensor, src_mask: Operand | None = None,
    src_key_padding_mask: Operand | None = None, is_causal: bool = False,
) -> Tensor:  # fmt: skip
    """Self-attention and a feed-forward network, each with its residual, normalized before or after."""

    def attend(x: Tensor) -> Tensor:
        mixed, _ = multihead_attention(
            layer.self_attn, x, x, x, src_key_padding_mask, need_weights=False, attn_mask=src_mask
        )
        return mixed

    def feed_forward(x: Tensor) -> Tensor:
        return _apply(layer.linear2, _activate(layer.activation, _apply(layer.linear1, x)))

    if layer.norm_first:
        x = src + attend(_apply(layer.norm1, src))
        return x + feed_forward(_apply(layer.norm2, x))
    x = _apply(layer.norm1, src + attend(src))
    return _apply(layer.norm2, x + feed_forward(x))


@lowers(nn.TransformerEncoder, to="casadi")
def transformer_encoder(
    encoder: nn.TransformerEncoder, src: Tensor, mask: Operand | None = None,
    src_key_padding_mask: Operand | None = None, is_causal: bool | None = None,
) -> Tensor:  # fmt: skip
    x = src
    for layer in encoder.layers:
        x = _lowering_of(layer)(layer, x, mask, src_key_padding_mask)
    return x if encoder.norm is None else _apply(encoder.norm, x)


@lowers(nn.TransformerDecoderLayer, to="casadi")
def transformer_decoder_layer(
    layer: nn.TransformerDecoderLayer, tgt: Tensor, memory: Operand, tgt_mask: Operand | None = None,
    memory_mask: Operand | None = None, tgt_key_padding_mask: Operand | None = None,
    memory_key_padding_mask: Operand | None = None, tgt_is_causal: bool = False, memory_is_causal: bool = False,
) -> Tensor:  # fmt: skip
    """Self-attention, attention to `memory` and a feed-forward network, each with its residual."""

    def attend(x: Tensor) -> Tensor:
        return multihead_attention(layer.self_attn, x, x, x, tgt_key_padding_mask, False, tgt_mask)[0]

    def look_up(x: Tensor) -> Tensor:
        keys = (memory, memory, memory_key_padding_mask)
        return multihead_attention(layer.multihead_attn, x, *keys, False, memory_mask)[0]

    def feed_forward(x: Tensor) -> Tensor:
        return _apply(layer.linear2, _activate(layer.activation, _apply(layer.linear1, x)))

    x = tgt
    for part, norm in ((attend, layer.norm1), (look_up, layer.norm2), (feed_forward, layer.norm3)):
        x = x + part(_apply(norm, x)) if layer.norm_first else _apply(norm, x + part(x))
    return x


@lowers(nn.TransformerDecoder, to="casadi")
def transformer_decoder(
    decoder: nn.TransformerDecoder, tgt: Tensor, memory: Operand, tgt_mask: Operand | None = None,
    memory_mask: Operand | None = None, tgt_key_padding_mask: Operand | None = None,
    memory_key_padding_mask: Operand | None = None, tgt_is_causal: bool | None = None, memory_is_causal: bool = False,
) -> Tensor:  # fmt: skip
    x = tgt
    for layer in decoder.layers:
        masks = (tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)
        x = _lowering_of(layer)(layer, x, memory, *masks)
    return x if decoder.norm is None else _apply(decoder.norm, x)


@lowers(nn.Transformer, to="casadi")
def transformer(
    model: nn.Transformer, src: Tensor, tgt: Tensor, src_mask: Operand | None = None, tgt_mask: Operand | None = None,
    memory_mask: Operand | None = None, src_key_padding_mask: Operand | None = None,
    tgt_key_padding_mask: Operand | None = None, memory_key_padding_mask: Operand | None = None, **causal: Any,
) -> Tensor:  # fmt: skip
    """An encoder of `src`, and a decoder of `tgt` that looks it up."""
    memory = _lowering_of(model.encoder)(model.encoder, src, src_mask, src_key_padding_mask)
    masks = (tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)
    return _lowering_of(model.decoder)(model.decoder, tgt, memory, *masks)
