"""From a torch module to a CasADi function of one of the forms."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import casadi
import numpy as np
import torch
from torch.utils import _pytree as pytree

from parity.converters.torch_casadi.capture import LOWER_WHOLE, Arguments, no_random_numbers, trace
from parity.converters.torch_casadi.compiled import Sources, compile_function
from parity.converters.torch_casadi.derivatives import (
    Expressions,
    NotDifferentiated,
    derivatives,
    single_derivatives,
    with_derivatives,
)
from parity.converters.torch_casadi.exported import run_exported
from parity.converters.torch_casadi.in_place import FxFailure
from parity.converters.torch_casadi.lowering import Lowering, array_of
from parity.converters.torch_casadi.parameters import open_parameters
from parity.converters.torch_casadi.products import plain_products
from parity.converters.torch_casadi.tensor import Tensor
from parity.errors import ParityError, Unsupported

FORMS = ("mx", "sx", "c")
WEIGHTS = ("constant", "parameter")
CAPTURES = ("auto", "fx", "export")
Names = Sequence[str] | None


def convert(
    model: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    *,
    name: str,
    form: str,
    weights: str,
    capture: str,
    input_names: Names,
    output_names: Names,
    blas: bool,
    folder: str | Path | None,
) -> casadi.Function:
    """See `parity.converters.torch_casadi.reference`."""
    for option, value, known in (("form", form, FORMS), ("weights", weights, WEIGHTS), ("capture", capture, CAPTURES)):
        if value not in known:
            raise ParityError(f"{option}={value!r} is none of {', '.join(known)}")
    if folder is not None and form != "c":
        raise ParityError(f"folder= is for form='c', which has files: form={form!r} has none")
    with plain_products(form != "mx" or not blas):
        expressions = _expressions(model, example, name, weights, capture)
        expressions = replace(
            expressions,
            input_names=_names("input_names", input_names, expressions.input_names),
            output_names=_names("output_names", output_names, expressions.output_names),
        )
        if form == "mx":
            # Directions of thousands of weights cost more than they save.
            return expressions.function() if weights == "parameter" else with_derivatives(expressions)
        if form == "sx":
            return expressions.function().expand(name)
        return _compiled(expressions, weights, None if folder is None else Path(folder))


def _names(option: str, given: Names, usual: Sequence[str]) -> Sequence[str]:
    if given is None:
        return usual
    if isinstance(given, str) or len(given) != len(usual):
        raise ParityError(f"{option}={given!r}: give {len(usual)} name(s), for {', '.join(usual)}")
    if wrong := [name for name in given if not casadi.Function.check_name(name)]:
        raise ParityError(f"{option}: {wrong[0]!r} is no name that CasADi takes (letters, digits, single underscores)")
    return tuple(given)


def _compiled(expressions: Expressions, weights: str, folder: Path | None) -> casadi.Function:
    try:
        if weights == "parameter":
            raise NotDifferentiated("by thousands of weights")
        made = derivatives(expressions, fewest=1)
    except NotDifferentiated:
        made = single_derivatives(expressions)
    gradient = made.gradient or single_derivatives(expressions).gradient
    assert gradient is not None
    return compile_function(Sources(expressions, made.first, gradient, made.second), folder)


# --- expressions ------------------------------------------------------------------------------------------------------


def _expressions(
    model: torch.nn.Module, example: tuple[torch.Tensor, ...], name: str, weights: str, capture: str
) -> Expressions:
    """The outputs of `model` as expressions of its inputs and, if they are to be one, of its parameters."""
    arguments = _arguments(model, example)
    symbols = [
        casadi.MX.sym(argument if casadi.Function.check_name(argument) else f"x{number}", tensor.numel())
        for number, (argument, tensor) in enumerate(arguments.items())
    ]
    inputs = [Tensor(symbol, tuple(tensor.shape)) for symbol, tensor in zip(symbols, arguments.values(), strict=True)]
    names = [symbol.name() for symbol in symbols]
    with no_random_numbers(type(model).__name__):
        result, parameters = _run(model, arguments, inputs, weights == "parameter", capture)
    if parameters is not None:
        symbols.append(parameters)
        names.append("p" if "p" not in names else "parameters")
    leaves = [array_of(leaf) for leaf in pytree.tree_leaves(result)]
    if not leaves or not all(isinstance(leaf, Tensor | np.ndarray) for leaf in leaves):
        kinds = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or "nothing"
        raise Unsupported(f"{type(model).__name__} returns {kinds}: a function's outputs are tensors")
    output_names = ["y"] if len(leaves) == 1 else [f"y{number}" for number in range(len(leaves))]
    return Expressions(name, symbols, names, [Tensor.of(leaf).data for leaf in leaves], output_names)


def _run(
    model: torch.nn.Module, arguments: Arguments, inputs: Sequence[Tensor], symbolic: bool, capture: str
) -> tuple[Any, casadi.MX | None]:
    """The model's result, and the symbol of its parameters if they are `symbolic`."""
    try:
        if capture == "export":
            raise FxFailure("torch.fx was not asked")
        copied = _double_copy(model)
        graph = trace(copied, arguments)
        parameters = open_parameters(copied, "p") if symbolic else None
        return Lowering(copied, graph).run(*inputs, enable_io_processing=False), parameters
    except FxFailure as failure:
        if capture == "fx":
            raise Unsupported(f"{failure}; rewrite that part, or {LOWER_WHOLE}") from failure
        try:
            return run_exported(_double_copy(model), arguments, inputs, symbolic)
        except Unsupported as error:
            if capture == "export":
                raise
            raise Unsupported(f"{failure}; and {error}") from error


def _double_copy(model: torch.nn.Module) -> torch.nn.Module:
    """The module in float64 on the CPU: every number of a shorter floating type is one of float64 as well."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta or tensor.is_complex() or tensor.is_quantized:
            kind = "on the meta device, without numbers" if tensor.is_meta else f"of type {tensor.dtype}"
            raise Unsupported(f"{name} of {type(model).__name__} is {kind}: give the model real floating-point weights")
    return copy.deepcopy(model).double().cpu().requires_grad_(False)


def _arguments(model: torch.nn.Module, example: tuple[torch.Tensor, ...]) -> Arguments:
    """The example's tensors by the names that `forward` gives its arguments."""
    signature = inspect.signature(model.forward)
    model_name = type(model).__name__
    try:
        arguments = signature.bind(*example).arguments
    except TypeError as error:
        raise Unsupported(f"{model_name}.forward{signature} does not take {len(example)} tensors: {error}") from None
    for argument, tensor in arguments.items():
        if not isinstance(tensor, torch.Tensor):
            raise Unsupported(f"{model_name}.forward takes *{argument}: name each input in its signature")
        if not tensor.is_floating_point():
            raise Unsupported(f"input {argument} of {model_name} is {tensor.dtype}: only floating-point inputs can be")
    return arguments
