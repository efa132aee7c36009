"""Writes a converted module as plain PyTorch source: the classes it needs, copied from this package, and its graph."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.fx
from torch import nn

from parity.errors import Unsupported

PACKAGE = "parity.converters.keras_torch"
FILES = (
    "windows", "activations", "contractions", "transposed", "pooling", "normalization", "recurrent", "attention",
    "shapes", "resizing", "regularization", "merges", "operations",
)  # fmt: skip
"""Where modules and functions are defined; each needs only torch and what an earlier one, or itself, defines."""
IMPORTS = {
    "math": "import math",
    "operator": "import operator",
    "Callable": "from collections.abc import Callable",
    "Sequence": "from collections.abc import Sequence",
    "reduce": "from functools import reduce",
    "Path": "from pathlib import Path",
    "Any": "from typing import Any",
    "torch": "import torch",
    "F": "import torch.nn.functional as F",
    "Tensor": "from torch import Tensor",
    "nn": "from torch import nn",
}


def write(module: torch.fx.GraphModule, path: str | Path) -> tuple[Path, Path]:
    """See `parity.converters.keras_torch.emit`."""
    source_path = Path(path).with_suffix(".py")
    state_path = source_path.with_suffix(".pt")
    source_path.write_text(source_of(module, state_path.name), encoding="utf-8")
    torch.save(module.state_dict(), state_path)
    return source_path, state_path


def source_of(module: torch.fx.GraphModule, state_file: str) -> str:
    """The text of a Python file that defines `Model` and `load`."""
    classes: list[str] = []
    needed: set[str] = set()
    _write_class(module, "Model", classes, needed)
    load = (
        f'def load(path: str | Path = Path(__file__).with_name("{state_file}")) -> Model:\n'
        '    """The model with its weights, in eval mode."""\n'
        "    model = Model()\n"
        "    model.load_state_dict(torch.load(path, weights_only=True), assign=True)\n"
        "    return model.eval()"
    )
    body = "\n\n\n".join([*_definitions_for(needed), *classes, load])
    imports = [line for name, line in IMPORTS.items() if re.search(rf"\b{name}\b", body)]
    standard = [line for line in imports if "torch" not in line]
    blocks = [
        "from __future__ import annotations",
        "\n".join(standard),
        "\n".join(sorted(set(imports) - set(standard))),
    ]
    return "\n\n".join(block for block in blocks if block) + f"\n\n\n{body}\n"


# --- a graph as a class ---------------------------------------------------------------------------------------------


def _write_class(module: torch.fx.GraphModule, name: str, classes: list[str], needed: set[str]) -> None:
    lines = [f"class {name}(nn.Module):", "    def __init__(self) -> None:", "        super().__init__()"]
    for child_name, child in module.named_children():
        if isinstance(child, torch.fx.GraphModule):
            class_name = _unused(type(child).__name__, classes)
            _write_class(child, class_name, classes, needed)
            lines.append(f"        self.{child_name} = {class_name}()")
        else:
            lines.append(f"        self.{child_name} = {constructor(child, needed)}")
    lines += [f"        self.{child}.requires_grad_(False)" for child in _frozen(module)]
    lines += ["", *(f"    {line}" if line else "" for line in _forward(module, needed))]
    classes.append("\n".join(lines))


def _unused(name: str, classes: list[str]) -> str:
    taken = {match for text in classes for match in re.findall(r"^class (\w+)", text)} | set(_definitions()) | {"Model"}
    unique, number = name, 1
    while unique in taken:
        unique, number = f"{name}{number}", number + 1
    return unique


def _frozen(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Paths of the largest submodules none of whose parameters is trainable; nested graphs say so themselves."""
    for name, child in module.named_children():
        trainable = [parameter.requires_grad for parameter in child.parameters()]
        if isinstance(child, torch.fx.GraphModule) or not trainable:
            continue
        if not any(trainable):
            yield prefix + name
        elif not all(trainable):
            yield from _frozen(child, f"{prefix}{name}.")


def _forward(module: torch.fx.GraphModule, needed: set[str]) -> list[str]:
    code = module.graph.python_code("self")
    source = re.sub(r";  (?:\w+ = )+None(?=\s|$)", "", code.src).strip()
    for alias, value in code.globals.items():
        home = getattr(value, "__module__", None)
        if isinstance(home, str) and home.startswith(PACKAGE):
            needed.add(value.__name__)
            source = re.sub(rf"\b{re.escape(alias)}\b", value.__name__, source)
    source = source.replace("torch.nn.functional.", "F.").replace("_operator_getitem", "operator.getitem")
    return source.splitlines()


# --- a module as the call that makes it -----------------------------------------------------------------------------


def constructor(module: nn.Module, needed: set[str]) -> str:
    """The expression that builds a module of this form. Adds to `needed` what it takes from this package.

    Every constructor here and in torch keeps its arguments as attributes of the same names.
    """
    kind = type(module)
    if kind.__module__.startswith(PACKAGE):
        needed.add(kind.__name__)
        name = kind.__name__
    elif kind.__module__.startswith("torch.nn."):
        name = f"nn.{kind.__name__}"
    else:
        raise Unsupported(
            f"{kind.__module__}.{kind.__qualname__} has no plain source: its class is not torch's; save it whole"
        )
    arguments = []
    for parameter in _parameters(kind):
        value = getattr(module, parameter.name)
        if parameter.name == "bias":
            value = value is not None
        if parameter.default is parameter.empty and parameter.kind is not parameter.KEYWORD_ONLY:
            arguments.append(_literal(value, needed))
        elif value is not parameter.default and not _equal(value, parameter.default):
            arguments.append(f"{parameter.name}={_literal(value, needed)}")
    return f"{name}({', '.join(arguments)})"


def _parameters(kind: type) -> Iterator[inspect.Parameter]:
    """Of the constructor, and of its base's where it passes on keywords."""
    seen = {"device", "dtype"}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        for parameter in parameters:
            named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if named and parameter.name not in seen and not parameter.name.startswith("_"):
                seen.add(parameter.name)
                yield parameter
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return


def _equal(value: Any, default: Any) -> bool:
    return type(value) is type(default) and isinstance(value, bool | int | float | str | tuple) and value == default


def _literal(value: Any, needed: set[str]) -> str:
    if isinstance(value, nn.Module):
        return constructor(value, needed)
    if callable(value):
        home = getattr(value, "__module__", "") or "torch"
        if home.startswith(PACKAGE):
            needed.add(value.__name__)
            return str(value.__name__)
        return torch.fx.graph._get_qualified_name(value).replace("torch.nn.functional.", "F.")
    if isinstance(value, torch.Size):
        return repr(tuple(value))
    return repr(value)


# --- definitions to copy --------------------------------------------------------------------------------------------


@cache
def _definitions() -> dict[str, tuple[str, frozenset[str]]]:
    """Source and used names of everything that `FILES` define, apart from lowerings, in order."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for file in FILES:
        text = Path(__file__).with_name(f"{file}.py").read_text(encoding="utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.decorator_list:
                name = node.name
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
            else:
                continue
            used = frozenset(item.id for item in ast.walk(node) if isinstance(item, ast.Name)) - {name}
            found.setdefault(name, (ast.get_source_segment(text, node) or "", used))
    return found


def _definitions_for(needed: set[str]) -> list[str]:
    definitions, pending, wanted = _definitions(), list(needed), set()
    while pending:
        name = pending.pop()
        if name in definitions and name not in wanted:
            wanted.add(name)
            pending += definitions[name][1]
    return [source for name, (source, _) in definitions.items() if name in wanted]
