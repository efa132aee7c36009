"""Real input: a dynamics model of a driven pendulum, trained here in a few seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from parity.cases.weights import fill, random_state

if TYPE_CHECKING:
    import torch

TIME_STEP = 0.05
"""Seconds."""


def step(state: np.ndarray, torque: np.ndarray) -> np.ndarray:
    """One Runge-Kutta (RK4) step of θ'' = -9.81 sin θ - 0.1 θ' + torque; state (n, 2) in rad and rad/s, torque (n,)."""

    def derivative(x: np.ndarray) -> np.ndarray:
        return np.stack([x[:, 1], -9.81 * np.sin(x[:, 0]) - 0.1 * x[:, 1] + torque], axis=1)

    k1 = derivative(state)
    k2 = derivative(state + TIME_STEP / 2 * k1)
    k3 = derivative(state + TIME_STEP / 2 * k2)
    k4 = derivative(state + TIME_STEP * k3)
    return state + TIME_STEP / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def train(model: torch.nn.Module, seed: object, epochs: int = 1500) -> float:
    """Train a module (θ, θ', torque) ↦ change of (θ, θ') in place; returns the mean squared error it reached.

    Deterministic for one machine, torch version and seed.
    """
    import torch

    rng = random_state(seed, "pendulum")
    inputs = rng.uniform((-np.pi, -6.0, -3.0), (np.pi, 6.0, 3.0), (1024, 3))
    targets = step(inputs[:, :2], inputs[:, 2]) - inputs[:, :2]
    x, y = torch.from_numpy(inputs).float(), torch.from_numpy(targets).float()
    fill(model, seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(epochs):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
    for parameter in model.parameters():
        parameter.grad = None
    return float(loss.detach())
