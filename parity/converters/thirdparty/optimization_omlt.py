"""OMLT: https://github.com/cog-imperial/OMLT (through ONNX, as its users come from torch)"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from parity.converters.registry import converter
from parity.errors import Unsupported

if TYPE_CHECKING:
    from parity.embedding import PyomoEmbedding

REQUIRES = ("omlt", "pyomo", "onnx")


def _register(name: str, formulation: str) -> None:
    def convert(model: Any, example: tuple[Any, ...], *, box: tuple[Any, Any] | None = None) -> PyomoEmbedding:
        """Export to ONNX by torch's TorchScript exporter, which keeps Softplus whole, and build an OmltBlock."""
        return _embed(model, example, box, formulation)

    convert.__name__ = convert.__qualname__ = name
    converter("torch", "optimization", name=name, requires=REQUIRES)(convert)


_register("omlt-full-space", "FullSpaceNNFormulation")
_register("omlt-reduced-space", "ReducedSpaceNNFormulation")
_register("omlt-complementarity", "ReluComplementarityFormulation")


def _embed(model: Any, example: tuple[Any, ...], box: tuple[Any, Any] | None, formulation: str) -> PyomoEmbedding:
    import pyomo.environ as pyo
    from omlt import OmltBlock, neuralnet

    from parity.converters.thirdparty.optimization_chain import BOX, TIME_LIMIT, box_of, line
    from parity.embedding import PyomoEmbedding, Size, activation_error

    lower, upper = box_of(example, box or BOX, vectors=False)
    network = _network(model, example, lower, upper)
    whole = pyo.ConcreteModel()
    whole.net = OmltBlock()
    try:
        whole.net.build_formulation(getattr(neuralnet, formulation)(network))
    except (ValueError, KeyError, NotImplementedError) as error:
        raise Unsupported(line(error)) from error
    x, y = list(whole.net.inputs.values()), list(whole.net.outputs.values())
    for variable, low, high in zip(x, lower, upper, strict=True):
        variable.setlb(float(low))
        variable.setub(float(high))
    variables = list(whole.component_data_objects(pyo.Var))
    rows = list(whole.component_data_objects(pyo.Constraint, active=True))
    binaries = sum(variable.is_binary() for variable in variables)
    linear = all(row.body.polynomial_degree() in (0, 1) for row in rows)
    solver = "casadi:highs" if linear else "scip" if binaries or "Complementarity" in formulation else "casadi:ipopt"
    return PyomoEmbedding(
        lower=lower,
        upper=upper,
        outputs=len(y),
        solver=solver,
        local=solver == "casadi:ipopt",
        kinks=False,
        error=activation_error(products="Complementarity" in formulation),
        time_limit=TIME_LIMIT,
        size=Size(len(variables), len(rows), binaries),
        model=whole,
        x=x,
        y=y,
    )


def _network(model: Any, example: tuple[Any, ...], lower: Any, upper: Any) -> Any:
    import contextlib
    import warnings

    import numpy as np
    import onnx
    import torch
    from omlt.io import load_onnx_neural_network

    from parity.converters.thirdparty.optimization_chain import line

    buffer: Any = io.BytesIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # it is deprecated, and the new one takes Softplus apart
        # Of an input without a fixed batch axis OMLT sees one sample, and only then takes convolutions. The exporter
        # trips over the attribute `graph` of a torch.fx.GraphModule, which is put inside another module.
        axes, whole = {"x": {0: "batch"}}, torch.nn.Sequential(model)
        torch.onnx.export(whole, example, buffer, dynamo=False, input_names=["x"], dynamic_axes=axes)
    indices = np.ndindex(*example[0].shape[1:])
    bounds = {
        (index if len(index) > 1 else index[0]): (float(low), float(high))
        for index, low, high in zip(indices, lower, upper, strict=True)
    }
    try:
        return load_onnx_neural_network(onnx.load_from_string(buffer.getvalue()), input_bounds=bounds)
    except Exception as error:  # it raises plain Exception for nodes it does not know
        raise Unsupported(line(error)) from error
