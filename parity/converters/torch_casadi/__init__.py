"""The reference converter torch→casadi: readable, exact in float64, one expression per layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from parity.converters.registry import converter

if TYPE_CHECKING:
    import casadi
    import numpy as np
    import torch


@converter("torch", "casadi", name="reference", dtypes=("float64",))
def reference(
    model: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    *,
    name: str = "f",
    form: str = "mx",
    weights: str = "constant",
    capture: str = "auto",
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    blas: bool = True,
    folder: str | Path | None = None,
) -> casadi.Function:
    """Express `model` as a `casadi.Function` in float64, with the model's weights exactly.

    `example` holds one tensor for each argument of `model.forward`, batch axis first; only their shapes matter. The
    function's inputs carry the names of those arguments, its output is `y`, or `y0`, `y1`, … where the model returns
    several; `input_names` and `output_names` say otherwise. Every input and output is one dense column: the tensor of
    the example's shape, flattened in torch's (row-major) order.

    Batches: the example's shape is the function's shape, and what the batch axis is has no meaning here. Convert with
    a batch of one: calling the function with n columns then evaluates n samples, for CasADi maps over columns by
    itself. A function made for a batch of n takes and gives all n samples in one column.

    `form`:
      * `mx`, a graph of matrix operations. It holds functions of its own for dense Jacobians and Hessians, faster than
        CasADi's. Large products call the BLAS that CasADi ships (3.8 and later), so C code generated from it needs
        linking with one; with `blas=False` it needs nothing.
      * `sx`, a graph of numbers, for small networks: CasADi may simplify and differentiate it element by element.
      * `c`, generated C, built by gcc (or what the environment variable CC names) for this very machine, and loaded,
        with derivatives, as an external function. Source and library (`<name>.c`, `<name>.so`) are left in `folder`,
        and nowhere if there is none.

    `weights="parameter"` makes the weights the last input, `p`: all parameters (not buffers) in the order of
    `model.named_parameters()`, flattened. `parameter_vector(model)` gives its value. Derivatives by it exist.

    `capture`: `fx` records with `torch.fx`, by layer; `export` with `torch.export`, by operation of torch's library;
    `auto` takes `export` for what `fx` cannot record (code that looks at shapes or writes to views, forward hooks,
    layers without a lowering of their own). Code that looks at the numbers themselves can be recorded by neither.

    Weights in float16, bfloat16 or float32, on whatever device, are converted to float64 on the CPU, exactly; the
    model is left alone. Casts between floating types inside `forward` are dropped: the function is what the model would
    be in float64. A model in train mode is converted if it makes no difference; layers that drop elements at random
    or normalize by the batch are refused (call `model.eval()` first), and so are random numbers in `forward`.

    Raises Unsupported, in one line, for what cannot be expressed, and ParityError for wrong options or a missing
    compiler. A layer is added with `@parity.lowers(<Type>, to="casadi")`: a function of the layer and its `Tensor`
    inputs, which reads weights with `parity.converters.torch_casadi.parameters.weights`.
    """
    from parity.converters.torch_casadi.convert import convert

    return convert(
        model,
        example,
        name=name,
        form=form,
        weights=weights,
        capture=capture,
        input_names=input_names,
        output_names=output_names,
        blas=blas,
        folder=folder,
    )


def parameter_vector(model: torch.nn.Module) -> np.ndarray:
    """The value of the input `p` of a function made with `weights="parameter"`: float64, one dimension."""
    from parity.converters.torch_casadi import parameters

    return parameters.parameter_vector(model)
