"""torch→casadi: layers, of the vocabulary and beyond, and random models, against torch.func in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch_casadi import TOLERANCE, check, compare, deviation, draw, hessian_of

from parity.cases.case import case_from_id, case_ids
from parity.cases.weights import REGIMES, fill
from parity.converters.torch_casadi import reference
from parity.runtimes.casadi import CasadiRuntime
from parity.runtimes.torch import TorchRuntime

LARGE = {"large", "saturating"}
"""Regimes in which terms as large as the inputs squared cancel in a Hessian: a rounding counts that much more."""

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
        inputs = case.inputs(regime)
        compare(model, function, inputs, tolerance, ("value", "jacobian"))
        if regime == "zeros" and KINKED & set(case.spec.layers):
            continue
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
    (nn.Unfold((2, 3), dilation=(1, 2), padding=1, stride=2), (1, 2, 4, 5)),
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


@pytest.mark.parametrize("norm_first", [True, False])
def test_transformer(norm_first):
    model = nn.Transformer(4, 2, 1, 2, 6, batch_first=True, norm_first=norm_first)
    fill(model, "transformer")
    mask = nn.Transformer.generate_square_subsequent_mask(2)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.mask = model, mask

        def forward(self, source, target):
            return self.inner(source, target, tgt_mask=self.mask)

    check(Model().eval(), draw((1, 3, 4), (1, 2, 4)), 1e-11)


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
