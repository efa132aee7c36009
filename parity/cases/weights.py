"""Weights and inputs from a seed, bit for bit on every machine.

Numbers come from `numpy.random.RandomState`, whose streams NumPy froze for good (NEP 19), and are rounded to float32.
Weights are *trained-like*: running statistics, gains, biases and slopes are random too, because an exchanged
epsilon, a forgotten running mean or a wrong slope cannot be seen on default-initialised parameters.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from parity.cases.spec import Shape

if TYPE_CHECKING:
    import torch

REGIMES = ("normal", "large", "tiny", "zeros", "saturating")
"""Inputs: N(0, 1); times 1000; times 1e-6; half of the elements exactly 0; of size 20 to 100 (activations saturate)."""


BOX_REGIMES = ("unit", "corner")
"""Inputs to models that hold in a box only: uniform in [-1, 1]; and -1, 0 or 1 each, which meets bounds and ties."""


def random_state(*words: object) -> np.random.RandomState:
    """A generator seeded by words; the same words give the same stream everywhere."""
    return np.random.RandomState(crc32("/".join(map(str, words)).encode()))


def draw_inputs(seed: object, regime: str, batch: int, shapes: tuple[Shape, ...]) -> tuple[np.ndarray, ...]:
    """One float64 array of shape (batch, *shape) per input, every element a float32 number. Raises KeyError."""
    scale = {"normal": 1.0, "large": 1e3, "tiny": 1e-6, "zeros": 1.0}.get(regime, 0.0)
    if regime not in (*REGIMES, *BOX_REGIMES):
        raise KeyError(regime)
    arrays = []
    for index, shape in enumerate(shapes):
        rng = random_state(seed, regime, batch, index)
        array = rng.standard_normal((batch, *shape)) * scale
        if regime == "zeros":
            array[rng.uniform(size=array.shape) < 0.5] = 0.0
        if regime == "saturating":
            array = rng.uniform(20, 100, array.shape) * rng.choice((-1.0, 1.0), array.shape)
        if regime == "unit":
            array = rng.uniform(-1, 1, array.shape)
        if regime == "corner":
            array = rng.choice((-1.0, 0.0, 1.0), array.shape)
        arrays.append(array.astype(np.float32).astype(np.float64))
    return tuple(arrays)


def fill(model: torch.nn.Module, seed: object) -> None:
    """Overwrite every parameter and buffer of a torch model by trained-like float32 numbers, in place.

    Each tensor has a stream of its own, named by its qualified name: prefixes of a model share its weights.
    """
    import torch

    for prefix, module in model.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            if not tensor.is_floating_point():
                continue
            rng = random_state(seed, prefix, name)
            values = _trained_like(rng, type(module).__name__, name, tuple(tensor.shape))
            with torch.no_grad():
                tensor.copy_(torch.from_numpy(values.astype(np.float32)))


def _trained_like(rng: np.random.RandomState, layer: str, name: str, shape: Shape) -> np.ndarray:
    if name == "running_var":
        return rng.uniform(0.3, 2.0, shape)
    if name == "running_mean":
        return rng.uniform(-1.0, 1.0, shape)
    if layer == "PReLU":
        return rng.uniform(0.05, 0.5, shape)
    if name == "weight" and "Norm" in layer:
        return rng.uniform(0.5, 1.5, shape) * rng.choice((-1.0, 1.0), shape)
    if name == "bias" or len(shape) < 2:
        return rng.uniform(-0.5, 0.5, shape)
    spread = math.sqrt(3.0 / max(1, math.prod(shape[1:])))
    return rng.uniform(-spread, spread, shape)
