"""torch→onnx: both exporters, both runtimes, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from parity.cases.case import case_from_id
from parity.cases.torch_layers import TORCH
from parity.cases.torch_modules import SpatialAttention
from parity.converters.torch_onnx import OPSET, dynamo, torchscript
from parity.errors import ParityError, Unsupported
from parity.runtimes.onnx import OnnxRuntime, ReferenceRuntime
from parity.runtimes.torch import TorchRuntime

# What an exporter gets wrong, or the runtime refuses, with the reason: each is a finding about it, not about us.
REFUSED = {("AdaptiveAvgPool2d", "torchscript"): "not factor of input size"}
REFUSED_TO_RUN = {
    "Conv1d": "Dilation not supported for AutoPadType",
    "Conv2d": "Dilation not supported for AutoPadType",
    "ConvTranspose2d": "output_padding (1) may be too large",
}
IGNORES_THRESHOLD = ("Softplus", "torchscript")


def tensors(case, batch=1):
    return tuple(torch.from_numpy(array).float() for array in case.inputs(batch=batch))


@pytest.mark.parametrize("layer", [layer.name for layer in TORCH])
def test_every_layer_keeps_its_value_through_the_torchscript_exporter(layer):
    agrees(layer, torchscript, number=1)


@pytest.mark.parametrize("layer", ["Linear", "Conv2d", "LayerNorm", "AttentionBlock", "AdaptiveAvgPool2d", "Upsample"])
def test_layers_keep_their_value_through_the_dynamo_exporter(layer):
    agrees(layer, dynamo, number=0)


def agrees(layer, export, number):
    case = case_from_id(f"{layer}-0-{number}")
    model, name = case.model(), export.__name__
    if (layer, name) in REFUSED:
        with pytest.raises(Unsupported, match=REFUSED[layer, name]):
            export(model, tensors(case))
        return
    proto = export(model, tensors(case))
    assert next(entry.version for entry in proto.opset_import if entry.domain == "") == OPSET
    wanted = TorchRuntime(model, "float64").value(case.inputs(batch=3))
    try:
        found = OnnxRuntime(proto).value(case.inputs(batch=3))
    except Unsupported as refusal:
        assert layer in REFUSED_TO_RUN and REFUSED_TO_RUN[layer] in str(refusal)
        return
    scale = np.abs(wanted).max()
    if (layer, name) == IGNORES_THRESHOLD and any(node.arguments["threshold"] == 2 for node in case.spec.nodes):
        assert np.abs(found - wanted).max() > 1e-3 * scale
        return
    assert np.abs(found - wanted).max() <= 2e-6 * scale
    assert np.abs(ReferenceRuntime(proto).value(case.inputs(batch=3)) - wanted).max() <= 2e-6 * scale


def test_a_float64_model_is_exported_in_float64():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double().eval()
    x = np.random.RandomState(0).standard_normal((2, 3))
    proto = torchscript(model, (torch.from_numpy(x[:1]),))
    runtime = OnnxRuntime(proto)
    assert runtime.dtype == "float64"
    assert np.abs(runtime.value((x,)) - TorchRuntime(model).value((x,))).max() < 1e-15
    with pytest.raises(ParityError, match="computes in float64"):
        OnnxRuntime(proto, "float32")


def test_a_batch_that_the_export_does_not_divide_is_refused():
    proto = torchscript(nn.Linear(3, 2), (torch.zeros(2, 3),))
    assert OnnxRuntime(proto).value((np.zeros((4, 3)),)).shape == (4, 2)
    with pytest.raises(ParityError, match="batches of 2: 3 samples"):
        OnnxRuntime(proto).value((np.zeros((3, 3)),))
    proto = torchscript(nn.Linear(3, 2), (torch.zeros(2, 3),), dynamic_batch=True)
    assert OnnxRuntime(proto).value((np.zeros((3, 3)),)).shape == (3, 2)


@pytest.mark.parametrize("export", [dynamo, torchscript])
def test_spatial_attention_needs_no_registration(export):
    model = SpatialAttention().eval()
    x = np.random.RandomState(0).standard_normal((2, 3, 8, 9))
    wanted = TorchRuntime(model, "float64").value((x,))
    found = OnnxRuntime(export(model, (torch.from_numpy(x).float(),))).value((x,))
    assert np.abs(found - wanted).max() < 1e-6


@pytest.mark.parametrize("export", [dynamo, torchscript])
def test_what_an_exporter_cannot_take_is_one_line(export):
    class Loops(nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x) if x.sum() > 0 else x

    with pytest.raises(Unsupported, match=f"{export.__name__} exporter refuses Loops") as refusal:
        export(Loops(), (torch.ones(1, 3, 3),))
    assert "\n" not in str(refusal.value)
