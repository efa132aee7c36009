"""Caffe's files, upstream's rules for them, and the way back from caffe to onnx."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from parity.caffe_format.model import fill_blob, parse, parse_binary
from parity.caffe_format.rules import check
from parity.caffe_format.schema import DIALECTS, message
from parity.cases.case import case_from_id
from parity.converters.caffe_onnx import reference as caffe_to_onnx
from parity.converters.onnx_caffe import load, reference, save
from parity.converters.torch_onnx import torchscript
from parity.errors import ParityError
from parity.runtimes.caffe import CaffeRuntime
from parity.runtimes.onnx import OnnxRuntime


def normal(*shape):
    return np.random.RandomState(len(shape)).standard_normal(shape)


# --- files ------------------------------------------------------------------------------------------------------------


def network(dialect="opencv"):
    case = case_from_id("resnet-0-0")
    return reference(
        torchscript(case.model(), tuple(torch.from_numpy(array).float() for array in case.inputs())), dialect=dialect
    ), case


def test_files_hold_the_model_bit_for_bit(tmp_path):
    model, case = network()
    save(model, tmp_path / "net.prototxt", tmp_path / "net.caffemodel")
    again = load(tmp_path / "net.prototxt", tmp_path / "net.caffemodel", "opencv")
    assert again.net == model.net
    assert again.outputs == model.outputs and again.inputs == model.inputs
    assert "blobs" not in (tmp_path / "net.prototxt").read_text()
    assert parse_binary(model.caffemodel(), "opencv") == model.net
    inputs = case.inputs(batch=2)
    assert np.array_equal(CaffeRuntime(again).value(inputs), CaffeRuntime(model).value(inputs))


def test_weight_surgery():
    model, case = network()
    name = next(layer.name for layer in model.net.layer if layer.type == "InnerProduct")
    weights, bias = model.blobs(name)
    before = CaffeRuntime(model).value(case.inputs())
    model.set_blob(name, 1, bias + 1)
    assert np.allclose(CaffeRuntime(model).value(case.inputs()), before + 1, atol=1e-5)
    with pytest.raises(ParityError, match="blob 0 of layer"):
        model.set_blob(name, 0, weights.T)
    with pytest.raises(ParityError, match="no layer 'conv9'"):
        model.blobs("conv9")


def test_files_that_are_no_caffe_models_are_one_line(tmp_path):
    model, _ = network("bvlc")
    with pytest.raises(ParityError, match="not a caffemodel"):
        parse(model.prototxt(), model.caffemodel()[:-5])
    with pytest.raises(ParityError, match="no field named") as refusal:
        parse('layer { name: "a" type: "ReLU" relu_parm { } }')
    assert "\n" not in str(refusal.value)
    with pytest.raises(ParityError, match="ceil_mode"):  # another fork's field
        parse('layer { name: "a" type: "Pooling" pooling_param { kernel_size: 2 ceil_mode: false } }', dialect="bvlc")
    with pytest.raises(ParityError, match="cannot read"):
        load(tmp_path / "missing.prototxt")
    (tmp_path / "net.caffemodel").write_bytes(model.caffemodel())
    with pytest.raises(ParityError, match="prototxt"):
        load(tmp_path / "net.caffemodel")


def test_dialects_number_their_fields_as_their_forks_do():
    numbers = {}
    for dialect in DIALECTS:
        fields = message("LayerParameter", dialect).DESCRIPTOR.fields_by_name
        pooling = message("PoolingParameter", dialect).DESCRIPTOR.fields_by_number
        numbers[dialect] = (fields["permute_param"].number if "permute_param" in fields else None,
                            pooling[13].name if 13 in pooling else None)  # fmt: skip
    assert numbers == {"bvlc": (None, "round_mode"), "ssd": (202, None), "opencv": (148, "ceil_mode")}


# --- rules ------------------------------------------------------------------------------------------------------------


def layer(kind, fields="", name="a", bottoms=("data",), tops=("a",)):
    ends = " ".join([f'bottom: "{bottom}"' for bottom in bottoms] + [f'top: "{top}"' for top in tops])
    return f'layer {{ name: "{name}" type: "{kind}" {ends} {fields} }} '


BREACHES = {
    "made by no layer": layer("ReLU", bottoms=["no"]),
    "no such layer": layer("Relu"),
    "bvlc Caffe has no such": layer("Mish"),
    "is made already": layer("ReLU") + layer("TanH", name="b"),
    "empty or taken": layer("ReLU") + layer("TanH", bottoms=["a"], tops=["b"]),
    "its weights": layer("Convolution", "convolution_param { num_output: 2 kernel_size: 3 }"),
    "needs kernel_size": layer("Pooling", "pooling_param { }"),
    "not less than kernel": layer("Pooling", "pooling_param { kernel_size: 2 pad: 2 }"),
    "elements cannot be": layer("Reshape", "reshape_param { shape { dim: 0 dim: 5 } }"),
    "needs tiles": layer("Tile", "tile_param { }"),
    "slice points": layer("Slice", "slice_param { slice_point: 2 slice_point: 3 }", tops=["a", "b"]),
    "for sums alone": layer("Eltwise", "eltwise_param { operation: PROD coeff: 1 coeff: 2 }", bottoms=["data"] * 2),
    "is even": layer("LRN", "lrn_param { local_size: 4 }"),
}


@pytest.mark.parametrize("words", BREACHES)
def test_a_broken_rule_names_the_layer(words):
    header = 'input: "data" input_shape { dim: 1 dim: 3 dim: 6 dim: 6 } '
    with pytest.raises(ParityError, match=words) as breach:
        check(parse(header + BREACHES[words]))
    assert str(breach.value).startswith("layer '")


@pytest.mark.parametrize(
    "size, kernel, stride, pad, wanted", [(7, 2, 2, 0, 4), (7, 3, 2, 1, 4), (6, 2, 2, 1, 4), (5, 2, 3, 1, 2)]
)
def test_pooling_sizes_are_upstreams(size, kernel, stride, pad, wanted):
    """Worked by hand from upstream's rule: up, then one less if the last window begins beyond the input and its pad."""
    fields = f"pooling_param {{ kernel_size: {kernel} stride: {stride} pad: {pad} }}"
    header = f'input: "data" input_shape {{ dim: 1 dim: 1 dim: {size} dim: {size} }} '
    text = header + layer("Pooling", fields, name="p", tops=["p"])
    assert check(parse(text))["p"] == (1, 1, wanted, wanted)
    runtime = CaffeRuntime(parse(text, dialect="opencv"))
    assert runtime.value((normal(1, 1, size, size),)).shape == (1, wanted * wanted)


# --- there and back ---------------------------------------------------------------------------------------------------


def test_round_trip_of_a_hand_written_net():
    """Layers that the converter does not write, in the order people write them: in place, legacy fields."""
    text = (
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 4 dim: 7 dim: 7 } } } '
        + layer("BatchNorm", name="norm", tops=["norm"])
        + layer("Scale", "scale_param { bias_term: true }", name="scale", bottoms=["norm"], tops=["norm"])
        + layer("ReLU", name="relu", bottoms=["norm"], tops=["norm"])
        + layer("Pooling", "pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }", "pool", ["norm"], ["pool"])
        + layer("InnerProduct", "inner_product_param { num_output: 3 }", "fc", ["pool"], ["fc"])
        + layer("Softmax", name="prob", bottoms=["fc"], tops=["prob"])
    )
    model = parse(text, dialect="opencv")
    rng = np.random.RandomState(0)
    weights = {"norm": [rng.randn(4), rng.rand(4) + 1, [2.0]], "scale": [rng.randn(4), rng.randn(4)],
               "fc": [rng.randn(3, 64), rng.randn(3)]}  # fmt: skip
    for name, values in weights.items():
        for value in values:
            fill_blob(model.layer(name).blobs.add(), np.asarray(value))
    check(model)
    x = normal(2, 4, 7, 7)
    wanted = CaffeRuntime(model).value((x,))
    assert np.abs(OnnxRuntime(caffe_to_onnx(model)).value((x,)) - wanted).max() < 1e-6
    again = reference(caffe_to_onnx(model))
    assert np.abs(CaffeRuntime(again).value((x,)) - wanted).max() < 1e-6
