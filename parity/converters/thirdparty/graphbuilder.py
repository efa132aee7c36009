"""CasADi's own `GraphBuilder` (3.8 and later): torch's ONNX export, imported as a symbolic MX graph."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from parity.converters.registry import converter
from parity.converters.thirdparty.columns import in_columns
from parity.converters.thirdparty.folders import fresh_folder
from parity.converters.thirdparty.onnx_export import innermost, no_of_onnx, quiet
from parity.errors import Unsupported

if TYPE_CHECKING:
    import casadi
    import torch

NO = re.compile(r"(Unsupported (?:operation|activation) '[^']*'[^\n]*)")
"""How the importer says which ONNX operator it does not know."""


@converter("torch", "casadi", name="casadi-graphbuilder", dtypes=("float64",), requires=("onnx", "onnxscript"))
def graphbuilder(model: torch.nn.Module, example: tuple[torch.Tensor, ...], *, name: str = "f") -> casadi.Function:
    """The model exported by `torch.onnx.export` (of its two exporters the newer one, which reaches further here).

    Imported with the option `symbolic`, the graph is CasADi's own and computes in float64. Without it CasADi gives the
    file to ONNX Runtime and has no derivatives; torch2casadi is the converter for that way. Raises `Unsupported` for
    operators that the importer or the exporter does not know, else what they raise.
    """
    import casadi
    import torch

    if not hasattr(casadi, "GraphBuilder"):
        raise Unsupported(f"casadi {casadi.CasadiMeta.version()} has no GraphBuilder: pip install 'casadi>=3.8'")
    file = str(fresh_folder() / f"{name}.onnx")
    columns = tuple(tensor.reshape(-1, 1) for tensor in example)
    try:
        with quiet():
            torch.onnx.export(
                in_columns(model, example), columns, file, dynamo=True, verbose=False, external_data=False
            )
        return casadi.GraphBuilder(file).create(name, {"symbolic": True})
    except Exception as error:
        if found := NO.search(str(error)):
            raise Unsupported(f"GraphBuilder: {found[1].strip()}") from error
        if reason := no_of_onnx(error):
            raise Unsupported(f"GraphBuilder: {reason}") from error
        raise innermost(error) from error
