"""A worked example: learn what an expert's controller wants, by differentiating through our own (some seconds).

An expert swings a pole upright with a model predictive controller whose cost we do not know: how much it minds the
torque, and how long it thinks the pole is. We see states and the torques it chose, and fit both numbers by gradient
descent through `parity.OcpLayer`. Run it:
`python -m parity.suites.train_mpc_cost`.
"""

from __future__ import annotations

import torch

import parity
from parity.cases.case import case_from_id
from parity.cases.ocp import OptimalControlProblem

TRUTH = torch.tensor([1.1, 0.14], dtype=torch.float64)
"""The pole's length in metres, and the weight of the squared torque."""


def pendulum() -> OptimalControlProblem:
    """A case of the suites: min Σ 2 θ² + 0.2 θ'² + p₂ u², |u| ≤ a few Nm, horizon of some 15 steps of 0.08 s."""
    problem: OptimalControlProblem = case_from_id("pendulum-0-1", "ocp").model()
    return problem


def train(engine: str = "kkt") -> tuple[torch.Tensor, list[float]]:
    """Fit both numbers to 16 of the expert's decisions; gives them and the losses on the way."""
    generator = torch.Generator().manual_seed(0)
    states = 0.8 * (torch.rand(16, 2, generator=generator, dtype=torch.float64) - 0.5)
    layer = parity.OcpLayer(pendulum(), engine)
    with torch.no_grad():
        expert = layer(states, TRUTH).controls[:, 0]
    logarithm = torch.nn.Parameter(torch.tensor([0.9, 0.05], dtype=torch.float64).log())  # both stay positive
    optimizer = torch.optim.LBFGS([logarithm], max_iter=40, line_search_fn="strong_wolfe", tolerance_change=1e-14)
    losses = []

    def evaluate() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(layer(states, logarithm.exp()).controls[:, 0], expert)
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    optimizer.step(evaluate)
    layer.close()
    return logarithm.detach().exp(), losses


if __name__ == "__main__":
    found, losses = train()
    print(f"loss {losses[0]:.2e} → {losses[-1]:.2e}; found {found.tolist()}, the expert's {TRUTH.tolist()}")
