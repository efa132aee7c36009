"""The reference converter torch→casadi against torch.func in float64."""

from __future__ import annotations

import copy
import math
import operator

import casadi
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

from parity.cases.case import case_from_id, case_ids
from parity.cases.weights import REGIMES, draw_inputs, fill
from parity.converters.registry import lowers
from parity.converters.torch_casadi import reference
from parity.errors import Unsupported
from parity.runtimes.casadi import CasadiRuntime
from parity.runtimes.torch import TorchRuntime

TOLERANCE = 1e-12
"""Of the largest element of what is compared, or of 1 where all are smaller."""
LARGE = {"large", "saturating"}
"""Regimes in which terms as large as the inputs squared cancel in a Hessian: a rounding counts that much more."""


class Call(nn.Module):
    """A function as a module of one input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class CallTwo(Call):
    def forward(self, x, y):
        return self.function(x, y)


def deviation(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest error, relative to the largest element or 1. Infinite if anything is not finite."""
    assert got.shape == expected.shape
    if not np.isfinite(got).all():
        return math.inf
    return float(np.abs(got - expected).max(initial=0.0) / max(1.0, np.abs(expected).max(initial=0.0)))


def check(model: nn.Module, inputs: tuple[np.ndarray, ...], tolerance: float = TOLERANCE) -> casadi.Function:
    """Value, Jacobian and Hessian are torch's."""
    function = reference(model, tuple(torch.from_numpy(array) for array in inputs))
    compare(model, function, inputs, tolerance)
    return function


def outputs_of(model: nn.Module, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
    """All outputs in one row, whatever their first dimension is."""
    with torch.no_grad():
        outputs = copy.deepcopy(model).double()(*map(torch.from_numpy, inputs))
    return np.concatenate([leaf.numpy().ravel() for leaf in pytree.tree_leaves(outputs)])


def hessian_of(model: nn.Module, inputs: tuple[np.ndarray, ...], projection: np.ndarray) -> np.ndarray:
    """By torch.func; row by row where torch 2.13 cannot batch it (group_norm whose output's gradient is constant)."""
    try:
        return TorchRuntime(model, "float64").hessian(inputs, projection)
    except RuntimeError as error:
        if "doesn't match the broadcast shape" not in str(error) or len(inputs) > 1:
            raise
    double = copy.deepcopy(model).double().requires_grad_(False)
    x = torch.from_numpy(inputs[0])
    weights = torch.from_numpy(projection)
    rows = torch.autograd.functional.hessian(lambda x: double(x).flatten() @ weights, x)
    return rows.reshape(x.numel(), x.numel()).numpy()


def compare(model, function, inputs, tolerance=TOLERANCE, checks=("value", "jacobian", "hessian")):
    expected, got = TorchRuntime(model, "float64"), CasadiRuntime(function)
    value = outputs_of(model, inputs)
    results = function.call([casadi.DM(array.ravel()) for array in inputs])
    assert deviation(np.concatenate([np.asarray(result).ravel() for result in results]), value) <= tolerance, "value"
    projection = np.random.RandomState(0).standard_normal(value.size)
    if "jacobian" in checks:
        assert deviation(got.jacobian(inputs), expected.jacobian(inputs)) <= tolerance, "jacobian"
    if "hessian" in checks:
        hessian = hessian_of(model, inputs, projection)
        assert deviation(got.hessian(inputs, projection), hessian) <= tolerance, "hessian"


def draw(*shapes: tuple[int, ...], positive: bool = False) -> tuple[np.ndarray, ...]:
    arrays = tuple(array[0] for array in draw_inputs("functions", "normal", 1, shapes))
    return tuple(np.abs(array) / 4 + 0.1 for array in arrays) if positive else arrays


# --- the vocabulary ---------------------------------------------------------------------------------------------------

TORCH_IN_FLOAT32 = {"Hardsigmoid"}
"""torch's own derivative multiplies by 1/6 rounded to float32, in float64 as well."""
KINKED = {"SELU", "ELU", "CELU"}
"""torch's second derivative at 0 is the left one's for its first factor and the right one's for its second."""


@pytest.mark.parametrize("case_id", case_ids(["layer"]))
def test_layers_of_the_vocabulary(case_id):
    case = case_from_id(case_id)
    model = case.model()
    function = reference(model, tuple(map(torch.from_numpy, case.inputs())))
    tolerance = 3e-8 if TORCH_IN_FLOAT32 & set(case.spec.layers) else TOLERANCE
    for regime in REGIMES:
        if regime == "zeros" and KINKED & set(case.spec.layers):
            continue
        inputs = case.inputs(regime)
        compare(model, function, inputs, tolerance, ("value", "jacobian"))
        got = CasadiRuntime(function).hessian(inputs, projection := np.ones(function.size1_out(0)))
        expected = hessian_of(model, inputs, projection)
        if case.family == "layer" and "Mish" in case.spec.layers and not np.isfinite(expected).all():
            assert np.isfinite(got).all()  # where torch's own Hessian is NaN, ours is not
            continue
        assert deviation(got, expected) <= tolerance * (1e3 if regime in LARGE else 1), regime


@pytest.mark.parametrize("case_id", case_ids(["dag"], seed=1, count=30) + case_ids(["recipe", "network"]))
def test_random_models(case_id):
    case = case_from_id(case_id)
    tolerance = 3e-8 if TORCH_IN_FLOAT32 & set(case.spec.layers) else 1e-11
    check(case.model(), case.inputs(), tolerance)


@pytest.mark.parametrize("case_id", ["Conv2d-0-1", "Linear-0-0", "LayerNorm-0-1", "AttentionBlock-0-1", "Upsample-0-1"])
def test_columns_are_samples(case_id):
    case = case_from_id(case_id)
    function = reference(case.model(), tuple(map(torch.from_numpy, case.inputs())))
    inputs = case.inputs("normal", 5)
    expected = TorchRuntime(case.model(), "float64").value(inputs)
    assert deviation(CasadiRuntime(function).value(inputs), expected) <= TOLERANCE


# --- layers beyond it -------------------------------------------------------------------------------------------------

LAYERS = [
    (nn.Conv1d(3, 4, 3, padding="valid"), (2, 3, 7)),
    (nn.Conv2d(2, 4, (2, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2), padding_mode="circular"), (2, 2, 6, 7)),
    (nn.Conv2d(2, 2, (2, 4), padding="same", padding_mode="reflect"), (1, 2, 5, 6)),
    (nn.Conv2d(2, 2, 3), (2, 5, 6)),
    (nn.Conv3d(2, 2, 2, padding=1), (1, 2, 3, 3, 4)),
    (nn.ConvTranspose1d(4, 2, 3, stride=3, padding=1, output_padding=2, groups=2, dilation=2), (2, 4, 5)),
    (nn.ConvTranspose3d(2, 1, 2, stride=2), (1, 2, 2, 3, 2)),
    (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False, divisor_override=5), (1, 2, 6, 7)),
    (nn.AvgPool1d(3, 2, 1, ceil_mode=True), (2, 2, 8)),
    (nn.MaxPool3d(2), (1, 1, 4, 4, 4)),
    (nn.AdaptiveAvgPool1d(3), (1, 2, 7)),
    (nn.AdaptiveAvgPool2d((None, 2)), (1, 2, 5, 7)),
    (nn.AdaptiveMaxPool2d((2, 3)), (1, 2, 5, 7)),
    (nn.AdaptiveMaxPool1d(2), (1, 2, 5)),
    (nn.BatchNorm3d(2), (1, 2, 2, 2, 3)),
    (nn.InstanceNorm1d(3, affine=True), (2, 3, 5)),
    (nn.InstanceNorm1d(3, affine=True, track_running_stats=True), (2, 3, 5)),
    (nn.InstanceNorm2d(3), (3, 2, 5)),
    (nn.RMSNorm(5), (2, 3, 5)),
    (nn.RMSNorm((3, 5), eps=1e-3, elementwise_affine=False), (2, 3, 5)),
    (nn.Unflatten(1, (2, -1)), (2, 6)),
    (nn.Flatten(0, 1), (2, 3, 2)),
    (nn.Softmin(1), (2, 5)),
    (nn.Softmax2d(), (1, 3, 2, 2)),
    (nn.Hardshrink(0.3), (2, 9)),
    (nn.Softshrink(0.3), (2, 9)),
    (nn.Tanhshrink(), (2, 9)),
    (nn.Threshold(0.2, -3.0), (2, 9)),
    (nn.GLU(1), (2, 6, 3)),
    (nn.PReLU(3), (2, 3, 4)),
    (nn.PReLU(), (3,)),
    (nn.ReflectionPad2d((1, 2, 0, 1)), (1, 2, 4, 4)),
    (nn.ReplicationPad1d((2, 1)), (1, 2, 4)),
    (nn.CircularPad2d((1, 2, 3, 0)), (1, 2, 4, 4)),
    (nn.ConstantPad1d((2, -1), 7.5), (1, 2, 4)),
    (nn.Upsample(scale_factor=1.6, mode="linear"), (1, 2, 7)),
    (nn.Upsample(scale_factor=(2.3, 1.4), mode="nearest"), (1, 2, 4, 5)),
    (nn.Upsample(scale_factor=1.7, mode="nearest-exact"), (1, 2, 7)),
    (nn.Upsample(size=(3, 9), mode="bicubic"), (1, 2, 5, 4)),
    (nn.Upsample(size=(3, 9), mode="bicubic", align_corners=True), (1, 2, 5, 4)),
    (nn.Upsample(scale_factor=2, mode="trilinear"), (1, 1, 2, 3, 2)),
    (nn.Upsample(size=1, mode="linear", align_corners=True), (1, 1, 4)),
    (nn.PixelShuffle(2), (1, 8, 2, 3)),
    (nn.RNN(3, 4, num_layers=2, nonlinearity="relu"), (3, 2, 3)),
    (nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True), (2, 3, 3)),
    (nn.LSTM(3, 4, proj_size=2), (3, 2, 3)),
    (nn.LSTM(3, 4, bias=False), (3, 3)),
    (nn.GRU(3, 4, bidirectional=True, batch_first=True), (1, 4, 3)),
    (nn.GRU(3, 4, num_layers=2), (4, 3)),
    (nn.RNNCell(3, 4), (2, 3)),
    (nn.LSTMCell(3, 4), (2, 3)),
    (nn.GRUCell(3, 4), (3,)),
    (nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), (1, 3, 6)),
    (nn.TransformerEncoderLayer(6, 2, 8, activation="gelu", norm_first=True), (3, 1, 6)),
    (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), nn.Tanh()), (2, 3)),
    (nn.Sequential(nn.Linear(3, 2), nn.ELU(0.7, inplace=True), nn.Linear(2, 2), nn.ReLU(inplace=True)), (2, 3)),
]


class Flat(nn.Module):
    """All of a layer's outputs, in one tensor."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        outputs = self.layer(x)
        if isinstance(self.layer, (nn.LSTM, nn.RNN, nn.GRU, nn.LSTMCell)):
            first, second = outputs[0], outputs[1]
            if isinstance(self.layer, nn.LSTM):
                second = torch.cat([second[0].flatten(), second[1].flatten()])
            return torch.cat([first.flatten(), second.flatten()])
        return outputs


@pytest.mark.parametrize("layer, shape", LAYERS, ids=lambda value: type(value).__name__)
def test_further_layers(layer, shape):
    model = Flat(layer).eval()
    if not any("parametrizations" in name for name, _ in model.named_parameters()):
        fill(model, "layers")
    check(model, draw(shape), 1e-11)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("average", [True, False])
def test_multihead_attention(batch_first, average):
    layer = nn.MultiheadAttention(6, 3, batch_first=batch_first, kdim=4, vdim=5)
    fill(layer, "attention")
    mask = torch.tensor([[False, True, False], [False, False, True]])

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.mask = layer, mask

        def forward(self, query, key, value):
            mixed, weights = self.layer(query, key, value, attn_mask=self.mask, average_attn_weights=average)
            return torch.cat([mixed.flatten(), weights.flatten()])

    shapes = [(1, 2, 6), (1, 3, 4), (1, 3, 5)]
    if not batch_first:
        shapes = [(length, batch, width) for batch, length, width in shapes]
    check(Model().eval(), draw(*shapes))


# --- functions --------------------------------------------------------------------------------------------------------

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


def test_casts_between_floating_types_are_dropped():
    x = np.array([[0.3, -1.2]])
    function = reference(Call(lambda x: x.float().to(torch.float16).bfloat16()), (torch.from_numpy(x),))
    assert np.array_equal(np.asarray(function(x.ravel())).ravel(), x.ravel())


def test_names_of_inputs_and_outputs():
    function = reference(
        CallTwo(lambda x, y: {"a": x + y, "b": (x, y)}), (torch.ones(1, 2), torch.ones(1, 2)), name="g"
    )
    assert function.name() == "g"
    assert (function.name_in(), function.name_out()) == (["x", "y"], ["y0", "y1", "y2"])
    assert reference(nn.Linear(2, 3), (torch.ones(1, 2),)).name_out() == ["y"]
    assert reference(nn.Linear(2, 3), (torch.ones(1, 2),)).name_in() == ["input"]


def test_defaults_of_forward():
    class Model(nn.Module):
        def forward(self, x, mask=None, flag=True, scale=2.0, pair=(1, 2)):
            x = x * scale + pair[1] if flag else x
            return x if mask is None else x * mask

    assert float(reference(Model(), (torch.ones(1, 1),))(3)) == 8
    assert float(reference(Model(), (torch.ones(1, 1), torch.ones(1, 1)))(3, 2)) == 16


def test_writing_in_place():
    def residual(x):
        y = x * 2
        y += x
        y.mul_(3).add_(1)
        torch.relu_(y)
        return y * y

    check(Call(residual), draw((2, 3)))

    def through_a_view(x):
        y = x * 2
        first = y[:, 0]
        first += 1
        return y

    with pytest.raises(Unsupported, match=r"writes in place to memory that 'mul' shows too"):
        reference(Call(through_a_view), (torch.ones(2, 3),))


def test_weights_are_exact():
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(0.1)
        model.bias.fill_(0.0)
    assert float(reference(model, (torch.ones(1, 1),))(1)) == float(np.float32(0.1))


def test_the_model_is_left_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model.eval()
    reference(model, (torch.ones(1, 2),))
    assert model[0].weight.dtype == torch.float32 and model[0].weight.requires_grad


# --- refusals ---------------------------------------------------------------------------------------------------------


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


REFUSED = [
    (
        nn.Sequential(nn.Fold((4, 4), 2)),
        (1, 4, 9),
        r"Fold\(output_size=\(4, 4\).*\('0'\) has no lowering: .*lowers\(Fold",
    ),
    (nn.Sequential(nn.Dropout(0.3)).train(), (1, 2), r"Dropout\(p=0.3.*'0'.*train mode: call model.eval\(\)"),
    (nn.BatchNorm1d(2).train(), (1, 2), r"the model itself\) is in train mode"),
    (nn.InstanceNorm1d(2, track_running_stats=True).train(), (1, 2, 3), "train mode"),
    (nn.BatchNorm1d(2, track_running_stats=False).eval(), (1, 2), "without running statistics"),
    (Branching(), (1, 2), "torch.fx cannot trace Branching: symbolically traced variables"),
    (
        Call(lambda x: torch.cumprod(x, 1)),
        (1, 2),
        r"cumprod \(node 'cumprod': \(x, 1\)\) has no lowering: .*cumprod, to=",
    ),
    (Call(lambda x: x.digamma()), (1, 2), r"Tensor.digamma .* has no lowering: .*@parity.lowers\('digamma', to="),
    (Call(lambda x: x.max(1).indices), (1, 2), "Call returns Indices: a function's outputs are tensors"),
    (Call(lambda x: x.max(1).indices * x), (1, 2), "uses the indices of a maximum"),
    (Call(lambda x: x.long()), (1, 2), "has no lowering"),
    (Call(lambda x: x.to(torch.int64)), (1, 2), r"a cast to torch.int64"),
    (Call(lambda x: x.type_as(torch.tensor([1]))), (1, 2), "a tensor of integers"),
    (Call(lambda x: x.type("torch.LongTensor")), (1, 2), "a cast to torch.LongTensor"),
    (Call(lambda x: x.view(torch.int64)), (1, 2), "the same bits read as"),
    (Call(torch.rand_like), (1, 2), "draws random numbers"),
    (Call(lambda x: F.dropout(x)), (1, 2), "drops elements at random"),
    (Call(lambda x: x[x > 0]), (1, 2), "indexing by a computed tensor"),
    (Call(lambda x: F.conv1d(x, x)), (1, 1, 3), "a kernel that depends on the inputs"),
    (nn.MaxPool1d(2, return_indices=True), (1, 1, 4), "return_indices=True"),
]


@pytest.mark.parametrize("model, shape, message", REFUSED, ids=lambda value: str(value)[:30])
def test_refusals_are_one_line(model, shape, message):
    with pytest.raises(Unsupported, match=message) as caught:
        reference(model, (torch.ones(shape),))
    assert "\n" not in str(caught.value)


def test_refused_inputs():
    with pytest.raises(Unsupported, match=r"input x of Call is torch\.int64"):
        reference(Call(lambda x: x), (torch.ones(1, dtype=torch.int64),))
    with pytest.raises(Unsupported, match="does not take 2 tensors"):
        reference(Call(lambda x: x), (torch.ones(1), torch.ones(1)))


def test_forward_hooks_are_refused():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_hook(lambda layer, inputs, output: output * 2)
    with pytest.raises(Unsupported, match="forward hooks"):
        reference(model, (torch.ones(1, 2),))


def test_a_layer_added_by_the_user():
    class Swish(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(x) if bool(x.sum() < 1e9) else x

    with pytest.raises(Unsupported, match=r"put it in a module of its own and lower it whole with @parity.lowers"):
        reference(nn.Sequential(Swish()), (torch.ones(1, 2),))

    @lowers(Swish, to="casadi")
    def lower(layer, x):
        return x / (1 + type(x)(casadi.exp(-x.data), x.shape))

    check(nn.Sequential(Swish()), draw((1, 4)))


def test_a_network_is_not_unrolled_into_elements():
    """One expression per layer: the graph does not grow with the layers' sizes."""
    sizes = {}
    for width in (4, 64):
        model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.LayerNorm(width), nn.Linear(width, 2)).eval()
        sizes[width] = reference(model, (torch.ones(1, 3),)).n_nodes()
    assert sizes[4] == sizes[64] < 40
