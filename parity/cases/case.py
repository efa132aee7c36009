"""Cases: one model with its inputs, rebuilt bit for bit from its id `family-seed-number`, such as `dag-0-17`.

The one exception is `pendulum`, whose weights are trained: it rebuilds exactly on one machine and torch version.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from random import Random
from typing import TYPE_CHECKING, Any

from parity.cases.families import VOCABULARIES, families, layer_families
from parity.cases.spec import ModelSpec
from parity.cases.weights import draw_inputs
from parity.errors import ParityError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Case:
    """One model with its inputs. The spec is drawn, and the framework imported, when it is asked for."""

    id: str
    family: str
    seed: int
    draw: Callable[[], ModelSpec]
    source: str = "torch"
    initialise: Callable[[Any, object], None] | None = None
    """Gives the model its weights from the id, instead of the vocabulary's `fill`."""

    @cached_property
    def spec(self) -> ModelSpec:
        return self.draw()

    @property
    def layers(self) -> str:
        """The names of the model's layers, joined by `>`."""
        return ">".join(self.spec.layers)

    def model(self) -> Any:
        """The source model, float32: a `torch.fx.GraphModule` in eval mode, a functional `keras.Model`."""
        vocabulary = VOCABULARIES[self.source]
        model = vocabulary.build(self.spec)
        (self.initialise or vocabulary.fill)(model, self.id)
        return model

    def inputs(self, regime: str = "normal", batch: int = 1) -> tuple[np.ndarray, ...]:
        """Inputs as float64 arrays whose elements are float32 numbers; see `parity.cases.weights.REGIMES`."""
        return draw_inputs(self.id, regime, batch, self.spec.input_shapes)


def case_ids(
    names: Sequence[str] | None = None, seed: int = 0, count: int | None = None, source: str = "torch"
) -> list[str]:
    """Ids of the cases of some families (`layer` stands for every layer; None for all families).

    `count` sets how many random models there are, spread evenly over the random families among those (`dag`, `vgg`, …),
    and how many each layer takes that is named by its own name. Raises ParityError for an unknown family. Draws no
    model, so that listing is quick.
    """
    known, layers = families(source), layer_families(source)
    ids = []
    wanted = dict.fromkeys(n for word in names or (*known,) for n in (layers if word == "layer" else (word,)))
    random_families = sum(name in known and known[name].random for name in wanted)
    for name in wanted:
        if name not in known:
            raise ParityError(
                f"unknown family {name!r}: layer, {', '.join(f for f in known if f not in layers)}, or a layer"
            )
        family = known[name]
        total = family.count
        if count is not None and family.random:
            total = -(-count // random_families)
        elif count is not None and name in layers and names and name in names:
            total = count
        ids += [f"{name}-{seed}-{number}" for number in range(total)]
    return ids


@lru_cache(maxsize=256)
def case_from_id(case_id: str, source: str = "torch") -> Any:
    """Rebuild a case (a `Case`, for ocp an `OcpCase`) from its id; raises ParityError for an id that names none."""
    name, _, rest = case_id.partition("-")
    seed, _, number = rest.partition("-")
    family = families(source).get(name)
    if family is None or not seed.isdigit() or not number.isdigit():
        raise ParityError(f"no case {case_id!r}: an id is family-seed-number, such as dag-0-17; see `parity list`")
    if not family.random and name not in layer_families(source) and int(number) >= family.count:
        raise ParityError(f"no case {case_id!r}: family {name} has the numbers 0 to {family.count - 1}")
    if source == "ocp":
        from parity.cases.ocp_families import OcpCase

        return OcpCase(case_id, name, int(seed), int(number))

    def draw() -> ModelSpec:
        return family.draw(Random(case_id), int(seed), int(number))

    shown = "layer" if name in layer_families(source) else name
    return Case(case_id, shown, int(seed), draw, source, family.initialise)
