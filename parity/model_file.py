"""The user's own model, named on a command line: a file that torch or Keras saved, or a function that builds it."""

from __future__ import annotations

import importlib
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from parity.errors import MissingPackage, ParityError
from parity.runtimes import representation_of

KERAS_FILES = (".keras", ".h5", ".hdf5")


ENDINGS = {"caffe": (".prototxt", ".caffemodel"), "onnx": (".onnx",), "casadi": (".casadi",), "torch": (".pt",),
           "optimization": (".nl", ".col")}  # fmt: skip


def load_model(name: str, *, trust: bool = False) -> Any:
    """Load `MODEL.pt` (a whole module, `torch.save(model, file)`), `MODEL.keras` or `.h5`, or `MODEL.onnx`.

    A name `module:function` builds the model. A pickle can run any code while it is read, so a file is refused without
    `trust`. Raises `ParityError`.
    """
    if Path(name).suffix == ".onnx":
        return read_onnx(Path(name))
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: the user's modules lie where the command is given
    model = _build(name) if _is_function(name) else _read(Path(name), trust)
    if representation_of(model) is None:
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        hint = "; a state dict holds no model: name a function that builds it, as module:function"
        raise ParityError(
            f"{name} gives a {kind}, not a torch.nn.Module or a Keras model{hint if isinstance(model, dict) else ''}"
        )
    return model


def path_of(name: str) -> str:
    """The path that a file of this name is meant for, if the user names none."""
    return "keras-torch" if not _is_function(name) and Path(name).suffix in KERAS_FILES else "torch-casadi"


def read_onnx(file: Path) -> Any:
    """The `onnx.ModelProto` in a file, checked; raises `ParityError` in one line."""
    if find_spec("onnx") is None:
        raise MissingPackage(f"{file} needs onnx: pip install 'pytest-parity[onnx]'")
    from parity.converters.onnx_caffe.graph import read

    return read(file)


def save_model(artifact: Any, stem: str) -> list[Path]:
    """Write a converted model to the file or files of its representation, named `stem` and their endings."""
    kind = representation_of(artifact)
    if kind == "optimization" and type(artifact).__name__ != "PyomoEmbedding":
        raise ParityError("of solvers' models, Pyomo's are written to a file: name a pyomo converter")
    files = [Path(stem + ending) for ending in ENDINGS[kind or ""]]
    try:
        if kind == "caffe":
            from parity.converters.onnx_caffe import save

            save(artifact, *files)
        elif kind == "onnx":
            files[0].write_bytes(artifact.SerializeToString())
        elif kind == "optimization":
            from parity.runtimes.optimization.pyomo import write_nl

            write_nl(artifact, files[0])
        elif kind == "casadi":
            artifact.save(str(files[0]))
        else:
            import torch

            torch.save(artifact, files[0])
    except (OSError, RuntimeError) as error:
        raise ParityError(f"cannot write {files[0]}: {_line(error)}") from error
    return files


def _is_function(name: str) -> bool:
    module, colon, function = name.partition(":")
    return bool(colon) and function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def _build(name: str) -> Any:
    module, _, function = name.partition(":")
    try:
        build = getattr(importlib.import_module(module), function)
        return build()
    except (Exception, SystemExit) as error:
        raise ParityError(f"cannot build {name}: {type(error).__name__}: {_line(error)}") from error


def _read(file: Path, trust: bool) -> Any:
    if not file.is_file():
        raise ParityError(f"no file {file}: give a model saved by torch.save(model, file), or module:function")
    if file.suffix in KERAS_FILES:
        return _read_keras(file, trust)
    import torch

    _require_whole(file)
    if not trust:
        raise ParityError(f"{file} is a pickle, which can run any code when it is read: add --trust if you trust it")
    try:
        return torch.load(file, map_location="cpu", weights_only=False)
    except Exception as error:
        raise ParityError(f"cannot read {file}: {type(error).__name__}: {_line(error)}") from error


def _read_keras(file: Path, trust: bool) -> Any:
    """Python code inside (Lambda layers) is read only if it is trusted: Keras itself asks for that."""
    from parity.cases.keras_backend import keras

    try:
        return keras.models.load_model(file, compile=False, safe_mode=not trust)
    except Exception as error:
        hint = "; add --trust if you trust it" if "unsafe deserialization" in str(error) else ""
        raise ParityError(f"cannot read {file}: {type(error).__name__}: {_line(error)}{hint}") from error


def _require_whole(file: Path) -> None:
    """torch reads damaged weights without a word, as other weights: the checksums of the archive tell."""
    try:
        with zipfile.ZipFile(file) as archive:
            names, damaged = archive.namelist(), archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        why = "it is cut off, or not a file that torch.save wrote (torch 1.6 or later)"
        raise ParityError(f"cannot read {file}: {why}") from error
    if damaged:
        raise ParityError(f"{file} is damaged: the checksum of {damaged} is wrong; save the model again")
    if any("/code/" in name for name in names):
        raise ParityError(f"{file} holds TorchScript: save the module itself with torch.save(model, file)")
    if not any(name.endswith("/data.pkl") for name in names):
        raise ParityError(f"{file} is not a model saved by torch.save(model, file)")


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
