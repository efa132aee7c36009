"""torch→casadi: what a conversion promises, and what it refuses."""

from __future__ import annotations

import random

import casadi
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_casadi import Call, CallTwo, check, compare, draw

from parity.converters.registry import lowers
from parity.converters.torch_casadi import reference
from parity.errors import Unsupported


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

    with pytest.raises(Unsupported, match=r"writes in place to memory that 'mul' shows too: .*; rewrite that part, or"):
        reference(Call(through_a_view), (torch.ones(2, 3),), capture="fx")
    check(Call(through_a_view), draw((2, 3)))  # torch.export knows what shows what


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_of_every_floating_type_are_exact(dtype):
    """The function is the model in float64; what the shorter type rounds is not in it."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)
    example = (torch.ones(1, 3, dtype=dtype),)
    double = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    double.load_state_dict({name: tensor.double() for name, tensor in model.state_dict().items()})
    inputs = draw((1, 3))
    for capture in ("fx", "export"):
        compare(double, reference(model, example, capture=capture), inputs)
    assert model[0].weight.dtype == dtype


def test_train_mode_where_it_makes_no_difference():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Dropout(0.0)).train()
    for capture in ("fx", "export"):
        check(model, draw((1, 3)), capture=capture)
    assert model.training and model[1].training


class Switching(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, self.training) * (2 if self.training else 3)


def test_train_mode_is_taken_as_it_is():
    assert float(reference(Switching().eval(), (torch.ones(1, 1),))(1)) == 3
    for capture in ("fx", "export"):
        with pytest.raises(Unsupported, match=r"drops elements at random|draws random numbers"):
            reference(Switching().train(), (torch.ones(1, 1),), capture=capture)


def test_conversion_leaves_the_random_numbers_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2))
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    reference(model, (torch.ones(1, 2),))
    with pytest.raises(Unsupported):
        reference(Call(lambda x: x + torch.randn(2) + np.random.rand()), (torch.ones(1, 2),))
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])


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
    (
        Branching(),
        (1, 2),
        "torch.fx cannot trace Branching: symbolically traced.*; and torch.export cannot capture Branch",
    ),
    (
        Call(lambda x: torch.cummax(x, 1)),
        (1, 2),
        r"cummax \(node 'cummax': \(x, 1\)\) has no lowering: .*cummax, to=",
    ),
    (Call(lambda x: x.digamma()), (1, 2), r"Tensor.digamma .* has no lowering: .*@parity.lowers\('digamma', to="),
    (Call(lambda x: x.max(1).indices), (1, 2), "Call returns Indices: a function's outputs are tensors"),
    (Call(lambda x: x.max(1).indices * x), (1, 2), "uses the indices of a maximum"),
    (Call(lambda x: x.long()), (1, 2), "has no lowering"),
    (Call(lambda x: x.to(torch.int64)), (1, 2), r"a cast to torch.int64"),
    (Call(lambda x: x.type_as(torch.tensor([1]))), (1, 2), "a tensor of integers"),
    (Call(lambda x: x.type("torch.LongTensor")), (1, 2), "a cast to torch.LongTensor"),
    (Call(lambda x: x.view(torch.int64)), (1, 2), "a cast to torch.int64"),
    (Call(lambda x: x.sum(dtype=torch.int32)), (1, 2), "a cast to torch.int32"),
    (Call(lambda x: x.view(torch.float32)), (1, 2), "the same bits read as torch.float32"),
    (Call(lambda x: x * x.argmax()), (1, 2), "argmax .* has no lowering"),
    (Call(lambda x: x + x.min(1)[1]), (1, 2), "uses the indices of a maximum or minimum"),
    (Call(lambda x: x.sort(1)[1]), (1, 2), "sort .* has no lowering"),
    (Call(torch.rand_like), (1, 2), "draws random numbers"),
    (Call(lambda x: F.dropout(x)), (1, 2), "drops elements at random"),
    (Call(lambda x: x + torch.randn(2)), (1, 2), "Call.forward draws random numbers"),
    (Call(lambda x: x + torch.empty(2).normal_()), (1, 2), "Call.forward draws random numbers"),
    (Call(lambda x: x * random.random()), (1, 2), "Call.forward draws random numbers"),
    (Call(lambda x: x * np.random.rand()), (1, 2), "Call.forward draws random numbers"),
    (Call(lambda x: x * F.dropout(torch.ones(2))), (1, 2), "draws random numbers"),
    (nn.Linear(2, 2, device="meta"), (1, 2), "weight of Linear is on the meta device, without numbers"),
    (nn.Linear(2, 2, dtype=torch.complex64), (1, 2), "weight of Linear is of type torch.complex64"),
    (Call(lambda x: x[x > 0]), (1, 2), "indexing by a computed tensor"),
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
