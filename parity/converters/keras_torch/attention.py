"""Attention layers. Keras takes (query, value, key), in that order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.converters.keras_torch.layer import Layer, make
from parity.converters.registry import lowers


def lower_triangle(queries: int, keys: int, like: Tensor) -> Tensor:
    """Which keys a query may see if none may lie in its future."""
    return torch.ones(queries, keys, dtype=torch.bool, device=like.device).tril()


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al., 2017); with fewer `key_heads`, groups of queries share keys and values.

    `soft_mask` is Keras' second way, taken with dropout or where the scores are returned: a query that may see no key
    then gets 0 and not the mean of all values.
    """

    def __init__(
        self,
        query_dense: nn.Module,
        key_dense: nn.Module,
        value_dense: nn.Module,
        output_dense: nn.Module,
        heads: int,
        key_heads: int,
        key_dim: int,
        dropout: float = 0.0,
        soft_mask: bool = False,
        window: int | None = None,
        gate_dense: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.query_dense, self.key_dense, self.value_dense = query_dense, key_dense, value_dense
        self.output_dense, self.gate_dense = output_dense, gate_dense
        self.heads, self.key_heads, self.key_dim, self.window = heads, key_heads, key_dim, window
        self.dropout, self.soft_mask = dropout, soft_mask

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        key: Tensor | None = None,
        query_mask: Tensor | None = None,
        value_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> Any:
        if query.ndim != 3:
            raise NotImplementedError("attention over more than one axis: reshape to (batch, tokens, features) before")
        allowed = self.allowed(query, value, (query_mask, value_mask, key_mask), attention_mask, use_causal_mask)
        gate = None if self.gate_dense is None else torch.sigmoid(self.gate_dense(query))
        repeats = self.heads // self.key_heads
        queries = self.split(self.query_dense(query), self.heads)
        keys = self.split(self.key_dense(value if key is None else key), self.key_heads).repeat_interleave(
            repeats, dim=1
        )
        values = self.split(self.value_dense(value), self.key_heads).repeat_interleave(repeats, dim=1)
        scores = queries @ keys.transpose(-2, -1) * self.key_dim**-0.5
        soft = self.soft_mask or return_attention_scores
        if allowed is not None:
            scores = torch.where(allowed, scores, -1e9 if soft else 0.7 * torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, dim=-1)
        if allowed is not None and soft:
            weights = torch.where(allowed, weights, 0.0)
        mixed = F.dropout(weights, self.dropout, self.training) @ values
        mixed = mixed.transpose(1, 2).flatten(2)
        output = self.output_dense(mixed if gate is None else mixed * gate)
        return (output, weights) if return_attention_scores else output

    def split(self, x: Tensor, heads: int) -> Tensor:
        """(batch, tokens, heads · width) to (batch, heads, tokens, width)."""
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    def allowed(
        self,
        query: Tensor,
        value: Tensor,
        masks: tuple[Tensor | None, Tensor | None, Tensor | None],
        attention_mask: Tensor | None,
        causal: bool,
    ) -> Tensor | None:
        """Which keys each query may see, to broadcast with (batch, heads, queries, keys); None for all."""
        query_mask, *key_masks = masks
        parts = [mask[:, None, :] for mask in key_masks if mask is not None]
        if query_mask is not None:
            parts.append(query_mask[:, :, None])
        queries, keys = query.shape[1], value.shape[1]
        if causal:
            parts.append(lower_triangle(queries, keys, query))
        if self.window is not None:
            distance = torch.arange(queries, device=query.device)[:, None] - torch.arange(keys, device=query.device)
            parts.append(distance.abs() < self.window)
        allowed = None
        for part in parts:
            allowed = part if allowed is None else allowed & part
        if allowed is not None and allowed.ndim == 3:
            allowed = allowed.unsqueeze(1)
        if attention_mask is not None:
            given = attention_mask.bool()
            given = given.unsqueeze(1) if given.ndim == 3 else given
            allowed = given if allowed is None else allowed & given
        return allowed


class Attention(nn.Module):
    """Dot-product or concatenation attention over [query, value, key]; `additive` is Bahdanau's (2015) instead."""

    def __init__(
        self, score_mode: str = "dot", scale_shape: tuple[int, ...] | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.score_mode, self.dropout = score_mode, dropout
        self.scale_shape = None if scale_shape is None else tuple(scale_shape)
        self.scale = None if self.scale_shape is None else nn.Parameter(torch.empty(self.scale_shape))
        self.concat_score_weight = nn.Parameter(torch.empty(())) if score_mode == "concat" else None

    def forward(
        self,
        inputs: Sequence[Tensor],
        mask: Sequence[Tensor | None] | None = None,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> Any:
        query, value = inputs[0], inputs[1]
        scores = self.scores(query, inputs[2] if len(inputs) > 2 else value)
        query_mask, value_mask = (mask[0], mask[1]) if mask else (None, None)
        allowed = None if value_mask is None else value_mask[:, None, :]
        if use_causal_mask:
            causal = lower_triangle(scores.shape[-2], scores.shape[-1], scores)
            allowed = causal if allowed is None else allowed & causal
        if allowed is not None:
            scores = torch.where(allowed, scores, scores - 1e9)
        weights = torch.softmax(scores, dim=-1)
        weights = F.dropout(weights, self.dropout, self.training)
        output = weights @ value
        if query_mask is not None:
            output = torch.where(query_mask.unsqueeze(-1), output, 0.0)
        return (output, weights) if return_attention_scores else output

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        scale = 1.0 if self.scale is None else self.scale
        if self.score_mode == "dot":
            return query @ key.transpose(-2, -1) * scale
        total = query.unsqueeze(-2) + key.unsqueeze(-3)
        if self.score_mode == "additive":
            return (scale * torch.tanh(total)).sum(dim=-1)
        weight = 1.0 if self.concat_score_weight is None else self.concat_score_weight
        return weight * torch.tanh(scale * total).sum(dim=-1)


@lowers("MultiHeadAttention", to="torch")
def multi_head_attention(layer: Layer) -> nn.Module:
    config = layer.config
    if config.get("attention_axes") not in (None, [1]):
        raise layer.refuse("attention over other axes than the tokens", "reshape to (batch, tokens, features) before")
    heads = config["num_heads"]
    return _attention(layer, heads, heads, config["key_dim"], config.get("sliding_window"))


@lowers("GroupedQueryAttention", "GroupQueryAttention", to="torch")
def grouped_query_attention(layer: Layer) -> nn.Module:
    config = layer.config
    window = config.get("sliding_window")
    return _attention(layer, config["num_query_heads"], config["num_key_value_heads"], config["head_dim"], window)


def _attention(layer: Layer, heads: int, key_heads: int, key_dim: int, window: int | None) -> nn.Module:
    parts = {name: _projection(layer, f"{name}_dense") for name in ("query", "key", "value")}
    if layer.config.get("use_gate"):
        parts["gate"] = _projection(layer, "gate_dense")
    rate = float(layer.config.get("dropout", 0.0))
    return MultiHeadAttention(
        **{f"{name}_dense": part for name, part in parts.items()},
        output_dense=_projection(layer, "output_dense", joined=2),
        heads=heads,
        key_heads=key_heads,
        key_dim=key_dim,
        dropout=0.0 if layer.frozen else rate,
        soft_mask=rate > 0,
        window=window,
    )


def _projection(layer: Layer, name: str, joined: int = 1) -> nn.Module:
    """A linear module of an EinsumDense whose kernel's first `joined` axes are the inputs'."""
    variables = layer.weights.child(name).variables
    if not variables:
        raise layer.refuse(f"it has no {name}: it was never built", "call the model once")
    kernel, *bias = variables
    inputs = int(np.prod(kernel.shape[:joined]))
    weight = kernel.reshape(inputs, -1).T
    state = {"weight": weight} | ({"bias": bias[0].reshape(-1)} if bias else {})
    return make(nn.Linear, inputs, weight.shape[0], bias=bool(bias), state=state)


@lowers("Attention", to="torch")
def attention(layer: Layer) -> nn.Module:
    mode = layer.config.get("score_mode", "dot")
    names = [*(["scale"] * bool(layer.config.get("use_scale"))), *(["concat_score_weight"] * (mode == "concat"))]
    return _scored(layer, mode, dict(zip(names, layer.variables, strict=True)))


@lowers("AdditiveAttention", to="torch")
def additive_attention(layer: Layer) -> nn.Module:
    names = ["scale"] if layer.config.get("use_scale", True) else []
    return _scored(layer, "additive", dict(zip(names, layer.variables, strict=True)))


def _scored(layer: Layer, mode: str, state: dict[str, np.ndarray]) -> nn.Module:
    shape = state["scale"].shape if "scale" in state else None
    dropout = 0.0 if layer.frozen else float(layer.config.get("dropout", 0.0))
    return make(Attention, mode, shape, dropout, state=state)
