"""`parity.OcpLayer`: gradients, batches, failures, warm starts, and training through it."""

from __future__ import annotations

import pytest
import torch
from parity.suites.train_mpc_cost import TRUTH, train
from test_ocp import problem

import parity
from parity.cases.case import case_from_id


def layer_and_batch(case_id: str, batch: int, **options):
    case = case_from_id(case_id, "ocp")
    points = torch.from_numpy(case.inputs("layer", batch)[0])
    states = case.model().states
    x, p = (part.clone().requires_grad_(True) for part in (points[:, :states], points[:, states:]))
    return parity.OcpLayer(case.model(), **options), x, p


@pytest.mark.parametrize("engine", ["kkt", "casadi-nlpsol", "casadi-nlpsol-sqpmethod"])
@pytest.mark.parametrize("case_id", ["lqr-0-0", "integrator-0-0", "cartpole-0-0"])
def test_gradcheck_of_states_controls_and_value(engine: str, case_id: str) -> None:
    layer, x, p = layer_and_batch(case_id, 2, engine=engine)

    def solve(x: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = layer(x, p)
        return found.states, found.controls, found.value

    assert torch.autograd.gradcheck(solve, (x, p), eps=1e-6, atol=1e-6, rtol=1e-6)


def test_a_batch_is_its_rows_and_a_single_point_has_no_batch_axis() -> None:
    layer, x, p = layer_and_batch("pendulum-0-0", 3)
    together = layer(x, p)
    for row in range(3):
        alone = layer(x[row], p[row])
        assert alone.controls.shape == together.controls.shape[1:]
        torch.testing.assert_close(alone.controls, together.controls[row], rtol=0, atol=1e-10)


def test_one_parameter_serves_a_batch_and_gets_the_sum_of_its_gradients() -> None:
    layer, x, p = layer_and_batch("pendulum-0-0", 3)
    shared = p[0].detach().clone().requires_grad_(True)
    layer(x, shared).value.sum().backward()
    repeated = p[:1].detach().repeat(3, 1).requires_grad_(True)
    layer(x, repeated).value.sum().backward()
    torch.testing.assert_close(shared.grad, repeated.grad.sum(0))


def test_single_precision_goes_in_and_out_and_everything_between_is_double() -> None:
    layer, x, p = layer_and_batch("pendulum-0-0", 2)
    found = layer(x.detach().float(), p.detach().float())
    assert {found.states.dtype, found.controls.dtype, found.value.dtype} == {torch.float32}
    assert found.solved.dtype == torch.bool
    exact = layer(x.detach().float().double(), p.detach().float().double())
    torch.testing.assert_close(found.controls, exact.controls.float(), rtol=0, atol=0)


def test_workers_give_the_same() -> None:
    one, x, p = layer_and_batch("vanderpol-0-0", 5)
    two, *_ = layer_and_batch("vanderpol-0-0", 5, workers=2)
    torch.testing.assert_close(one(x, p).controls, two(x, p).controls, rtol=0, atol=1e-10)


def test_a_warm_start_takes_the_last_solution_of_its_row() -> None:
    layer, x, p = layer_and_batch("cartpole-0-1", 2)
    starts = []
    solve = layer._maps[0].solve
    layer._maps[0].solve = lambda point, start=None: starts.append(start) or solve(point, start)
    layer(x, p)
    layer(x + 0.01, p)
    layer(x[:1], p[:1])
    layer.forget()
    layer(x, p)
    assert [start is None for start in starts] == [True, True, False, False, True, True, True]
    assert (starts[2].point == torch.cat([x, p], 1)[0].detach().numpy()).all()


IMPOSSIBLE = torch.tensor([[0.3, 0.0], [float("nan"), 0.0], [-0.2, 0.1]], dtype=torch.float64)


def test_a_row_without_a_solution_is_named() -> None:
    layer = parity.OcpLayer(problem())
    with pytest.raises(parity.ParityError, match="1 of 3 problems have no solution; row 1: its input is not finite"):
        layer(IMPOSSIBLE[:, :1], IMPOSSIBLE[:, 1:])


def test_or_it_is_nan_with_a_mask_and_the_other_rows_keep_their_gradients() -> None:
    layer = parity.OcpLayer(problem(), on_failure="nan")
    x, p = (part.clone().requires_grad_(True) for part in (IMPOSSIBLE[:, :1], IMPOSSIBLE[:, 1:]))
    found = layer(x, p)
    assert found.solved.tolist() == [True, False, True]
    assert found.controls[1].isnan().all() and found.value[1].isnan()
    found.value[found.solved].sum().backward()
    assert x.grad.isfinite().all() and x.grad[1] == 0 and x.grad[0] != 0
    x.grad = None
    layer(x, p).value.sum().backward()
    assert x.grad[1].isnan() and x.grad[0].isfinite(), "who uses a missing solution gets a missing gradient"


def test_wrong_use_is_one_line() -> None:
    layer = parity.OcpLayer(problem())
    with pytest.raises(parity.ParityError, match=r"takes an initial state \(batch, 1\)"):
        layer(torch.zeros(2, 3), torch.zeros(1))
    with pytest.raises(parity.ParityError, match="on_failure"):
        parity.OcpLayer(problem(), on_failure="ignore")  # type: ignore[arg-type]
    with pytest.raises(parity.ParityError, match="no converter"):
        parity.OcpLayer(problem(), "nothing")


def test_an_experts_cost_is_learned_through_the_layer() -> None:
    found, losses = train()
    assert losses[-1] < 1e-12 * losses[0]
    torch.testing.assert_close(found, TRUTH, rtol=1e-5, atol=0)
