"""The reference converter keras→torch against Keras on TensorFlow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"

import numpy as np
import pytest
import tensorflow as tf
import torch
from keras import layers
from keras_oracle import error, errors, graph_spec, layer_oracle, layer_spec, oracle_of, outputs_of

from parity.cases.keras_backend import keras
from parity.cases.keras_layers import ACTIVATIONS, KERAS
from parity.cases.keras_modules import fill
from parity.converters.keras_torch import emit, reference
from parity.converters.keras_torch.layer import Layer
from parity.converters.registry import lowers
from parity.errors import ParityError, Unsupported
from parity.runtimes.keras import KerasRuntime, in_precision

LAYER_CASES = 2
NAMES = [layer.name for layer in KERAS]


@pytest.mark.parametrize("name", NAMES)
def test_layer(name):
    """Value and gradient of every layer of the vocabulary; the suite has them in float32, too."""
    for number in range(LAYER_CASES):
        oracle = layer_oracle(name, number, "float64")
        value, gradient = errors(oracle)
        assert value <= 1, (number, oracle.spec.nodes[-1].arguments)
        assert gradient <= 1, (number, oracle.spec.nodes[-1].arguments)


@pytest.mark.parametrize("number", range(12))
def test_graph(number):
    oracle = oracle_of(graph_spec(number), f"keras-dag-0-{number}", "float64")
    value, gradient = errors(oracle)
    assert value <= 100, oracle.spec.layers  # rounding grows with depth: 1e-10 is still no other function
    assert gradient <= 100, oracle.spec.layers


@pytest.mark.parametrize("name", [*ACTIVATIONS, "glu"])
def test_activation_functions(name):
    x = np.linspace(-30, 30, 240).reshape(4, 10, 6)
    model = keras.Sequential([layers.Input((10, 6), dtype="float64"), layers.Activation(name, dtype="float64")])
    expected = KerasRuntime(model).value((x,)).reshape(4, 10, -1)
    result = reference(model)(torch.from_numpy(x)).numpy()
    assert error(result, expected) <= 1e-13


def agree(model, *inputs, tolerance=1e-12, **options):
    """Converted, in float64, the model gives the same outputs."""
    fill(model, "agree")
    double = in_precision(model, "float64")
    expected = KerasRuntime(double).value(inputs)
    module = reference(double, **options).eval()
    dtypes = [torch.int32 if "int" in str(x.dtype) else torch.float64 for x in double.inputs]
    tensors = [torch.tensor(array, dtype=dtype) for array, dtype in zip(inputs, dtypes, strict=True)]
    result = torch.cat([output.flatten(1) for output in outputs_of(module(*tensors))], dim=1).detach().numpy()
    assert error(result, expected) <= tolerance
    return module


def normal(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape)


# --- models -----------------------------------------------------------------------------------------------------------


def test_nested_shared_model_of_several_inputs_and_outputs():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    tower = keras.Sequential([layers.Dense(3, activation="tanh"), layers.Dense(2)], name="tower")
    first, second = tower(a), tower(b)
    model = keras.Model([b, a], [layers.Subtract()([first, second]), layers.Concatenate()([first, b])])
    module = agree(model, normal(3, 4), normal(3, 4, seed=1))
    assert sum(p.numel() for p in module.parameters()) == model.count_params() == 23
    assert len(list(module.named_parameters())) == 4


def test_dictionaries_are_taken_by_name_and_given_by_name():
    a, b = keras.Input((4,), name="zeta"), keras.Input((4,), name="alpha")
    model = keras.Model({"zeta": a, "alpha": b}, {"y": layers.Subtract()([a, b]), "x": layers.Dense(2)(a)})
    fill(model, 0)
    zeta, alpha = (np.float32(normal(2, 4, seed=seed)) for seed in (1, 2))
    expected = model({"zeta": zeta, "alpha": alpha})
    result = reference(model)(zeta=torch.tensor(zeta), alpha=torch.tensor(alpha))
    assert set(result) == {"x", "y"}
    for key in result:
        assert error(result[key].detach().numpy(), np.asarray(expected[key])) <= 1e-6


def test_nested_model_with_a_dictionary():
    a, b = keras.Input((3,), name="zeta"), keras.Input((3,), name="alpha")
    inner = keras.Model(
        {"zeta": a, "alpha": b}, {"y": layers.Subtract()([a, b]), "x": layers.Dense(2)(a)}, name="inner"
    )
    p, q = keras.Input((3,)), keras.Input((3,))
    out = inner({"zeta": q, "alpha": p})
    agree(keras.Model([p, q], [out["x"], out["y"]]), normal(2, 3), normal(2, 3, seed=1))


def test_states_are_outputs_and_inputs():
    x, h = keras.Input((5, 3)), keras.Input((4,))
    y, state = layers.GRU(4, return_sequences=True, return_state=True)(x)
    z, hidden, cell = layers.LSTM(4, return_state=True)(y, initial_state=[state, h])
    several = layers.Bidirectional(layers.SimpleRNN(2, return_sequences=True), merge_mode=None)(y)
    agree(keras.Model([x, h], [z, hidden, cell, *several]), normal(2, 5, 3), normal(2, 4, seed=1))


def test_attention_scores_and_masks():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(5, 4, mask_zero=True)(tokens)
    y, scores = layers.MultiHeadAttention(2, 4)(x, x, return_attention_scores=True)
    z = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(y))
    agree(keras.Model(tokens, [z, scores]), np.array([[1, 2, 0, 4, 0, 0], [3, 3, 1, 2, 4, 1], [0, 1, 0, 2, 2, 0]]))


def test_mask_in_a_sequential_model_of_integers():
    model = keras.Sequential(
        [
            layers.Input((6,), dtype="int32"),
            layers.Embedding(5, 3, mask_zero=True),
            layers.Dropout(0.1),
            layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
            layers.GRU(3),
        ]
    )
    agree(model, np.array([[1, 2, 0, 4, 0, 0], [0, 3, 1, 2, 4, 1], [0, 0, 0, 0, 0, 0]]))


@pytest.mark.parametrize("kind", ["Maximum", "Minimum", "Add", "Concatenate"])
def test_merged_masks(kind):
    tokens, others = keras.Input((5,), dtype="int32"), keras.Input((5,), dtype="int32")
    parts = [layers.Embedding(4, 3, mask_zero=True)(tokens), layers.Embedding(4, 3, mask_zero=True)(others)]
    y = layers.LSTM(3)(getattr(layers, kind)()(parts))
    agree(
        keras.Model([tokens, others], y), np.array([[1, 0, 2, 0, 0], [3, 1, 0, 1, 2]]), np.array([[1, 2, 0, 0, 3]] * 2)
    )


def test_masking_of_values():
    x = normal(3, 5, 2)
    x[0, 3:], x[1, 1] = -1.0, -1.0
    agree(keras.Sequential([layers.Input((5, 2)), layers.Masking(-1.0), layers.LSTM(3, zero_output_for_mask=True)]), x)


def test_operations_on_tensors():
    x = keras.Input((4, 6))
    y = keras.ops.concatenate([x[:, 1:3], keras.ops.relu(x[:, ::2]) * 2.0 - 1.0], axis=1)
    y = keras.ops.transpose(keras.ops.reshape(y, (-1, 4, 3, 2)), (0, 2, 1, 3)) / 3.0
    agree(keras.Model(x, keras.ops.mean(y, axis=(1, 3)) + keras.ops.max(y)), normal(3, 4, 6))


@pytest.mark.parametrize(
    "name", ["Conv1D", "Conv2D", "SeparableConv2D", "Conv2DTranspose", "MaxPooling2D", "AveragePooling2D"]
)
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_channels_first(name, padding):
    """TensorFlow on a CPU cannot: the oracle is the channels-last twin with permuted tensors."""
    rank = 2 if "2D" in name else 1
    pooling = "Pooling" in name
    arguments = {"pool_size": 3} if pooling else {"filters": 5, "kernel_size": 3, "activation": "relu"}
    arguments |= {"strides": 2, "padding": padding}
    kind = getattr(layers, name)
    last = keras.Sequential([layers.Input((*(7, 6)[:rank], 3)), kind(**arguments)])
    first = keras.Sequential([layers.Input((3, *(7, 6)[:rank])), kind(**arguments, data_format="channels_first")])
    fill(last, 0)
    first.set_weights(last.get_weights())
    x = np.float32(normal(2, *(7, 6)[:rank], 3))
    result = reference(first).eval()(torch.tensor(x).movedim(-1, 1)).movedim(1, -1).detach().numpy()
    assert error(result, np.asarray(last(x))) <= 1e-5


def test_layout_nchw():
    model = keras.Sequential([layers.Input((6, 5, 3)), layers.Conv2D(4, 3, padding="same"), layers.MaxPooling2D()])
    fill(model, 0)
    x = np.float32(normal(2, 6, 5, 3))
    nhwc = reference(model)(torch.tensor(x))
    nchw = reference(model, layout="nchw")(torch.tensor(x).movedim(-1, 1))
    assert nchw.shape == (2, 4, 3, 2)
    assert torch.equal(nchw.movedim(1, -1), nhwc)


# --- structure, training ----------------------------------------------------------------------------------------------


def network():
    return keras.Sequential(
        [
            layers.Input((8, 8, 2), name="image"),
            layers.Conv2D(4, 3, padding="same", name="first.conv"),
            layers.BatchNormalization(name="norm", momentum=0.9),
            layers.ReLU(),
            layers.SeparableConv2D(3, 3, strides=2, padding="same", name="separable", trainable=False),
            layers.BatchNormalization(name="frozen", trainable=False),
            layers.Flatten(),
            layers.Dense(5, name="dense"),
        ]
    )


def test_names_counts_and_flags():
    model = network()
    module = reference(model)
    assert [name for name, _ in module.named_children()][:2] == ["first_conv", "norm"]
    assert isinstance(module.get_submodule("dense"), torch.nn.Linear)
    assert module.state_dict()["first_conv.weight"].shape == (4, 2, 3, 3)
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert trainable == sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    total = sum(x.numel() for x in module.state_dict().values())
    assert total == model.count_params()


def test_one_training_step_moves_weights_and_statistics_alike():
    model = network()
    fill(model, 0)
    model = in_precision(model, "float64")
    module = reference(model).train()
    x, y = normal(6, 8, 8, 2), normal(6, 5, seed=1)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
    keras.optimizers.SGD(0.125).apply(tape.gradient(loss, model.trainable_weights), model.trainable_weights)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.125)
    ((module(torch.tensor(x)) - torch.tensor(y)) ** 2).mean().backward()
    optimizer.step()
    after = reference(model).state_dict()
    for name, tensor in module.state_dict().items():
        assert error(tensor.detach().numpy(), after[name].numpy()) <= 1e-12, name


@pytest.mark.parametrize("kind", ["SimpleRNN", "LSTM", "GRU"])
def test_one_training_step_of_a_recurrent_layer(kind):
    model = keras.Sequential([layers.Input((5, 3)), getattr(layers, kind)(4), layers.Dense(2)])
    fill(model, 0)
    model = in_precision(model, "float64")
    module = reference(model).train()
    x = normal(6, 5, 3)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(x, training=True) ** 2)
    keras.optimizers.SGD(0.125).apply(tape.gradient(loss, model.trainable_weights), model.trainable_weights)
    (module(torch.tensor(x)) ** 2).mean().backward()
    torch.optim.SGD(module.parameters(), 0.125).step()
    after = reference(model).state_dict()
    for name, tensor in module.state_dict().items():
        assert error(tensor.detach().numpy(), after[name].numpy()) <= 1e-12, name


def test_a_part_called_with_training_false_stays_in_inference():
    base = keras.Sequential([layers.Dense(4), layers.BatchNormalization(), layers.Dropout(0.5)], name="base")
    x = keras.Input((3,))
    model = keras.Model(x, layers.Dense(2)(base(x, training=False)))
    fill(model, 0)
    module = reference(model)
    inputs = torch.randn(5, 3)
    assert torch.equal(module.train()(inputs), module.eval()(inputs))


def test_dropout_drops_in_training():
    model = keras.Sequential([layers.Input((1000,)), layers.Dropout(0.25)])
    dropped = reference(model).train()(torch.ones(1, 1000))
    assert abs(float((dropped == 0).float().mean()) - 0.25) < 0.06


# --- files, export, emitted source ------------------------------------------------------------------------------------


def test_archive_needs_no_tensorflow(tmp_path):
    model = network()
    fill(model, 0)
    path = tmp_path / "model.keras"
    model.save(path)
    x = np.float32(normal(2, 8, 8, 2))
    np.save(tmp_path / "x.npy", x)
    script = (
        "import sys, numpy, torch\n"
        "from parity.converters.keras_torch import reference\n"
        f"m = reference({str(path)!r}).eval()\n"
        f"x = torch.tensor(numpy.load({str(tmp_path / 'x.npy')!r}))\n"
        f"numpy.save({str(tmp_path / 'y.npy')!r}, m(x).detach().numpy())\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1], timeout=120)
    assert error(np.load(tmp_path / "y.npy"), np.asarray(model(x))) <= 1e-5


def test_h5_file(tmp_path):
    model = network()
    fill(model, 0)
    model.save(tmp_path / "model.h5")
    x = torch.randn(2, 8, 8, 2)
    assert torch.equal(reference(tmp_path / "model.h5").eval()(x), reference(model).eval()(x))


def test_export_with_any_batch():
    module = reference(network()).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, (torch.randn(3, 8, 8, 2),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 8, 8, 2)
    assert torch.allclose(program.module()(x), module(x), atol=1e-6)


def test_emitted_source_runs_alone(tmp_path):
    """Ten random models, in a process that has no parity."""
    for number in range(10):
        oracle = oracle_of(graph_spec(number), f"keras-dag-0-{number}", "float32")
        module = reference(oracle.model).eval()
        source, _ = emit(module, tmp_path / f"model_{number}.py")
        tensors = [torch.tensor(array, dtype=torch.float32) for array in oracle.inputs]
        torch.save((tensors, module(*tensors)), tmp_path / f"case_{number}.pt")
        assert "parity" not in source.read_text()
    script = (
        "import sys; sys.modules['parity'] = None\n"
        "import importlib, torch\n"
        "for number in range(10):\n"
        "    inputs, expected = torch.load(f'case_{number}.pt')\n"
        "    load = importlib.import_module(f'model_{number}').load\n"
        "    assert torch.equal(load()(*inputs), expected), number\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, timeout=120)


def test_emitted_source_keeps_frozen_parameters(tmp_path):
    module = reference(network())
    source, _ = emit(module, tmp_path / "model.py")
    namespace: dict = {"__name__": "emitted", "__file__": str(source)}
    exec(compile(source.read_text(), source, "exec"), namespace)
    copy = namespace["load"]()
    assert {n: p.requires_grad for n, p in copy.named_parameters()} == {
        n: p.requires_grad for n, p in module.named_parameters()
    }


# --- what is refused --------------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("tests")
class Doubled(layers.Layer):
    def call(self, x):
        return 2 * x


def sequential(*parts, shape=(6, 4)):
    return keras.Sequential([layers.Input(shape), *parts])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sequential(layers.Lambda(lambda x: x, name="mine")), ("Lambda", "'mine'", "@parity.lowers")),
        (lambda: sequential(Doubled(name="twice")), ("Doubled", "'twice'", '@parity.lowers("Doubled", to="torch")')),
        (lambda: sequential(layers.Resizing(3, 3, antialias=True), shape=(6, 6, 1)), ("Resizing", "antialias")),
        (lambda: sequential(layers.UpSampling2D(2, interpolation="lanczos3"), shape=(6, 6, 1)), ("lanczos3",)),
        (lambda: sequential(layers.ConvLSTM1D(2, 2), shape=(3, 6, 1)), ("ConvLSTM1D",)),
        (lambda: sequential(layers.Dense(2, dtype="mixed_float16")), ("Dense", "mixed_float16")),
        (lambda: sequential(layers.BatchNormalization(renorm=True)), ("BatchNormalization", "renorm")),
    ],
)
def test_refused_by_name(make, words):
    with pytest.raises(Unsupported) as caught:
        reference(make())
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_stateful_is_refused():
    x = keras.Input(batch_shape=(2, 5, 3))
    with pytest.raises(Unsupported, match=r"LSTM.*stateful"):
        reference(keras.Model(x, layers.LSTM(3, stateful=True)(x)))


def test_training_true_is_refused():
    x = keras.Input((3,))
    with pytest.raises(Unsupported, match=r"Dropout.*training=True"):
        reference(keras.Model(x, layers.Dropout(0.5)(x, training=True)))


def test_custom_layer_with_a_lowering():
    @keras.saving.register_keras_serializable("tests")
    class Tripled(layers.Layer):
        def call(self, x):
            return 3 * x

    class Times(torch.nn.Module):
        def forward(self, x):
            return 3 * x

    @lowers("Tripled", to="torch", replace=True)
    def tripled(layer: Layer) -> torch.nn.Module:
        return Times()

    agree(sequential(Tripled(), layers.Dense(2)), normal(2, 6, 4))


@pytest.mark.parametrize("wrong", ["missing.keras", 3, None])
def test_what_is_no_model(wrong):
    with pytest.raises(ParityError):
        reference(wrong)


def test_layers_of_the_vocabulary_draw_json():
    import json

    for name in NAMES:
        for number in range(3):
            spec = layer_spec(name, number)
            assert json.loads(spec.to_json())["nodes"]
