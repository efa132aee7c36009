"""The path torch→onnx→caffe as a whole: blame by stage, expected deviations, options, the round trip, the command."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from parity.suites import deviations as listed
from torch import nn

import parity
from parity.caffe_format.model import CaffeModel
from parity.cases.case import case_from_id
from parity.cli import main
from parity.converters import caffe_onnx, onnx_caffe, onnx_torch
from parity.converters.registry import Chain, Converter, find_chain
from parity.converters.torch_onnx import torchscript
from parity.deviations import explanation, overdue
from parity.paths import path
from parity.pipeline import Point, examine
from parity.records import FAIL, PASS, UNSUPPORTED, Record
from parity.runtimes import representation_of, runtime_for
from parity.runtimes.caffe import CaffeRuntime
from parity.runtimes.onnx import OnnxRuntime
from parity.runtimes.torch import TorchRuntime

WAY = path("torch-onnx-caffe")
CHAIN = find_chain(WAY, "torchscript+reference")
ROUND_TRIP = find_chain(path("torch-onnx-caffe-onnx-torch"), "torchscript+reference+reference+reference")


def chain_of(export, lower):
    edges = (("torch", "onnx", export), ("onnx", "caffe", lower))
    return Chain(WAY, tuple(Converter(a, b, f.__name__, f, ("float32",), ()) for a, b, f in edges))


def records_of(case_id, chain=CHAIN, plan=None):
    return list(examine(case_from_id(case_id), chain, plan))


def one_record(case_id, chain) -> Record:
    return records_of(case_id, chain, [Point("value")])[0]


def tensors(case, batch=1):
    return tuple(torch.from_numpy(array).float() for array in case.inputs(batch=batch))


# --- blame ------------------------------------------------------------------------------------------------------------


def wrong_export(model, example):
    """The weights of the last layer are off by 1e-3."""
    proto = torchscript(model, example)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if array.ndim == 2 and array.shape[0] == 10:
            array *= 1.001
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return proto


def wrong_lowering(model, example=()):
    """Depthwise convolutions, and no others, are off by 1e-4."""
    caffe = onnx_caffe.reference(model, example)
    for layer in caffe.net.layer:
        if layer.convolution_param.group > 1:
            caffe.set_blob(layer.name, 0, caffe.blobs(layer.name)[0] * 1.0001)
    return caffe


def test_an_error_of_the_exporter_is_blamed_on_it_and_on_the_layer():
    record = one_record("simple_cnn-0-0", chain_of(wrong_export, onnx_caffe.reference))
    assert (record.verdict, record.blame_stage, record.blame_layer) == (FAIL, "torch→onnx", "linear_10")


def test_an_error_of_the_lowering_is_blamed_on_it_and_on_the_layer():
    case_id = "mobilenet-0-1"
    record = one_record(case_id, chain_of(torchscript, wrong_lowering))
    spec = case_from_id(case_id).spec
    first = next(value for value in range(1, spec.values) if spec.nodes[value - 1].arguments.get("groups", 1) > 1)
    assert (record.verdict, record.blame_stage, record.blame_layer) == (FAIL, "onnx→caffe", spec.name_of(first))
    assert one_record(case_id, CHAIN).verdict == PASS


def test_a_whole_case_has_the_columns_of_a_record():
    records = records_of("spatial_attention-0-0")
    assert [record.verdict for record in records] == [PASS] * 6
    assert {(record.check, record.dtype, record.converter) for record in records} == {
        ("value", "float32", "torchscript+reference")
    }
    assert all(record.artifact_bytes > 1000 and record.convert_ms > 0 for record in records)


# --- expected deviations ----------------------------------------------------------------------------------------------

SMALLEST = {
    "SOFTPLUS": ("Softplus-0-1", CHAIN),
    "ELU": ("ELU-0-1", CHAIN),
    "SIGMOID": ("Mish-21-2", CHAIN),
    "NEAR_ZERO": ("LogSigmoid-25-0", CHAIN),
    "UPSAMPLE": ("Upsample-25-1", find_chain(path("torch-onnx"), "torchscript")),
    "FAR_SIGMOID": ("Sigmoid-23-0", find_chain(path("torch-onnx"), "torchscript")),
    "MISH": ("Mish-0-9", CHAIN),
    "TINY_TANH": ("Tanh-0-2", CHAIN),
    "TANH": ("Tanh-0-2", CHAIN),
    "MVN": ("vocabulary-23-13", CHAIN),
    "EXPONENTIAL": ("SELU-0-1", find_chain(path("torch-onnx"), "torchscript")),
    "LOG_SIGMOID": ("LogSigmoid-0-1", find_chain(path("torch-onnx"), "torchscript")),
}


def test_every_listed_deviation_has_a_case():
    every = {*listed.IN_ONNX, *listed.IN_CAFFE, *listed.ROUND_TRIP}
    assert {getattr(listed, name) for name in SMALLEST} == every


@pytest.mark.parametrize("name", SMALLEST)
def test_a_listed_deviation_is_still_there(name):
    """Once it is mended, in a newer OpenCV say, the entry goes."""
    case_id, chain = SMALLEST[name]
    records = records_of(case_id, chain)
    deviation = getattr(listed, name)
    assert any(deviation.explains(record) for record in records)
    assert not overdue([deviation], case_from_id(case_id), chain.name, records)


def test_the_list_explains_nothing_else():
    fail = Record(verdict=FAIL, converter="torchscript+reference", blame_stage="onnx→caffe", blame_layer="elu_3",
                  regime="tiny", error_ratio=1e5)  # fmt: skip
    assert explanation(listed.IN_CAFFE, fail) == listed.ELU.reason
    assert explanation(listed.IN_CAFFE, replace(fail, blame_layer="", layers="Conv2d>ELU")) == listed.ELU.reason
    for other in ({"regime": "large"}, {"blame_layer": "conv2d_1"}, {"blame_stage": ""}, {"verdict": PASS},
                  {"blame_layer": "", "layers": "Conv2d>ReLU"}):  # fmt: skip
        assert explanation(listed.IN_CAFFE, replace(fail, **other)) == ""
    sigmoid = replace(fail, blame_layer="sigmoid_9", regime="normal", error_ratio=5.0)
    assert explanation(listed.IN_CAFFE, sigmoid) == listed.SIGMOID.reason
    assert explanation(listed.IN_CAFFE, replace(sigmoid, error_ratio=50.0)) == ""
    softplus = replace(fail, blame_layer="softplus_1", blame_stage="torch→onnx")
    assert explanation(listed.IN_CAFFE, softplus) == listed.SOFTPLUS.reason
    assert explanation(listed.IN_CAFFE, replace(softplus, converter="dynamo+reference")) == ""


def test_a_deviation_that_is_gone_is_overdue():
    case, passed = case_from_id("ELU-0-2"), [Record(verdict=PASS, regime="tiny")]
    assert overdue(listed.IN_CAFFE, case, CHAIN.name, passed) == [listed.ELU]
    assert overdue(listed.IN_CAFFE, case, CHAIN.name, [replace(passed[0], verdict=UNSUPPORTED)]) == []
    assert overdue(listed.IN_CAFFE, case_from_id("simple_cnn-0-0"), CHAIN.name, passed) == []


# --- options and representations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("groups", [1, 2])
def test_batch_norm_folds_into_a_convolution(kind, groups):
    model = nn.Sequential(kind(4, 6, 3, groups=groups, bias=groups == 1), nn.BatchNorm2d(6), nn.ReLU()).eval()
    rng = np.random.RandomState(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                low = 0.3 if name.endswith("running_var") else -1.0
                tensor.copy_(torch.from_numpy(rng.uniform(low, 2.0, tuple(tensor.shape))))
    proto = torchscript_with_batch_norm(model, (torch.zeros(1, 4, 7, 8),))
    plain, folded = (onnx_caffe.reference(proto, fold_batch_norm=fold) for fold in (False, True))
    assert {"BatchNorm", "Scale"} & {layer.type for layer in plain.net.layer}
    assert [layer.type for layer in folded.net.layer][1:] == ["ReLU"]
    x = rng.standard_normal((3, 4, 7, 8))
    wanted = TorchRuntime(model, "float64").value((x,))
    for caffe in (plain, folded):
        assert np.abs(CaffeRuntime(caffe).value((x,)) - wanted).max() < 2e-6 * np.abs(wanted).max()


def torchscript_with_batch_norm(model, example):
    """torch folds BatchNorm itself when it exports for inference: as others write it, it is a node of its own."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, example, file, dynamo=False, training=torch.onnx.TrainingMode.PRESERVE,
                          do_constant_folding=False, opset_version=17)  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def test_a_grouped_deconvolution_is_scaled_by_the_layer_behind_it():
    """OpenCV 4.14 merges the two in the wrong order, unless something else reads the first too."""
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.arange(1.0, 7.0))
    x = np.random.RandomState(0).standard_normal((1, 4, 5, 6))
    caffe = onnx_caffe.reference(torchscript_with_batch_norm(model, (torch.zeros(1, 4, 5, 6),)))
    wanted = TorchRuntime(model, "float64").value((x,))
    assert np.abs(CaffeRuntime(caffe).value((x,)) - wanted).max() < 2e-6 * np.abs(wanted).max()


def test_batch_norm_folds_into_a_linear_layer():
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).eval()
    with torch.no_grad():
        model[1].running_mean.uniform_(-1, 1)
        model[1].running_var.uniform_(0.3, 2)
    proto = torchscript_with_batch_norm(model, (torch.zeros(1, 3),))
    folded = onnx_caffe.reference(proto, fold_batch_norm=True)
    assert [layer.type for layer in folded.net.layer] == ["InnerProduct"]
    x = np.random.RandomState(0).standard_normal((2, 3))
    assert np.abs(CaffeRuntime(folded).value((x,)) - TorchRuntime(model, "float64").value((x,))).max() < 1e-6


def test_representations_are_known_by_their_type():
    case = case_from_id("spatial_attention-0-0")
    proto = parity.convert(case.model(), "onnx", tensors(case), converter="torchscript")
    caffe = parity.convert(case.model(), "caffe", tensors(case), converter="torchscript+reference", dialect="bvlc")
    assert (representation_of(proto), representation_of(caffe)) == ("onnx", "caffe")
    assert isinstance(caffe, CaffeModel) and caffe.dialect == "bvlc"
    assert runtime_for(caffe).artifact_bytes == len(caffe.caffemodel())
    assert runtime_for(proto).artifact_bytes == len(proto.SerializeToString())


@pytest.mark.parametrize("case_id", ["mobilenet-0-0", "unet-0-0", "spatial_attention-0-0", "mtcnn-0-2", "resnet-0-0"])
def test_a_net_of_batch_1_is_right_for_other_batches_too(case_id):
    """Change the number in `input_shape`, and nothing else: users do."""
    case = case_from_id(case_id)
    caffe = onnx_caffe.reference(torchscript(case.model(), tensors(case)))
    larger = type(caffe.net)()
    larger.CopyFrom(caffe.net)
    larger.input_shape[0].dim[0] = 3
    inputs = case.inputs(batch=3)
    together = CaffeRuntime(replace(caffe, net=larger)).value(inputs)
    assert np.abs(together - TorchRuntime(case.model(), "float64").value(inputs)).max() < 3e-6 * np.abs(together).max()


# --- the way back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case_id", ["mobilenet-0-0", "unet-0-1", "inception-0-0", "mtcnn-0-1", "squeezenet-0-0"])
def test_networks_come_back_from_caffe(case_id):
    assert {record.verdict for record in records_of(case_id, ROUND_TRIP)} == {PASS}


@pytest.mark.parametrize("dialect", ["bvlc", "ssd"])
def test_files_of_other_dialects_come_back_too(dialect):
    case = case_from_id("unet-0-1")
    caffe = onnx_caffe.reference(torchscript(case.model(), tensors(case)), dialect=dialect)
    module = onnx_torch.reference(caffe_onnx.reference(caffe))
    assert isinstance(module, torch.fx.GraphModule) and not module.training
    inputs = case.inputs(batch=2)
    wanted = TorchRuntime(case.model(), "float64").value(inputs)
    assert np.abs(TorchRuntime(module).value(inputs) - wanted).max() < 3e-6
    assert sum(parameter.numel() for parameter in module.parameters()) > 100


def test_an_operator_without_a_torch_function_is_refused_by_name():
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Hardmax", ["x"], ["y"], name="it", axis=1)],
            "g",
            [onnx.helper.make_tensor_value_info("x", 1, [1, 3])],
            [onnx.helper.make_tensor_value_info("y", 1, [1, 3])],
        )
    )
    with pytest.raises(parity.Unsupported, match=r"node 'it', operator Hardmax\(\{'axis': 1\}\)"):
        onnx_torch.reference(model)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def onnx_file(tmp_path):
    case = case_from_id("spatial_attention-0-0")
    onnx.save(torchscript(case.model(), tensors(case)), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_convert_writes_caffe_files(onnx_file, tmp_path, capsys):
    stem = str(tmp_path / "net")
    assert main(["convert", str(onnx_file), "--to", "caffe", "--output", stem, "--dialect", "bvlc"]) == 0
    assert capsys.readouterr().out.split() == [f"{stem}.prototxt", f"{stem}.caffemodel"]
    caffe = onnx_caffe.load(f"{stem}.prototxt", f"{stem}.caffemodel", "bvlc")
    case = case_from_id("spatial_attention-0-0")
    found = OnnxRuntime(caffe_onnx.reference(caffe)).value(case.inputs())
    assert np.abs(found - TorchRuntime(case.model(), "float64").value(case.inputs())).max() < 1e-6


def opset(version):
    def change(model):
        model.opset_import[0].version = version

    return change


def dynamic(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (opset(6), "is of opset 6: 7 is the oldest"),
        (opset(999), "is of opset 999, onnx"),
        (dynamic, "input 'x' has dynamic shape [1, 3, 'height', 11]"),
        (lambda model: model.graph.node[0].ClearField("op_type"), "is not a valid ONNX model"),
    ],
)
def test_an_onnx_file_that_cannot_be_converted_is_one_line(change, message, onnx_file, tmp_path, capsys):
    model = onnx.load(onnx_file)
    change(model)
    onnx_file.write_bytes(model.SerializeToString())
    assert main(["convert", str(onnx_file), "--to", "caffe", "--output", str(tmp_path / "net")]) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1


@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_a_truncated_onnx_file_is_one_line(share, onnx_file, tmp_path, capsys):
    content = onnx_file.read_bytes()
    onnx_file.write_bytes(content[: int(len(content) * share)])
    assert main(["convert", str(onnx_file), "--to", "caffe", "--output", str(tmp_path / "net")]) == 2
    shown = capsys.readouterr().err
    assert str(onnx_file) in shown and shown.count("\n") == 1


def test_what_convert_and_check_do_not_take_is_one_line(onnx_file, tmp_path, capsys):
    stem = str(tmp_path / "net")
    for arguments, message in (
        (["convert", str(onnx_file), "--to", "onnx", "--output", stem, "--dialect", "ssd"], "--dialect is for --to"),
        (["convert", str(onnx_file), "--to", "caffe", "--output", stem, "--dialect", "x"], "no Caffe dialect 'x'"),
        (["convert", str(onnx_file), "--to", "caffe", "--output", f"{stem}/no/net"], "cannot write"),
        (["convert", str(tmp_path / "no.onnx"), "--to", "caffe", "--output", stem], "cannot read"),
        (["check", str(onnx_file), "--input-shape", "1,3"], "is of onnx, and path torch-casadi starts from torch"),
    ):
        assert main(arguments) == 2
        shown = capsys.readouterr().err
        assert message in shown and shown.count("\n") == 1


def test_a_torch_model_becomes_files_by_one_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "nets.py").write_text("import torch\ndef build():\n    return torch.nn.Conv2d(3, 2, 3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ["convert", "nets:build", "--to", "caffe", "--input-shape", "1,3,5,6", "--output", "net"]
    assert main([*command, "--converter", "torchscript+reference"]) == 0
    assert main(["convert", "nets:build", "--to", "onnx", "--input-shape", "1,3,5,6", "--output", "net",
                 "--converter", "torchscript"]) == 0  # fmt: skip
    assert {file.name for file in tmp_path.iterdir()} >= {"net.prototxt", "net.caffemodel", "net.onnx"}
