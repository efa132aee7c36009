"""The reference converter keras→torch: a plain, readable `torch.nn.Module` with the same function, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parity.converters.registry import converter

if TYPE_CHECKING:
    from pathlib import Path

    import torch


@converter("keras", "torch", name="reference", dtypes=("float32", "float64"), requires=("h5py",))
def reference(
    model: Any, example: tuple[torch.Tensor, ...] | None = None, *, layout: str = "nhwc"
) -> torch.fx.GraphModule:
    """Rebuild a Keras 3 model in PyTorch, weights included.

    `model` is a live model (Sequential or functional) or the path of a `.keras` archive or of an `.h5` file; from a
    file, neither TensorFlow nor Keras is imported. `example` is not needed: a Keras model knows its shapes.

    The module has a submodule for each Keras layer, under the layer's name (characters that Python does not take in a
    name become `_`), and its `forward` takes the model's inputs in Keras' order. Parameters have torch's layouts, the
    precision of the Keras variables and their `trainable` flag; a layer that Keras shares is one submodule. Every
    tensor keeps Keras' axes inside, so that Flatten, Concatenate and axis arguments mean what they meant; convolutions
    see it through a permuted view, which is PyTorch's channels_last memory format and copies nothing.

    `layout="nchw"` makes inputs and outputs of two or more spatial axes channels-first at the boundary only.

    Raises Unsupported, in one line, for a layer without a lowering or for arguments that have no exact equivalent. A
    layer is added with `@parity.lowers("<ClassName>", to="torch")`: a function of a
    `parity.converters.keras_torch.layer.Layer` that returns a `torch.nn.Module`, which is then called as Keras called
    the layer. Raises ParityError for a model or a file that is no Keras model, and for another `layout`.
    """
    from parity.converters.keras_torch.convert import convert

    return convert(model, layout)


def emit(module: torch.fx.GraphModule, path: str | Path) -> tuple[Path, Path]:
    """Write a converted module as plain PyTorch: `path` (a `.py` file) and beside it the state dict (`.pt`).

    The source needs torch only. Its class `Model` has the submodules and the state dict of `module`, and `load()`
    gives an instance with the weights. Returns the two paths. Raises Unsupported for a submodule of a class that is
    neither torch's nor of this package.
    """
    from parity.converters.keras_torch.emit import write

    return write(module, path)
