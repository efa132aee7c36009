"""torch→casadi: functions, operators and methods of tensors, against torch.func in float64."""

from __future__ import annotations

import math
import operator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch_casadi import Call, CallTwo, check, compare, draw

from parity.converters.torch_casadi import reference
from parity.runtimes.casadi import CasadiRuntime

CONSTANT = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64).reshape(2, 3)
MASK = CONSTANT > 0
SMOOTH = ("exp", "expm1", "sin", "cos", "atan", "sinh", "cosh", "tanh", "asinh", "erf", "sign", "floor", "ceil",
          "square", "sigmoid", "sinc")  # fmt: skip
ONE: dict[str, object] = {
    "arithmetic": lambda x: 2 - x * 3 + x / 4 - 1 / (x * x + 1) + (-x) + abs(x) + x * CONSTANT,
    "alpha": lambda x: torch.add(x, x * x, alpha=0.5) - torch.sub(x, CONSTANT, alpha=3) + torch.rsub(x, 1),
    "broadcast": lambda x: x[:, :1] * x[:1] + x[0] - x.sum(),
    "powers": lambda x: x**2 + x**3 - x**5 + (x**2 + 1) ** -1 + 2**x + x**1 + x**0 + torch.pow(x * x + 1, 0.3),
    "floor division": lambda x: x % 0.7 + torch.remainder(x, -0.7) + torch.div(x, 3, rounding_mode="trunc"),
    "unary": lambda x: sum(getattr(torch, name)(x) for name in SMOOTH),
    "trunc": lambda x: x.trunc() * x + x.frac() * x + x.erfc(),
    "atan2": lambda x: torch.atan2(x, x * x + 1) + torch.hypot(x, x - 4),
    "matmul": lambda x: x @ x.mT + torch.matmul(x, CONSTANT.mT) + CONSTANT @ x.T + x.mm(x.t()),
    "vectors": lambda x: x[0] @ x[1] + torch.dot(x[0], x[0]) + (x @ x[0]).sum() + (x.mT @ CONSTANT[:, 0]).sum(),
    "bmm": lambda x: (
        torch.bmm(x.reshape(1, 2, 3), x.reshape(1, 3, 2)) + torch.baddbmm(CONSTANT[:, :2], x[None], x.T[None])
    ),
    "linear": lambda x: F.linear(x, CONSTANT, CONSTANT[:, 0]) + F.linear(x, x),
    "outer": lambda x: torch.outer(x[0], x[1]) + torch.addmm(x[0], x.T, x, beta=2, alpha=0.5),
    "einsum": lambda x: (
        torch.einsum("ij,kj->ik", x, x)
        + torch.einsum("ij,ij->", x, CONSTANT)
        + torch.einsum("ij->", x)
        + torch.einsum("ii", x @ x.T)
        + torch.einsum("ij,jk,kl->il", x, x.T, CONSTANT)[:, :2]
    ),
    "einsum batch": lambda x: (
        torch.einsum("bij,bjk->bik", x[None], x.T[None]) + torch.einsum("...ij,kj->...ik", x[None], x)
    ),
    "bilinear": lambda x: F.bilinear(
        x, x, torch.arange(18.0, dtype=torch.float64).reshape(2, 3, 3) / 9, CONSTANT[:, 0]
    ),
    "cat": lambda x: torch.cat([x, CONSTANT, x * x], dim=-1),
    "stack": lambda x: (
        torch.stack((x, x.exp()), dim=1) + torch.hstack([x, x])[:, None, :3] + torch.vstack([x[0], x[1]])
    ),
    "views": lambda x: x.view(3, -1).permute(1, 0).transpose(0, 1).reshape(6).unflatten(0, (3, 2)).flatten(),
    "squeeze": lambda x: x.unsqueeze(1).unsqueeze(-1).squeeze() * x[None].squeeze(0) + x.unsqueeze(0).squeeze((0, 1)),
    "expand": lambda x: (
        x.expand(4, -1, 3) + x.unsqueeze(1).expand_as(x[:, None]).repeat(2, 1, 1)[:1] + x.broadcast_to(4, 2, 3)
    ),
    "chunk": lambda x: (
        x.chunk(2, dim=1)[0] * 2 + x.split(2, dim=1)[0] + x.split([2, 1], 1)[0] * x.tensor_split(2, 1)[0]
    ),
    "unbind": lambda x: x.unbind(1)[0] - torch.unbind(x)[1][:2] + x.select(1, 2) + x.diagonal(),
    "index": lambda x: (
        x[..., 1:] * x[:, ::2] + x[1, None, -1] + x.narrow(1, 0, 2) + x[:, [2, 0]] + x[:, torch.tensor([1, 1])]
    ),
    "mask index": lambda x: x[MASK] * 2,
    "gather": lambda x: x.gather(1, torch.tensor([[0, 2], [1, 1]])) + x.index_select(1, torch.tensor([2, 0])),
    "flip": lambda x: x.flip(1) * x.roll(1, 1) + x.roll((1, 2), (0, 1)) + torch.flip(x, (0, 1)) + x.roll(2),
    "sums": lambda x: (
        x.sum(1, keepdim=True) * x.mean(0) + x.sum((0, 1)) + x.mean() + x.cumsum(0) + x.prod(1)[:, None] * x.prod()
    ),
    "variance": lambda x: (
        x.var() + x.var(1).sum() + x.std(0, unbiased=False) + x.var(1, correction=0, keepdim=True) + x.var(False)
    ),
    "extremes": lambda x: (
        x.max() + x.min(1)[0].sum() + x.max(dim=0).values + x.amax(1, keepdim=True) - x.amin(0) + torch.amax(x)
    ),
    "two extremes": lambda x: torch.max(x, CONSTANT) + torch.minimum(x, x * x) + x.maximum(CONSTANT),
    "logsumexp": lambda x: x.logsumexp(1).sum() + torch.logsumexp(x, (0, 1)) + x.logsumexp(0, keepdim=True),
    "norms": lambda x: (
        x.norm() + x.norm(dim=1).sum() + torch.linalg.vector_norm(x, dim=0) + x.norm(p=1) + F.normalize(x, dim=-1)
    ),
    "where": lambda x: torch.where(x > 0, x * x, torch.exp(x)) + torch.where(MASK, x, CONSTANT) + x.where(x < 1, x * 2),
    "masked fill": lambda x: (
        x.masked_fill(MASK, 2.0) + x.masked_fill(x > 1, 0.0) + torch.softmax(x.masked_fill(MASK, -math.inf), 0)
    ),
    "clamp": lambda x: (
        x.clamp(-0.5, 0.5) * x + x.clamp(min=0.1) + torch.clamp(x, max=CONSTANT) + x.clamp_min(0.0) + x.clip(0, 2)
    ),
    "comparisons": lambda x: (x > 0) * x + (x <= 0.5).float() * x + ((x > 0) & ~(x > 1)).to(x.dtype) * x + x.ne(0) * x,
    "lerp": lambda x: torch.lerp(x, CONSTANT, 0.3) + torch.addcmul(x, x, x, value=2) + torch.addcdiv(x, x, x * x + 1),
    "powers of an array": lambda x: x ** torch.tensor([2.0, 3.0, 1.0]) + (x * x + 1) ** CONSTANT,
    "spread and mean": lambda x: sum(part.sum() for part in (*torch.std_mean(x, 1), *torch.var_mean(x, 0))) + x,
    "cumulative": lambda x: x.cumprod(1) * x.cumsum(0) + torch.cumprod(x, dim=0),
    "unfold": lambda x: x.unfold(1, 2, 1).sum() + F.unfold(x[None, None], 2, padding=1, stride=(1, 2)),
    "cosine": lambda x: F.cosine_similarity(x, CONSTANT) + torch.cosine_similarity(x, x * x, dim=-1),
    "grouped queries": lambda x: F.scaled_dot_product_attention(
        torch.stack([x, x * x, x + 1, -x])[None],
        x[None, None].repeat(1, 2, 1, 1) * 2,
        x.expand(1, 2, 2, 3),
        enable_gqa=True,
    ),
    "own kernel": lambda x: F.conv1d(x[None], x.reshape(1, 2, 3)[:, :, :2], padding=1),
    "triangles": lambda x: (x.T @ x).tril() + (x.T @ x).triu(1),
    "activations": lambda x: (
        F.relu(x)
        + F.leaky_relu(x, 0.2)
        + F.elu(x, 0.5)
        + F.celu(x, alpha=0.5)
        + F.gelu(x)
        + F.gelu(x, approximate="tanh")
        + F.softplus(x, 2, threshold=1)
        + F.hardtanh(x, -0.2, 0.3)
        + F.silu(x, inplace=False)
        + F.logsigmoid(x)
        + F.mish(x)
        + F.softsign(x)
        + F.threshold(x, 0.1, 0.2)
        + F.selu(x)
        + F.relu6(x)
        + x.relu()
        + x.sigmoid()
        + torch.tanh(x)
    ),
    "prelu": lambda x: F.prelu(x, CONSTANT[0] + 2) + F.glu(torch.cat([x, x], 1)) + F.hardswish(x),
    "softmax": lambda x: (
        x.softmax(1) * torch.log_softmax(x, dim=0) + F.softmin(x, 1) + F.softmax(x, dim=-1, dtype=torch.float64)
    ),
    "normalizations": lambda x: (
        F.layer_norm(x, (3,), CONSTANT[0], CONSTANT[1])
        + F.rms_norm(x, [3])
        + F.group_norm(x[None], 1)[0]
        + F.batch_norm(x, CONSTANT[0], CONSTANT[1] ** 2 + 1, CONSTANT[0])
        + F.instance_norm(x[None])[0]
    ),
    "pad": lambda x: F.pad(x, (1, 2)) + F.pad(x[None], (1, 2), mode="reflect")[0] + F.pad(x, (-1, 4, 1, -1), value=3.0),
    "interpolate": lambda x: F.interpolate(x[None], scale_factor=2, mode="linear") + F.interpolate(x[None], size=6),
    "convolution": lambda x: (
        F.conv1d(x[None], torch.ones(2, 2, 2, dtype=torch.float64), CONSTANT[:, 0], padding=1)
        + F.avg_pool1d(F.pad(x[None], (1, 1)), 2, 1)
        + F.max_pool1d(F.pad(x[None], (1, 1)), 2, stride=1)
    ),
    "attention": lambda x: (
        F.scaled_dot_product_attention(x[None], x[None] * 2, x[None], is_causal=True)
        + F.scaled_dot_product_attention(x, x, x, attn_mask=MASK[:, 1:], scale=0.3)
        + F.scaled_dot_product_attention(x, x, x, attn_mask=CONSTANT[:, :2])
    ),
    "shapes": lambda x: (
        x * x.size(0)
        + x.shape[-1] * x.new_ones(x.shape)
        + torch.zeros_like(x)
        + x.dim()
        + x.numel() * x.ndim
        + torch.arange(x.size(1), device=x.device, dtype=x.dtype)
        + torch.full_like(x, 2)
        + x.reshape(x.size(0), -1)
    ),
    "names": lambda x: (
        torch.softmax(input=x, dim=1).permute(dims=(1, 0)).reshape(shape=(2, 3)) * torch.mean(x, axis=0, keepdims=True)
        + x.flip(dims=(0,)).roll(shifts=1, dims=1)
        + x.sum(axis=1, keepdim=True)
    ),
    "casts": lambda x: x.double().to(torch.float64).contiguous().clone().type_as(x).to(x) * F.dropout(x, 0.5, False),
    "detach": lambda x: x * x.detach() + (x * 1e-30).detach(),
}


@pytest.mark.parametrize("name", ONE)
def test_functions(name):
    x = np.array([[0.3, -1.2, 0.8], [1.7, -0.4, 0.25]])
    check(Call(ONE[name]), (x,))


POSITIVE = ("log", "log1p", "sqrt", "rsqrt", "reciprocal", "acos", "asin", "tan", "atanh", "log2", "log10", "exp2",
            "positive", "negative", "absolute")  # fmt: skip


@pytest.mark.parametrize("name", POSITIVE)
def test_functions_of_positive_numbers(name):
    check(Call(getattr(torch, name)), (draw((2, 3), positive=True)[0].clip(0.1, 0.9),))


def test_two_inputs():
    check(CallTwo(lambda x, y: torch.cat([x * y, x @ y.T, (x - y) ** 2, x / (1 + y * y)], 1)), draw((2, 3), (2, 3)))
    check(CallTwo(lambda x, y: x ** (y * y) + torch.where(x > y, x, y)), draw((2, 3), (2, 3), positive=True))
    check(CallTwo(operator.matmul), draw((2, 1, 3, 4), (2, 4, 2)))
    check(CallTwo(lambda x, y: torch.einsum("nhij,njk->nik", x, y)), draw((2, 2, 3, 4), (2, 4, 2)))
    query_mask = F.scaled_dot_product_attention
    check(CallTwo(lambda x, y: query_mask(x, x, x, attn_mask=y)), draw((1, 2, 3), (2, 2)))


def test_powers_at_zero():
    check(Call(lambda x: x**0 + x**1 + x**2 + x**3 + x**4), (np.zeros((1, 2)),))
    norm = reference(Call(lambda x: x.norm(dim=1)), (torch.zeros(1, 2),))
    assert np.all(CasadiRuntime(norm).jacobian((np.zeros((1, 2)),)) == 0)  # torch's choice


def test_values_without_derivatives_in_torch():
    x = np.array([[0.3, -1.2, 0.8], [1.7, -0.4, 0.25]])
    model = Call(lambda x: x // 0.3 + x.floor_divide(-0.7) + x.remainder(-x))
    compare(model, reference(model, (torch.from_numpy(x),)), (x,), checks=())
