"""l4casadi (https://github.com/Tim-Salzmann/l4casadi): torch itself, called from a compiled CasADi external."""

from __future__ import annotations

import copy
import warnings
from itertools import count
from typing import TYPE_CHECKING, Any

from parity.converters.registry import converter
from parity.converters.thirdparty.columns import in_columns
from parity.converters.thirdparty.folders import fresh_folder

if TYPE_CHECKING:
    import casadi
    import torch

_NUMBERS = count(1)
_ATTEMPTS: tuple[tuple[str, dict[str, bool]], ...] = (
    ("hessian", {}),
    ("jacobian", {"generate_jac_adj1": False}),
    ("value", {"generate_jac_adj1": False, "generate_adj1": False, "generate_jac": False}),
)
"""With fewer and fewer derivatives, and what is lost where the attempt fails."""


@converter(
    "torch",
    "casadi",
    name="l4casadi",
    dtypes=("float32",),
    requires=("l4casadi",),
    install="pip install 'setuptools<81' scikit-build 'cmake<4' ninja && pip install --no-build-isolation l4casadi",
)
def l4casadi(model: torch.nn.Module, example: tuple[torch.Tensor, ...], *, name: str = "f") -> casadi.Function:
    """The model as TorchScript traces (value, Jacobian, adjoint, Jacobian of the adjoint) behind a C++ external.

    It computes in float32, whatever CasADi's numbers are. It takes one matrix: several inputs are joined to one
    column before and split inside, as its documentation advises. Every library has a name of its own, and its
    files stay until the process ends. Where the trace of a derivative raises the model comes without that derivative,
    and the reason in its attribute `refusals`. Raises what l4casadi and gcc raise.
    """
    import casadi
    from l4casadi import L4CasADi

    columns = in_columns(copy.deepcopy(model), example, joined=True)  # l4casadi changes the model it is given
    symbols = [casadi.MX.sym(f"x{index}", tensor.numel()) for index, tensor in enumerate(example)]
    refusals: dict[str, Exception] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for check, options in _ATTEMPTS:
            try:
                label = f"{name}_{next(_NUMBERS)}"
                library = L4CasADi(columns, device="cpu", name=label, build_dir=str(fresh_folder()), **options)
                output = library(casadi.vertcat(*symbols))
                break
            except Exception as error:
                refusals[check] = error
        else:
            raise refusals["value"]
    # Inlined, as its documentation differentiates: the Hessian of a call to a wrapping function asks for a block
    # (jac_adj_i0_adj_o0) that l4casadi does not provide.
    function: Any = casadi.Function(name, symbols, [output], {"always_inline": True})
    function.refusals = refusals
    return function
