"""torch→casadi: the forms of a function (mx, sx, c), weights as an input, and generated C."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import casadi
import numpy as np
import pytest
import torch
from torch import nn
from torch_casadi import TOLERANCE, Call, CallTwo, check, compare, deviation, draw, outputs_of

from parity.cases.case import case_from_id, case_ids
from parity.cases.weights import fill
from parity.converters.registry import lowers
from parity.converters.torch_casadi import parameter_vector, reference
from parity.converters.torch_casadi.compiled import FLAGS, c_source
from parity.errors import ParityError, Unsupported
from parity.runtimes.casadi import CasadiRuntime


class Mixed(nn.Module):
    """A convolution, a normalization, attention and a dense layer."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv1d(3, 4, 2, padding=1)
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        y = self.norm(torch.tanh(self.convolution(x)).transpose(1, 2))
        return self.head(y + self.attention(y, y, y, need_weights=False)[0]).mean(1)


def filled(model: nn.Module) -> nn.Module:
    fill(model, "forms")
    return model.eval()


PAIR = CallTwo(lambda x, y: (torch.relu(x) @ y.T, x * torch.sin(y)))


@pytest.mark.parametrize("form", ["sx", "c"])
def test_forms(form):
    function = check(filled(Mixed()), draw((1, 3, 5)), 1e-11, form=form)
    assert (function.name(), function.name_in(), function.name_out()) == ("f", ["x"], ["y"])
    assert function.is_a("SXFunction" if form == "sx" else "MXFunction")
    inputs = draw((4, 3, 5))
    columns = np.asarray(function(inputs[0].reshape(4, -1).T))
    assert deviation(columns.T, outputs_of(filled(Mixed()), inputs).reshape(4, -1)) <= 1e-11


@pytest.mark.parametrize("form", ["mx", "sx", "c"])
def test_names_of_several_inputs_and_outputs(form):
    names = {"input_names": ["state", "control"], "output_names": ["product", "other"]}
    function = check(PAIR, draw((1, 3), (1, 3)), form=form, name="net", **names)
    assert function.name() == "net"
    assert (function.name_in(), function.name_out()) == (["state", "control"], ["product", "other"])
    assert set(function(state=[1, 2, 3], control=[1, 0, 1])) == {"product", "other"}


def test_wrong_options():
    model, example = nn.Linear(2, 1), (torch.ones(1, 2),)
    wrong = [({"form": "mlir"}, "form='mlir' is none of mx, sx, c"), ({"weights": "x"}, "none of constant, parameter"),
             ({"capture": "jit"}, "none of auto, fx, export"), ({"folder": "x"}, "folder= is for form='c'"),
             ({"input_names": "x"}, r"give 1 name\(s\), for input"), ({"output_names": ["a", "b"]}, "give 1 name"),
             ({"output_names": ["a b"]}, "'a b' is no name")]  # fmt: skip
    for options, message in wrong:
        with pytest.raises(ParityError, match=message):
            reference(model, example, **options)


# --- compiled ---------------------------------------------------------------------------------------------------------


def test_files_of_the_compiled_form(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    function = reference(nn.Linear(2, 1), (torch.ones(1, 2),), form="c", name="left")
    assert not [*scratch.iterdir()] and [*tmp_path.iterdir()] == [scratch]
    assert np.isfinite(float(function([1, 2])))
    reference(nn.Linear(2, 1), (torch.ones(1, 2),), form="c", name="kept", folder=tmp_path / "a/b")
    assert sorted(file.name for file in (tmp_path / "a/b").iterdir()) == ["kept.c", "kept.so"]
    again = casadi.external("kept", str(tmp_path / "a/b/kept.so"))
    assert again.size_in(0) == (2, 1)


def test_a_compiler_that_is_missing_or_fails(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(ParityError, match=r"^form='c' needs a C compiler, and no-such-compiler is not found: install"):
        reference(nn.Linear(2, 1), (torch.ones(1, 2),), form="c")
    monkeypatch.setenv("CC", "false")
    with pytest.raises(ParityError, match=r"false cannot compile .*f\.c: exit code 1"):
        reference(nn.Linear(2, 1), (torch.ones(1, 2),), form="c")


def compiled_library(functions: list[casadi.Function], folder: Path, source: str | None = None) -> ctypes.CDLL:
    if source is None:
        generator = casadi.CodeGenerator("generated.c")
        for function in functions:
            generator.add(function)
        source = generator.dump()
    (folder / "generated.c").write_text(source)
    flags = [flag for flag in FLAGS if flag != "-O3"] + ["-O1"]
    subprocess.run(["gcc", *flags, "generated.c", "-o", "generated.so", "-lm"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "generated.so"))


def called_from_c(library: ctypes.CDLL, function: casadi.Function, inputs: list[np.ndarray]) -> np.ndarray:
    """The function's own C interface, without CasADi."""
    pointer = ctypes.POINTER(ctypes.c_double)
    sizes = [(ctypes.c_longlong * 1)() for _ in range(4)]
    assert getattr(library, f"{function.name()}_work")(*sizes) == 0
    n_arguments, n_results, n_integers, n_reals = (size[0] for size in sizes)
    arguments, results = (pointer * n_arguments)(), (pointer * n_results)()
    outputs = [np.full(function.nnz_out(number), np.nan) for number in range(function.n_out())]
    columns = [np.ascontiguousarray(array, np.float64).ravel() for array in inputs]
    for slots, arrays in ((arguments, columns), (results, outputs)):
        for place, array in enumerate(arrays):
            slots[place] = array.ctypes.data_as(pointer)
    integers, reals = (ctypes.c_longlong * max(1, n_integers))(), (ctypes.c_double * max(1, n_reals))()
    assert getattr(library, function.name())(arguments, results, integers, reals, 0) == 0
    return np.concatenate(outputs)


def test_generated_c_of_random_models(tmp_path):
    cases = [case_from_id(case_id) for case_id in case_ids(["dag"], seed=7, count=10)]
    functions = [
        reference(case.model(), tuple(map(torch.from_numpy, case.inputs())), name=f"dag{number}", blas=False)
        for number, case in enumerate(cases)
    ]
    library = compiled_library(functions, tmp_path)
    for case, function in zip(cases, functions, strict=True):
        inputs = case.inputs()
        expected = outputs_of(case.model(), inputs)
        assert deviation(called_from_c(library, function, list(inputs)), expected) <= TOLERANCE, case.id


def test_products_in_c(tmp_path):
    """Every remainder of the blocks that the faster products work in."""
    rng = np.random.RandomState(0)
    shapes = [(m, n, p) for m in (1, 2, 3, 4, 7, 8, 13) for n in (1, 3, 8, 21) for p in (1, 2, 5, 8, 11)]
    shapes += [(3, 300, 2), (5, 515, 9)]  # longer than what is copied at once
    functions, expected, inputs = [], [], []
    for number, (m, n, p) in enumerate(shapes):
        x, y = casadi.MX.sym("x", m, n), casadi.MX.sym("y", n, p)
        mask = rng.rand(n, p) < 0.3
        mask[0, 0] = True
        sparse = casadi.DM(np.where(mask, rng.randn(n, p), 0))
        sparse = casadi.MX(casadi.sparsify(sparse))
        start = casadi.MX(casadi.DM(np.ones((m, p))))
        outputs = [casadi.mac(x, y, start), casadi.mac(x, sparse, start)]
        functions.append(casadi.Function(f"product{number}", [x, y], outputs))
        a, b = rng.randn(m, n), rng.randn(n, p)
        inputs.append([a.ravel("F"), b.ravel("F")])
        expected.append(np.concatenate([(1 + a @ b).ravel("F"), np.asarray(functions[-1](a, b)[1]).ravel("F")]))
    source = c_source(functions)
    assert "casadi_row_product" in source and source.count("mtimes_dense(const") == 1
    library = compiled_library(functions, tmp_path, source)
    for function, columns, right in zip(functions, inputs, expected, strict=True):
        assert deviation(called_from_c(library, function, columns), right) <= TOLERANCE


# --- weights as an input ----------------------------------------------------------------------------------------------


def with_weights(function: casadi.Function, values: np.ndarray) -> casadi.Function:
    """The function of its other inputs."""
    symbols = [casadi.MX.sym(f"s{n}", function.size1_in(n)) for n in range(function.n_in() - 1)]
    return casadi.Function("f", symbols, function.call([*symbols, casadi.DM(values)], True, False))


PARAMETRIZED = [
    (Mixed(), (1, 3, 5)),
    (nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular", groups=2), nn.BatchNorm2d(4)), (1, 2, 2, 3)),
    (nn.Sequential(nn.ConvTranspose1d(2, 3, 3, stride=2), nn.GroupNorm(3, 3), nn.PReLU(3)), (1, 2, 4)),
    (nn.Sequential(nn.GRU(3, 2, bidirectional=True), Call(lambda pair: pair[0])), (4, 1, 3)),
    (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), nn.Tanh()), (1, 3)),
]


@pytest.mark.parametrize("model, shape", PARAMETRIZED, ids=lambda value: type(value).__name__)
def test_weights_as_a_parameter(model, shape):
    model = model.eval()
    if not isinstance(
        model[0] if isinstance(model, nn.Sequential) else model, nn.utils.parametrize.ParametrizationList
    ):
        model = model.double()
    inputs = draw(shape)
    function = reference(model, (torch.ones(shape),), weights="parameter")
    assert function.name_in()[-1] == "p"
    values = parameter_vector(model)
    compare(model, with_weights(function, values), inputs, 1e-11)

    names = [name for name, _ in model.named_parameters()]
    parameters = tuple(parameter.detach().double() for _, parameter in model.named_parameters())

    def output(*given):
        named = dict(zip(names, given, strict=True))
        return torch.func.functional_call(model, named, (torch.from_numpy(inputs[0]),)).flatten()

    blocks = torch.func.jacrev(output, argnums=tuple(range(len(names))))(*parameters)
    expected = torch.cat([block.flatten(1) for block in blocks], 1).numpy()
    x, p = casadi.MX.sym("x", function.size1_in(0)), casadi.MX.sym("p", values.size)
    jacobian = casadi.Function("J", [x, p], [casadi.jacobian(function(x, p), p)])
    assert deviation(casadi.densify(jacobian(inputs[0].ravel(), values)).full(), expected) <= 1e-11


def test_weights_are_swapped_without_converting_again():
    first, second = filled(Mixed()), Mixed().eval()
    function = reference(first, (torch.ones(1, 3, 5),), weights="parameter")
    inputs = draw((1, 3, 5))
    for model in (first, second):
        compare(model, with_weights(function, parameter_vector(model)), inputs, checks=("value",))


def test_shared_parameters_come_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    assert parameter_vector(model).size == 9 + 3 + 3
    function = reference(model, (torch.ones(1, 3),), weights="parameter")
    compare(model, with_weights(function, parameter_vector(model)), draw((1, 3)))


@pytest.mark.parametrize("form, capture", [("sx", "fx"), ("c", "fx"), ("mx", "export")])
def test_weights_as_a_parameter_in_other_forms(form, capture):
    model = filled(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    function = reference(model, (torch.ones(1, 3),), weights="parameter", form=form, capture=capture)
    compare(model, with_weights(function, parameter_vector(model)), draw((1, 3)))
    x, p = casadi.MX.sym("x", 3), casadi.MX.sym("p", parameter_vector(model).size)
    by_p = casadi.Function("J", [x, p], [casadi.jacobian(function(x, p), p)])
    plain = reference(model, (torch.ones(1, 3),), weights="parameter")
    same = casadi.Function("J", [x, p], [casadi.jacobian(plain(x, p), p)])
    assert deviation(np.asarray(by_p(0.5, 0.3)), np.asarray(same(0.5, 0.3))) <= TOLERANCE


def test_a_lowering_that_reads_numbers_is_refused_with_symbolic_weights():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.tensor([2.0]))

        def forward(self, x):
            return x * self.factor if float(x.sum()) < 1e9 else x

    @lowers(Scale, to="casadi")
    def scale(layer, x):
        return x * layer.factor.detach().numpy()

    model = nn.Sequential(Scale())
    assert float(reference(model, (torch.ones(1, 1),))(3)) == 6
    with pytest.raises(Unsupported, match=r"Scale\(\) \('0'\) reads its weights as numbers: .*parameters.weights"):
        reference(model, (torch.ones(1, 1),), weights="parameter")


def test_a_runtime_executes_compiled_functions():
    """By the derivative functions of an external itself."""
    model = filled(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    runtime = CasadiRuntime(reference(model, (torch.ones(1, 3),), form="c"))
    inputs, weights = draw((1, 3)), np.array([1.0, -2.0])
    for name in ("value", "jacobian", "hessian"):
        runtime.caller(name, inputs, weights)()
