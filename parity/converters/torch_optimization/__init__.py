"""Converters torch→optimization: a network as variables and constraints of a solver's model, exact in float64.

Three forms: *full-space* has a variable per neuron and a constraint per layer, *reduced-space* one expression of the
inputs, *gray-box* an external function with derivatives. Two targets, CasADi and Pyomo. The names below are the
combinations with a formulation of ReLU that the suites compare; `config` chooses it layer by layer.

A layer is added with `@parity.lowers(<Type>, to="optimization")`: a function of the layer and its
`parity.converters.torch_optimization.program.Value` inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from parity.converters.registry import converter
from parity.converters.torch_optimization.formulations import (
    BigM,
    Complementarity,
    Config,
    Direct,
    Formulation,
    Smooth,
    Sos1,
)

if TYPE_CHECKING:
    from parity.embedding import Embedding

__all__ = ["BigM", "Complementarity", "Direct", "Smooth", "Sos1"]

BOX = (-1.0, 1.0)
TIME_LIMIT = 10.0


def _register(name: str, target: str, full: bool, default: Formulation, requires: tuple[str, ...] = ()) -> None:
    def convert(
        model: Any,
        example: tuple[Any, ...],
        *,
        box: tuple[Any, Any] = BOX,
        config: Config | None = None,
        tighten: str = "",
        solver: str | None = None,
        time_limit: float = TIME_LIMIT,
    ) -> Embedding:
        """Embed `model`, for one sample of the example's shape and inputs within `box`.

        `box` is (lower, upper), each a number or one per input element. `config` maps a layer's type, or its name, or
        "default", to a formulation: an object of this module or its name (`big-m`, `sos1`, `complementarity`, `smooth`,
        `direct`). `tighten` takes bounds by linear (`lp`) or mixed-integer programs (`milp`) beside intervals. `solver`
        and `time_limit` (seconds a solve) are what the checks solve it with. Raises Unsupported for what has no
        lowering, and ParityError for options that do not fit the model.
        """
        from parity.converters.torch_optimization.capture import embed

        program = embed(model, example, box=box, full=full, default=default, config=config, tighten=tighten)
        if target == "casadi":
            from parity.converters.torch_optimization.casadi_writer import to_casadi

            return to_casadi(program, solver, time_limit)
        from parity.converters.torch_optimization.pyomo_writer import to_pyomo

        return to_pyomo(program, solver, time_limit)

    convert.__qualname__ = convert.__name__ = name
    register: Callable[..., Any] = converter("torch", "optimization", name=name, requires=requires)
    register(convert)


for _target, _needs in (("casadi", ()), ("pyomo", ("pyomo",))):
    _register(f"{_target}-full-space", _target, True, Direct(), _needs)
    _register(f"{_target}-reduced-space", _target, False, Direct(), _needs)
    _register(f"{_target}-big-m", _target, True, BigM(), _needs)
    _register(f"{_target}-complementarity", _target, True, Complementarity(), _needs)
_register("casadi-sos1", "casadi", True, Sos1())
_register("pyomo-sos1", "pyomo", True, Sos1(), ("pyomo", "pyscipopt"))


@converter("torch", "optimization", name="casadi-gray-box")
def gray_box(
    model: Any, example: tuple[Any, ...], *, box: tuple[Any, Any] = BOX, time_limit: float = TIME_LIMIT
) -> Embedding:
    """Embed `model` as a function that the solver calls: torch in float64, in eval mode, with exact derivatives."""
    from parity.converters.torch_optimization.gray_box import gray_box

    return gray_box(model, example, box=box, time_limit=time_limit)
