"""torch2casadi (https://github.com/casadi/torch2casadi): ONNX graphs of a model and its derivatives, run by CasADi."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.converters.registry import converter
from parity.converters.thirdparty.folders import fresh_folder
from parity.converters.thirdparty.onnx_export import find_onnxruntime, innermost, no_of_onnx, quiet
from parity.errors import Unsupported

if TYPE_CHECKING:
    import casadi
    import torch


@converter(
    "torch",
    "casadi",
    name="torch2casadi",
    dtypes=("float64", "float32"),
    requires=("torch2casadi", "onnx", "onnxscript", "onnxruntime"),
)
def torch2casadi(model: torch.nn.Module, example: tuple[torch.Tensor, ...], *, name: str = "f") -> casadi.Function:
    """The model, its adjoint and the forward sensitivity of the adjoint as ONNX files, which ONNX Runtime executes.

    It computes in the model's own precision. Where the graph of a derivative cannot be exported the model comes
    without that derivative, and the reason in its attribute `refusals`. The files stay until the process ends: CasADi
    reads those of the derivatives when they are first asked for. Raises `Unsupported` for several outputs and for
    operators that torch cannot export to ONNX, else what torch2casadi and torch raise.
    """
    find_onnxruntime()
    import casadi

    attempts: tuple[tuple[str, dict[str, Any]], ...] = (
        ("hessian", {}),
        ("jacobian", {"hessian": False}),
        ("value", {"is_diff_in": [False] * len(example)}),
    )
    refusals: dict[str, Exception] = {}
    for check, options in attempts:
        try:
            file = _export(model, example, name, **options)
            break
        except Exception as error:
            refusals[check] = error
    else:
        raise refusals["value"]
    function: Any = casadi.GraphBuilder(str(file)).create(name)
    function.refusals = refusals
    return function


def _export(model: torch.nn.Module, example: tuple[torch.Tensor, ...], name: str, **options: Any) -> Path:
    from torch2casadi import export

    try:
        with quiet():
            file: Path = export(model, example, fresh_folder(), name=name, **options)
            return file
    except Exception as error:
        several = "model must return one tensor" in str(error)
        if reason := str(error) if several else no_of_onnx(error):
            raise Unsupported(f"torch2casadi: {reason}") from error
        raise innermost(error) from error
