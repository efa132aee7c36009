"""The reference converter torch→casadi: readable, exact in float64, one expression per layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parity.converters.registry import converter

if TYPE_CHECKING:
    import casadi
    import torch


@converter("torch", "casadi", name="reference", dtypes=("float64",))
def reference(model: torch.nn.Module, example: tuple[torch.Tensor, ...], *, name: str = "f") -> casadi.Function:
    """Express `model` as a symbolic `casadi.Function` in float64, with the model's weights exactly.

    `example` holds one tensor for each argument of `model.forward`, batch axis first. The function's inputs carry the
    names of those arguments; its output is `y`, or `y0`, `y1`, … where the model returns several. Every input and
    output is one dense column: the tensor of the example's shape, flattened in torch's (row-major) order. So the
    example's shape is the function's shape. Convert with a batch of one: calling the function with n columns then
    evaluates n samples, for CasADi maps over columns by itself.

    Casts between floating types are dropped, as everything is float64. Raises Unsupported, in one line, for what has
    no lowering, for code that `torch.fx` cannot trace and for layers in train mode (call `model.eval()` first). A layer
    is added with `@parity.lowers(<Type>, to="casadi")`: a function of the layer and its `Tensor` inputs.
    """
    from parity.converters.torch_casadi.lowering import convert

    return convert(model, example, name)
