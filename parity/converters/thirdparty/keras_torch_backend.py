"""Keras' own torch backend (https://keras.io), exported by `model.export(format="torch")` to plain torch operators.

Keras reads its backend while it is imported, and this process has it on TensorFlow: the export happens in another one,
which is started at the first conversion and kept.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from functools import cache
from typing import IO, TYPE_CHECKING, Any

from parity.converters.registry import converter
from parity.converters.thirdparty.folders import fresh_folder

if TYPE_CHECKING:
    import torch

LARGEST_BATCH = 1024


@converter("keras", "torch", name="keras-torch-backend", dtypes=("float32",), on_request=True)
def keras_torch_backend(model: Any, example: tuple[Any, ...]) -> torch.nn.Module:
    """The model loaded by Keras on torch and exported with a free batch size, as a module of torch operators.

    The module needs no Keras, but keeps the parameters' names and layouts that Keras gave them, and is for inference:
    it has no training mode. Raises what Keras and torch raise, as a RuntimeError.
    """
    import torch

    folder = fresh_folder()
    model.save(folder / "model.keras")
    process = _process()
    assert process.stdin and process.stdout
    try:
        print(folder, file=process.stdin, flush=True)
        answer = process.stdout.readline().strip()
    except OSError:
        answer = ""
    if answer != "done":
        if not answer:
            _process.cache_clear()
        raise RuntimeError(answer or "the process that has Keras on torch ended")
    program = torch.export.load(folder / "model.pt2")

    class Exported(torch.nn.Module):
        """An exported program, which refuses `train()` and `eval()`: it has one mode only."""

        def __init__(self) -> None:
            super().__init__()
            self.program = program.module()
            self.takes_list = isinstance(_like(model, []), list)

        def train(self, mode: bool = True) -> Exported:
            return self

        def forward(self, *inputs: torch.Tensor) -> Any:
            return self.program(list(inputs)) if self.takes_list else self.program(*inputs)

    return Exported()


def _like(model: Any, values: list[Any]) -> Any:
    """What the model's inputs are given as: a list, or one alone."""
    return values if isinstance(getattr(model, "_inputs_struct", None), list) else next(iter(values), None)


@cache
def _process() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", __name__]
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, text=True, **pipes)
    atexit.register(process.kill)
    return process


def serve(requests: IO[str], answers: IO[str]) -> None:
    """The other process: a folder in, with a model.keras; `done` out, or one line that says what went wrong."""
    import keras
    import torch

    torch.set_num_threads(1)
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    for line in requests:
        folder = line.strip()
        try:
            model = keras.models.load_model(f"{folder}/model.keras", compile=False)
            free = ((_like(model, [{0: batch} for _ in model.inputs]),),)  # as Keras calls forward(*args)
            model.export(f"{folder}/model.pt2", format="torch", dynamic_shapes=free, verbose=False)
            answer = "done"
        except Exception as error:
            said = [part for part in str(error).split("Original error: ")[-1].splitlines() if part.strip()]
            answer = f"{type(error).__name__}: {said[0] if said else ''}"
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    answering = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else writes to standard output is no answer
    serve(sys.stdin, answering)
