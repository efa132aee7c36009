"""The path keras→torch through the pipeline: its cases, its truth and yardstick, what its checks see, its commands."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special
from torch import nn

import parity
from parity.cases.case import case_from_id, case_ids
from parity.cases.families import layer_families
from parity.cases.keras_backend import keras
from parity.cases.keras_backend import tensorflow as tf
from parity.cases.keras_layers import build
from parity.cases.keras_modules import fill
from parity.cli import main
from parity.converters.keras_torch import reference
from parity.converters.registry import Chain, Converter, find_chain
from parity.paths import path
from parity.pipeline import PLANS, Point, examine, plan_of, timed
from parity.records import DEGENERATE, FAIL, PASS, Record
from parity.runtimes import representation_of, runtime_for
from parity.runtimes.keras import KerasRuntime
from parity.runtimes.tensorflow_operators import Operators, exact_operators
from parity.worker import Worker

WAY = path("keras-torch")
REFERENCE = find_chain(WAY, "reference")
DIGEST = "9697cf1b8a7d69d3"
"""Of specs, weights and inputs of the cases below. A change changes published cases: say so in CHANGELOG.md."""
layers = keras.layers


def chain_of(function: Callable[..., Any], dtypes: tuple[str, ...] = ("float64",)) -> Chain:
    return Chain(WAY, (Converter("keras", "torch", function.__name__, function, dtypes, ()),))


def records_of(case_id: str, chain: Chain = REFERENCE, plan: Any = None) -> list[Record]:
    return list(examine(case_from_id(case_id, "keras"), chain, plan))


# --- cases ------------------------------------------------------------------------------------------------------------


def test_cases_rebuild_bit_for_bit():
    found = hashlib.sha256()
    for case_id in ["dag-0-0", "dag-0-1", "network-0-0", "GRU-0-1", "BatchNormalization-0-0", "application-0-0"]:
        case = case_from_id(case_id, "keras")
        found.update(case.spec.to_json().encode())
        for weights in case.model().get_weights():
            found.update(weights.tobytes())
        found.update(case.inputs("tiny", batch=2)[0].tobytes())
    assert found.hexdigest()[:16] == DIGEST


def test_applications_have_the_same_weights_however_often_they_are_built():
    """Keras numbers the layers that it names by itself on and on."""
    case = case_from_id("application-0-2", "keras")
    first, second = case.model().get_weights(), case.model().get_weights()
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_run_has_many_cases():
    ids = case_ids(source="keras")
    assert len(ids) == len(set(ids)) >= 200
    assert {case_id.split("-")[0] for case_id in ids} >= {*layer_families("keras"), "dag", "digits", "application"}


def test_digits_are_learnt():
    from parity.cases.digits import train

    assert train(build(case_from_id("digits-0-0", "keras").spec), "digits-0-0") > 0.9


# --- the truth --------------------------------------------------------------------------------------------------------


def alone(layer: Any, shape: tuple[int, ...]) -> KerasRuntime:
    model = keras.Sequential([layers.Input(shape), layer])
    fill(model, 0)
    return KerasRuntime(model, "float64")


NEAR_ZERO = np.array([[-3.0, -0.7, -1e-9, 1e-9, 2.5]])


@pytest.mark.parametrize(
    ("layer", "formula"),
    [
        (lambda: layers.LeakyReLU(0.3), lambda x: np.where(x > 0, x, 0.3 * x)),
        (lambda: layers.Activation("leaky_relu"), lambda x: np.where(x > 0, x, 0.2 * x)),
        (lambda: layers.Activation("gelu"), lambda x: x * special.ndtr(x)),
        (lambda: layers.ELU(0.5), lambda x: np.where(x > 0, x, 0.5 * special.expm1(x))),
        (lambda: layers.Rescaling(1 / 255, offset=0.1), lambda x: x / 255 + 0.1),
    ],
)
def test_float64_is_float64(layer, formula):
    """TensorFlow has float32 slopes and scales, and exp(x) − 1: off by 1e-9 to 1e-8 without formulas of ours."""
    value = alone(layer(), (5,)).value((NEAR_ZERO,))
    assert np.max(np.abs(value / formula(NEAR_ZERO) - 1)) < 1e-14


def test_convolution_of_volumes_with_long_strides():
    """TensorFlow 2.21 on a CPU begins at another voxel where the window is shorter than the stride."""
    volume = np.arange(1.0, 1 + 4 * 4 * 3).reshape(1, 4, 4, 3, 1)
    runtime = alone(layers.Conv3D(1, 1, strides=3, padding="same", use_bias=False), (4, 4, 3, 1))
    weight = float(np.asarray(runtime.model.weights[0]).ravel()[0])
    expected = weight * volume[0, ::3, ::3, ::3, 0].ravel()
    assert np.allclose(runtime.value((volume,))[0], expected, rtol=1e-14)


@pytest.mark.parametrize("kind", ["Max", "Average"])
def test_pooling_of_volumes(kind):
    """Float64 kernels do not exist: the float32 ones say what it is."""
    volume = np.random.RandomState(0).randn(2, 5, 4, 3, 2).astype(np.float32)
    layer = getattr(layers, f"{kind}Pooling3D")((3, 2, 2), strides=2, padding="same")
    expected = np.asarray(layer(volume)).reshape(2, -1)
    value = alone(getattr(layers, f"{kind}Pooling3D")((3, 2, 2), strides=2, padding="same"), volume.shape[1:])
    assert np.allclose(value.value((np.float64(volume),)), expected, rtol=1e-6)


def test_tensorflow_is_left_as_it_was():
    from tensorflow.python import pywrap_tfe

    before = (pywrap_tfe.TFE_Py_FastPathExecute, pywrap_tfe.TFE_Py_Execute, tf.cast, tf.function)
    with pytest.raises(ZeroDivisionError), exact_operators():
        assert tf.cast is not before[2]
        raise ZeroDivisionError
    assert (pywrap_tfe.TFE_Py_FastPathExecute, pywrap_tfe.TFE_Py_Execute, tf.cast, tf.function) == before
    assert Operators.active is None


# --- the yardstick ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [lambda: layers.Dense(3), lambda: layers.LSTM(2), lambda: layers.Activation("tanh")])
def test_rounding_spreads_by_about_a_unit(layer):
    runtime, x = alone(layer(), (4, 3)), (np.random.RandomState(0).randn(2, 4, 3),)
    exact = runtime.value(x)
    for dtype, unit in (("float32", 2.0**-24), ("float64", 2.0**-53)):
        with runtime.rounding(dtype, 0) as amplification:
            spread = np.sqrt(np.mean((runtime.value(x) - exact) ** 2)) / amplification
            gradient = runtime.vjp(x, np.ones_like(exact))
        assert 0.2 * unit < spread < 10 * unit
        assert not np.array_equal(gradient, runtime.vjp(x, np.ones_like(exact)))


def test_what_rounds_nothing_is_left_alone():
    runtime, x = alone(layers.MaxPooling1D(2), (4, 3)), (np.random.RandomState(0).randn(2, 4, 3),)
    with runtime.rounding("float32", 0):
        assert np.array_equal(runtime.value(x), x[0].reshape(2, 2, 2, 3).max(axis=2).reshape(2, -1))


def test_exponents_stay_whole():
    """The derivative of x² has x to the power 2 − 1: not a number for negative x, if that were rounded."""
    runtime, x = alone(layers.Activation("sparse_plus"), (3,)), (np.array([[-2.0, 0.5, 3.0]]),)
    with runtime.rounding("float32", 0):
        assert np.isfinite(runtime.vjp(x, np.ones((1, 3)))).all()


def test_a_group_normalization_with_a_center_alone_can_be_trained():
    """torch 2.13 raises in the backward pass of group_norm with a bias and no weight."""
    parts = (layers.Input((3, 4)), layers.GroupNormalization(2, scale=False))
    records = parity.check(keras.Sequential(parts), "reference", np.random.RandomState(0).randn(2, 3, 4))
    assert {record.verdict for record in records} == {PASS}, records


def test_a_vector_of_zeros_has_a_derivative_where_it_is_normalized():
    parts = (layers.Input((3, 4)), layers.UnitNormalization())
    records = parity.check(keras.Sequential(parts), "reference", np.zeros((2, 3, 4)))
    assert {record.verdict for record in records} == {PASS}, records


def test_reference_passes():
    records = records_of("dag-11-0")
    assert {record.verdict for record in records} <= {PASS, DEGENERATE}, records


def test_what_overflows_in_the_source_is_no_failure():
    source = keras.Sequential([layers.Input((2,)), layers.Activation("exponential")])
    record = parity.check(source, "reference", np.array([[100.0, 1.0]]), checks=["value"])[0]
    assert record.verdict in (PASS, DEGENERATE)
    twice = keras.Sequential([layers.Input((2,)), layers.Activation("exponential"), layers.Rescaling(0.0)])
    record = parity.check(twice, "reference", np.array([[100.0, 1.0]]), checks=["value"])[0]
    assert (record.verdict, record.message) == (DEGENERATE, "the source itself leaves the range of float32 here")


# --- what the checks see ----------------------------------------------------------------------------------------------


def recipe(model: Any, example: Any) -> nn.Module:
    """As a widely read recipe goes: weights transposed, images flattened channels first, and no softmax."""
    steps: list[nn.Module] = []
    for layer in model.layers:
        weights = [torch.tensor(np.asarray(each)) for each in layer.get_weights()]
        if isinstance(layer, layers.Conv2D):
            step: Any = nn.Conv2d(weights[0].shape[2], weights[0].shape[3], 3, padding="same").to(weights[0].dtype)
            step.weight.data, step.bias.data = weights[0].permute(3, 2, 0, 1), weights[1]
            steps += [step, nn.ReLU()]
        elif isinstance(layer, layers.MaxPooling2D):
            steps.append(nn.MaxPool2d(2))
        elif isinstance(layer, layers.Dense):
            step = nn.Linear(*weights[0].shape).to(weights[0].dtype)
            step.weight.data, step.bias.data = weights[0].T, weights[1]
            steps += [nn.Flatten(), step]

    class Recipe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.Sequential(*steps)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.steps(x.permute(0, 3, 1, 2))
            return y.permute(0, 2, 3, 1) if y.ndim == 4 else y

    return Recipe()


def test_the_recipe_is_caught_and_the_layer_after_flatten_blamed():
    (record,) = records_of("network-0-0", chain_of(recipe), [Point("value", batch=2)])
    assert record.verdict == FAIL and record.error_ratio > 1e6
    assert (record.blame_stage, record.blame_layer) == ("keras→torch", "dense_6")
    assert record.message == (
        "dense_6 reads what flatten_5 laid out channels last, (7, 7, 64): where a converter flattens channels first, "
        "its weights belong in that order too"
    )


def changed(change: Callable[[nn.Module], None]) -> Callable[..., nn.Module]:
    def convert(model: Any, example: Any) -> nn.Module:
        module = reference(model)
        change(module)
        return module

    return convert


def frozen(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def statistics(kind: str, value: float) -> Callable[[nn.Module], None]:
    def change(module: nn.Module) -> None:
        for layer in module.modules():
            if hasattr(layer, "running_var"):
                setattr(layer, kind, value)

    return change


def small() -> Any:
    parts = (layers.Input((4, 3)), layers.Conv1D(2, 2), layers.BatchNormalization(momentum=0.9), layers.ReLU())
    model = keras.Sequential(parts)
    fill(model, 0)
    return model


@pytest.mark.parametrize(
    ("change", "check"),
    {
        "parameters as constants": (frozen, "structure"),
        "parameters as constants, by a step": (frozen, "training"),
        "momentum": (statistics("momentum", 0.01), "training"),
    }.values(),
)
def test_what_values_do_not_show(change, check):
    x = np.random.RandomState(0).randn(5, 4, 3)
    value, other = parity.check(small(), changed(change), x, checks=["value", check])
    assert (value.verdict, other.verdict) == (PASS, FAIL)
    assert {record.verdict for record in parity.check(small(), "reference", x)} == {PASS}


def test_lost_sharing_shows():
    a = keras.Input((3,))
    shared = layers.Dense(3)
    model = keras.Model(a, shared(shared(a)))
    fill(model, 0)

    def unshared(source: Any, example: Any) -> nn.Module:
        one, other = reference(source).get_submodule(shared.name), reference(source).get_submodule(shared.name)
        return nn.Sequential(one, other)

    records = parity.check(model, unshared, np.ones((2, 3)), checks=["value", "structure", "training"])
    assert [record.verdict for record in records] == [PASS, FAIL, FAIL]
    assert records[1].message == "the converted model has 24 trainable numbers, its source 12"


def test_randomness_in_training_is_said():
    model = keras.Sequential([layers.Input((3,)), layers.Dense(20), layers.Dropout(0.5), layers.Dense(2)])
    fill(model, 0)
    records = parity.check(model, "reference", np.ones((4, 3)), checks=["training"])
    assert {record.verdict for record in records} == {DEGENERATE}
    assert "random numbers in training" in records[0].message


def test_prefixes_are_the_models_operations():
    case = case_from_id("network-0-0", "keras")
    names = [name for name, _ in runtime_for(case.model()).prefixes(case.inputs())]
    assert names == ["conv2d_1", "maxpooling2d_2", "conv2d_3", "maxpooling2d_4", "flatten_5", "dense_6"]


def test_plans():
    assert {point.check for point in plan_of("keras-torch")} == {"value", "vjp", "structure", "training"}
    assert plan_of("keras-torch", "application") == PLANS["keras-torch application"]
    assert {(p.check, p.timed) for p in timed(plan_of("keras-torch"), "keras-torch") if p.timed} == {
        ("value", 1),
        ("value", 64),
    }


# --- the user's side --------------------------------------------------------------------------------------------------


def test_commands(tmp_path, capsys):
    model, file = small(), str(tmp_path / "model.keras")
    model.save(file)
    assert main(["check", file, "--input-shape", "2,4,3", "--check", "value"]) == 0
    assert main(["convert", file, "--emit", str(tmp_path / "source.py")]) == 0
    assert (tmp_path / "source.pt").is_file()
    assert main(["check", file, "--input-shape", "2,4"]) == 2
    lines = capsys.readouterr()
    assert "rounding units of float64" in lines.out
    assert "does not run on inputs of shape (2, 4)" in lines.err and len(lines.err.splitlines()) == 1


def test_api():
    model = small()
    assert representation_of(model) == "keras"
    module = parity.convert(model, "torch", example=np.ones((1, 4, 3)))
    assert isinstance(module, nn.Module)
    x = np.random.RandomState(0).randn(3, 4, 3)
    assert [record.check for record in parity.assert_parity(model, module, x)] == [
        "value",
        "vjp",
        "structure",
        "training",
    ]


def test_the_worker_runs_both_frameworks_with_one_thread_each():
    worker = Worker()
    try:
        (record, *others) = worker.examine("Conv2D-0-0", REFERENCE, [Point("value", timed=1)], timeout=300)
    finally:
        worker.close()
    assert {record.verdict, *(other.verdict for other in others)} == {PASS}
    assert "torch eager forward, float32, 1 thread(s)" in record.message
    assert "tf.function of value, float32, 1 thread(s)" in record.message
