"""onnx→caffe: layers, networks and ONNX's own node tests, run by OpenCV and by our reader of Caffe's layers."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from parity.caffe_format.rules import check
from parity.caffe_format.schema import DIALECTS
from parity.cases.case import case_from_id
from parity.cases.cnn import FAMILIES
from parity.cases.torch_layers import TORCH
from parity.converters.caffe_onnx import reference as caffe_to_onnx
from parity.converters.onnx_caffe import reference
from parity.converters.torch_onnx import torchscript
from parity.errors import ParityError, Unsupported
from parity.runtimes.caffe import CaffeRuntime
from parity.runtimes.onnx import OnnxRuntime, ReferenceRuntime
from parity.runtimes.torch import TorchRuntime

REGIMES = ("normal", "zeros", "large")
EXPORTER_REFUSES = ("AdaptiveAvgPool2d",)
EXPORTER_ERRS = ("Softplus",)
"""The exporter forgets Softplus' threshold: not for Caffe to mend."""
BVLC_REFUSES = {"AttentionBlock": "of two computed matrices, only in dialect opencv"}


def tensors(case, batch):
    return tuple(torch.from_numpy(array).float() for array in case.inputs(batch=batch))


def error(found, wanted):
    return np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30)


# --- layers and networks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("layer", [layer.name for layer in TORCH if layer.name not in EXPORTER_REFUSES])
def test_every_layer_keeps_its_value(layer, batch):
    for number in range(3):
        case = case_from_id(f"{layer}-0-{number}")
        model = case.model()
        proto = torchscript(model, tensors(case, batch))
        truth = TorchRuntime(model, "float64")
        if layer in EXPORTER_ERRS:
            truth = OnnxRuntime(torchscript(model.double(), tuple(t.double() for t in tensors(case, batch))))
        for dialect in ("opencv", "bvlc"):
            if dialect in ("bvlc",) and layer in BVLC_REFUSES:
                with pytest.raises(Unsupported, match=BVLC_REFUSES[layer]):
                    reference(proto, dialect=dialect)
                continue
            caffe = reference(proto, dialect=dialect)
            check(caffe)
            runtimes = [OnnxRuntime(caffe_to_onnx(caffe))] + [CaffeRuntime(caffe)] * (dialect == "opencv")
            for regime in REGIMES:
                inputs = case.inputs(regime, batch)
                wanted = truth.value(inputs)
                if not np.isfinite(wanted).all():
                    continue  # onnxruntime's Softplus overflows in float64
                for runtime in runtimes:
                    assert error(runtime.value(inputs), wanted) < 3e-6, (case.id, dialect, regime, type(runtime))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "resnet18"])
def test_random_networks_keep_their_value_in_every_dialect(family):
    for number in range(FAMILIES[family][0] or 2):
        name = f"{family}-0-{number}"
        case = case_from_id(name)
        model = case.model()
        for batch in (1, 4):
            proto, inputs = torchscript(model, tensors(case, batch)), case.inputs(batch=batch)
            wanted = TorchRuntime(model, "float64").value(inputs)
            for dialect in DIALECTS:
                caffe = reference(proto, dialect=dialect)
                check(caffe)
                assert error(OnnxRuntime(caffe_to_onnx(caffe)).value(inputs), wanted) < 5e-6, (name, dialect)
            assert error(CaffeRuntime(reference(proto)).value(inputs), wanted) < 5e-6, name


def test_a_batch_is_run_sample_by_sample_where_the_net_has_one():
    caffe = reference(torchscript(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()), (torch.zeros(1, 2, 5, 6),)))
    x = np.random.RandomState(0).standard_normal((4, 2, 5, 6))
    together = CaffeRuntime(caffe).value((x,))
    assert together.shape == (4, 3 * 3 * 4)
    assert np.array_equal(together[2:3], CaffeRuntime(caffe).value((x[2:3],)))


# --- ONNX's node tests ------------------------------------------------------------------------------------------------


def node_tests():
    from onnx.backend.test.loader import load_model_tests

    with np.errstate(all="ignore"):
        return load_model_tests(kind="node")


def frozen(test, only_integers):
    """The test's model with its later inputs as initializers, and the inputs that are left."""
    model = onnx.ModelProto()
    model.CopyFrom(test.model)
    values = list(test.data_sets[0][0])
    for place in reversed(range(1, min(len(values), len(model.graph.input)))):
        info = model.graph.input[place]
        integer = info.type.tensor_type.elem_type in (TensorProto.INT32, TensorProto.INT64)
        if isinstance(values[place], np.ndarray) and info.name and (integer or not only_integers):
            model.graph.initializer.append(numpy_helper.from_array(values.pop(place), info.name))
            del model.graph.input[place]
    return model, values


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["as they are", "integers frozen", "all but the first input frozen"])
def test_onnx_node_tests_agree_or_are_refused(form):
    counts, wrong = Counter(), []
    for test in node_tests():
        if not test.data_sets or any(not isinstance(x, np.ndarray) for part in test.data_sets[0] for x in part):
            continue  # sequences, optionals, types numpy does not have
        model, values = test.model, test.data_sets[0][0]
        if form != "as they are":
            model, values = frozen(test, form == "integers frozen")
        try:
            caffe = reference(model)
        except ParityError as refusal:
            assert "\n" not in str(refusal)
            counts["unsupported"] += 1
            continue
        runtime = CaffeRuntime(caffe)
        runtime._feed(tuple(values))
        outputs = runtime.net.forward(runtime.outputs)
        pairs = zip(outputs, test.data_sets[0][1], strict=True)
        right = all(
            found.shape == wanted.shape
            and np.allclose(found, wanted.astype(np.float64), rtol=test.rtol, atol=1e-6, equal_nan=True)
            for found, wanted in pairs
        )
        counts["agrees" if right else "wrong"] += 1
        wrong += [] if right else [test.name]
    print(form, dict(counts))
    assert wrong == []
    assert counts["agrees"] >= {"as they are": 240, "integers frozen": 375}.get(form, 435)


# --- pooling, padding and other corners -------------------------------------------------------------------------------


def one_node(operator, shapes, version=18, weights=(), outputs=1, **attributes):
    """A model of one node; weights are its later inputs. An output of unknown shape gets the first input's rank."""
    rank = len(shapes[0])
    names = [f"x{i}" for i in range(len(shapes))]
    constants = [numpy_helper.from_array(np.asarray(v), f"w{i}") for i, v in enumerate(weights)]
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(operator, names + [c.name for c in constants], results, name="it", **attributes)
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip(names, shapes, strict=True)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results]
    graph = helper.make_graph([node], "one", infos, ends, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=10)
    with suppress(onnx.shape_inference.InferenceError):  # an operator that there is none of
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for info in model.graph.output:
        if not info.type.tensor_type.HasField("shape"):
            info.type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, rank * [None]))
    return model


def agree(model, *inputs, dialects=DIALECTS, runtime=OnnxRuntime, tolerance=2e-6):
    wanted = runtime(model).value(inputs)
    for dialect in dialects:
        caffe = reference(model, dialect=dialect)
        check(caffe)
        assert error(OnnxRuntime(caffe_to_onnx(caffe)).value(inputs), wanted) < tolerance, dialect
        if dialect == "opencv":
            assert error(CaffeRuntime(caffe).value(inputs), wanted) < tolerance


def normal(*shape):
    return np.random.RandomState(len(shape)).standard_normal(shape)


@pytest.mark.parametrize("size", [6, 7, 8])
@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_pooling_has_the_size_and_the_windows_that_onnx_asks_for(operator, size):
    for kernel in ([2, 2], [3, 2]):
        for strides in ([1, 1], [2, 2], [3, 1]):
            for pads in ([0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1], [1, 0, 0, 1]):
                for extra in ({}, {"ceil_mode": 1}, {"count_include_pad": 1}):
                    if (operator == "MaxPool" and "count_include_pad" in extra) or (extra and pads[0] != pads[2]):
                        continue
                    model = one_node(operator, [(2, 2, size, size + 1)], kernel_shape=kernel, strides=strides,
                                     pads=pads, **extra)  # fmt: skip
                    try:
                        agree(model, normal(2, 2, size, size + 1))
                    except Unsupported as refusal:
                        assert "sees only padding" in str(refusal)


def test_dilated_pooling_and_volumes():
    agree(
        one_node("MaxPool", [(2, 2, 9, 8)], kernel_shape=[3, 2], dilations=[2, 3], strides=[2, 1]), normal(2, 2, 9, 8)
    )
    agree(one_node("MaxPool", [(2, 2, 5, 6, 7)], kernel_shape=[2, 3, 2], strides=[2, 1, 2]), normal(2, 2, 5, 6, 7))
    agree(one_node("AveragePool", [(2, 2, 5, 6, 7)], kernel_shape=[2, 3, 2]), normal(2, 2, 5, 6, 7))


@pytest.mark.parametrize("pads", [[1, 0, 0, 1], [0, 2, 1, 0], [2, 1, 0, 0]])
@pytest.mark.parametrize("dilation", [1, 2])
def test_convolution_pads_each_end_by_itself(pads, dilation):
    weights = [np.float32(normal(4, 2, 3, 2)), np.float32(normal(4))]
    model = one_node(
        "Conv", [(2, 4, 8, 9)], weights=weights, pads=pads, dilations=[dilation] * 2, strides=[2, 1], group=2
    )
    agree(model, normal(2, 4, 8, 9))


@pytest.mark.parametrize("extra", [{}, {"output_padding": [1, 1]}, {"pads": [1, 0, 0, 2]}, {"output_shape": [13, 17]}])
@pytest.mark.parametrize("dilation", [1, 2])
def test_transposed_convolution(extra, dilation):
    weights = [np.float32(normal(4, 3, 3, 2)), np.float32(normal(6))]
    options = {"strides": [2, 2], "dilations": [dilation] * 2, "group": 2, **extra}
    model = one_node("ConvTranspose", [(2, 4, 6, 8)], weights=weights, **options)
    agree(model, normal(2, 4, 6, 8))


@pytest.mark.parametrize("order", [(0, 2, 1, 3), (0, 3, 1, 2), (0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 3, 2)])
def test_transposition_without_a_permute_layer(order):
    model = one_node("Transpose", [(2, 3, 4, 5)], perm=list(order))
    agree(model, normal(2, 3, 4, 5))
    assert all(layer.type != "Permute" for layer in reference(model, dialect="bvlc").net.layer)


SHAPES = [((2, 3, 4, 5), (2, 3, 1, 1)), ((2, 3, 4, 5), (5,)), ((2, 3, 4, 5), (3, 1, 5)), ((2, 1, 4, 1), (2, 3, 1, 5))]


@pytest.mark.parametrize("operator", ["Add", "Mul", "Sub", "Div", "Max", "Min"])
@pytest.mark.parametrize("shapes", SHAPES)
def test_broadcasting_of_blobs_and_of_constants(operator, shapes):
    first, second = normal(*shapes[0]), np.abs(normal(*shapes[1])) + 0.5
    dialects = DIALECTS if len(shapes[1]) > 1 else ("bvlc", "ssd")
    wanted = {"Add": first + second, "Mul": first * second, "Sub": first - second, "Div": first / second,
              "Max": np.maximum(first, second), "Min": np.minimum(first, second)}[operator]  # fmt: skip
    for dialect in dialects:
        caffe = reference(one_node(operator, shapes), dialect=dialect)
        model = caffe_to_onnx(caffe)
        found = onnx.reference.ReferenceEvaluator(model).run(
            None, {"x0": np.float32(first), "x1": np.float32(second)}
        )[0]  # fmt: skip
        assert np.allclose(found, wanted, rtol=1e-6, atol=1e-6)
    agree(one_node(operator, shapes[:1], weights=[np.float32(second)]), first)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("way", ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"])
@pytest.mark.parametrize("sizes", [(8, 10), (5, 9), (2, 3)])
def test_resizing(mode, way, sizes):
    weights = [np.zeros(0, np.float32), np.zeros(0, np.float32), np.array([2, 3, *sizes], np.int64)]
    model = one_node("Resize", [(2, 3, 4, 5)], weights=weights, mode=mode, coordinate_transformation_mode=way)
    agree(model, normal(2, 3, 4, 5), runtime=ReferenceRuntime)


def test_the_error_function_is_within_a_few_float32_units():
    from scipy.special import erf

    x = np.concatenate([np.linspace(-6, 6, 4001), [1e-6, -1e-6, 0.0]]).reshape(1, -1)
    for dialect in DIALECTS:
        caffe = reference(one_node("Erf", [x.shape]), dialect=dialect)
        found = OnnxRuntime(caffe_to_onnx(caffe)).value((x,))
        assert np.abs(found - erf(np.float32(x).astype(float))).max() < 4e-7
    assert np.abs(CaffeRuntime(reference(one_node("Erf", [x.shape]))).value((x,)) - erf(x)).max() < 6e-7


def test_opencv_does_not_merge_a_power_with_the_layer_behind_it():
    """0.1·x³: OpenCV would compute (0.1·x)³ if the two layers were each other's only neighbours."""
    nodes = [helper.make_node("Pow", ["x", "three"], ["cube"]), helper.make_node("Mul", ["cube", "tenth"], ["y"])]
    constants = [numpy_helper.from_array(np.float32(v), n) for n, v in (("three", 3), ("tenth", 0.1))]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 4)) for n in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "cube", ends[:1], ends[1:], constants), ir_version=10,
                              opset_imports=[helper.make_opsetid("", 18)])  # fmt: skip
    agree(model, normal(1, 4))


def test_a_constant_is_concatenated_in_opencv():
    """OpenCV's Concat at batch 1 writes over Const layers."""
    for axis in (0, 1, 2):
        agree(one_node("Concat", [(1, 3, 4)], weights=[np.float32(normal(1, 3, 4))], axis=axis), normal(1, 3, 4))


def test_constant_shape_arithmetic_and_default_attributes_are_folded():
    class Flattens(nn.Module):
        def forward(self, x):
            return x.view(x.shape[0], -1, x.shape[-1] * 2) * x.shape[1]

    x = normal(2, 4, 6)
    agree(torchscript(Flattens(), (torch.from_numpy(x).float(),), dynamic_batch=False), x)
    # MeanVarianceNormalization's axes are a default of its function
    model = one_node("MeanVarianceNormalization", [(2, 3, 4, 5)], version=13)
    agree(model, normal(2, 3, 4, 5), runtime=ReferenceRuntime, tolerance=5e-6)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, dialect, words",
    [
        (one_node("Hardmax", [(2, 5)], axis=1), "bvlc", ["'it'", "Hardmax(axis=1)", "lowers"]),
        (one_node("LayerNormalization", [(2, 1)], weights=[np.float32([1])], outputs=2), "bvlc", ["LayerNorm", "y1"]),
        (one_node("LRN", [(1, 4, 5, 5)], size=4), "bvlc", ["LRN(size=4)", "odd"]),
        (one_node("Sin", [(2, 5)]), "bvlc", ["Sin", "dialect opencv"]),
        (one_node("MatMul", [(2, 3, 4), (2, 4, 5)]), "ssd", ["MatMul", "constant matrix works"]),
        (one_node("Conv", [(1, 2, 5, 5), (3, 2, 2, 2)]), "bvlc", ["Conv", "constants"]),
        (one_node("Transpose", [(1, 99, 98)], perm=[0, 2, 1]), "bvlc", ["perm=[0, 2, 1]", "dialect ssd"]),
        (one_node("Relu", [(5,)]), "opencv", ["input 'x0'", "two axes"]),
    ],
    ids=lambda value: value.graph.node[0].op_type if isinstance(value, onnx.ModelProto) else None,
)  # fmt: skip
def test_what_caffe_cannot_express_is_one_line_with_the_nearest_that_works(model, dialect, words):
    with pytest.raises(Unsupported) as refusal:
        reference(model, dialect=dialect)
    message = str(refusal.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_choice_whose_other_branch_may_be_infinite_is_refused():
    class Guard(nn.Module):
        def forward(self, x):
            return torch.where(x > 0, torch.log(x), torch.zeros_like(x))

    with pytest.raises(Unsupported, match="may be infinite"):
        reference(torchscript(Guard(), (torch.ones(2, 3),)))


def test_bad_files_are_one_line(tmp_path):
    good = one_node("Conv", [(1, 2, 5, 5)], weights=[np.ones((3, 2, 2, 2), np.float32)]).SerializeToString()
    bad = {
        "nothing": b"",
        "text": b"this is no model, whatever its name says",
        "cut": good[: len(good) // 2],
        "opset 6": one_node("Relu", [(1, 2)], version=6).SerializeToString(),
        "opset 99": one_node("Relu", [(1, 2)], version=99).SerializeToString(),
        "unknown operator": one_node("Reluu", [(1, 2)]).SerializeToString(),
    }
    for name, data in bad.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(data)
        for source in (path, str(path), data):
            with pytest.raises(ParityError) as refusal:
                reference(source)
            assert "\n" not in str(refusal.value), name
    with pytest.raises(ParityError, match="cannot read"):
        reference(tmp_path / "missing.onnx")
    with pytest.raises(ParityError, match="opset 6: 7 is"):
        reference(bad["opset 6"])
    for length in range(0, len(good), 7):
        with pytest.raises(ParityError):
            reference(good[:length])


def test_external_data_is_read_and_its_absence_is_one_line(tmp_path):
    model = one_node("Conv", [(1, 2, 5, 5)], weights=[np.float32(normal(3, 2, 2, 2))])
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert np.array_equal(reference(path).blobs("y0")[0], np.float32(normal(3, 2, 2, 2)))
    with pytest.raises(ParityError, match=r"onnx\.load"):
        reference(path.read_bytes())
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ParityError, match="external data") as refusal:
        reference(path)
    assert "\n" not in str(refusal.value)


def test_dynamic_axes_need_an_example():
    model = one_node("Relu", [("batch", 3)])
    with pytest.raises(Unsupported, match=r"dynamic shape \['batch', 3\].*example"):
        reference(model)
    assert reference(model, (np.zeros((4, 3)),)).inputs == {"x0": (4, 3)}
    with pytest.raises(ParityError, match="does not fit"):
        reference(model, (np.zeros((4, 5)),))
    with pytest.raises(ParityError, match="no Caffe dialect 'caffe2'"):
        reference(model, (np.zeros((4, 3)),), dialect="caffe2")
