"""Writing a Caffe net layer by layer: every lowering adds layers through a `Writer` and gets `Blob`s back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from parity.caffe_format.model import add_layer
from parity.caffe_format.schema import message
from parity.errors import Unsupported

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Blob:
    """A value that the net computes: the name of a top, and its shape with the batch axis first."""

    name: str
    shape: Shape

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)


class Writer:
    """A net under construction in one dialect."""

    def __init__(self, name: str, dialect: str) -> None:
        self.dialect = dialect
        self.net = message("NetParameter", dialect)
        self.net.name = name
        self.stem = "layer"
        """What the next layers are named after: the output of the ONNX node being lowered."""
        self._names: set[str] = set()
        self._fragile: dict[str, Blob] = {}
        """OpenCV: results that it would merge wrongly with a linear layer behind, if that is the only reader."""

    def input(self, name: str, shape: Shape) -> Blob:
        """Declare an input of the net."""
        self._check(shape)
        blob = Blob(self._name(name), shape)
        self.net.input.append(blob.name)
        self.net.input_shape.add(dim=shape)
        return blob

    def add(
        self, kind: str, bottoms: Sequence[Blob], shape: Shape, blobs: Sequence[np.ndarray] = (), **parameters: Any
    ) -> Blob:
        """Append a layer with one top of that shape; `parameters` are messages as dicts (`power_param={…}`).

        The layer bears its top's name: OpenCV finds outputs by the layer's.
        """
        (blob,) = self.add_many(kind, bottoms, [shape], blobs, **parameters)
        return blob

    def add_many(
        self,
        kind: str,
        bottoms: Sequence[Blob],
        shapes: Sequence[Shape],
        blobs: Sequence[np.ndarray] = (),
        **parameters: Any,
    ) -> list[Blob]:
        """Append a layer with several tops."""
        for shape in shapes:
            self._check(shape)
        self._keep_apart(kind, bottoms)
        tops = [Blob(self._name(self.stem), shape) for shape in shapes]
        names = [bottom.name for bottom in bottoms]
        layer = add_layer(self.net, kind, tops[0].name, names, [top.name for top in tops], blobs)
        for name, fields in parameters.items():
            parameter = getattr(layer, name)
            parameter.SetInParent()
            _set(parameter, fields)
        grouped = kind == "Deconvolution" and layer.convolution_param.group > 1
        if self.has("opencv") and (grouped or layer.power_param.power != 1):
            self._fragile[tops[0].name] = tops[0]
        return tops

    def _keep_apart(self, kind: str, bottoms: Sequence[Blob]) -> None:
        """OpenCV merges (c·x)^p and a linear layer behind it, as its only reader, into (c^p·a·x)^p: wrong unless p = 1.

        And it scales the weights of a Deconvolution with groups in the wrong order. A second reader keeps them apart.
        """
        for bottom in bottoms:
            if kind in ("Power", "Scale", "BatchNorm") and bottom.name in self._fragile:
                self.silence([self._fragile.pop(bottom.name)])

    def silence(self, blobs: Sequence[Blob]) -> None:
        """Read tops that nothing else reads, so that they are no outputs of the net."""
        for blob in blobs:
            add_layer(self.net, "Silence", self._name(f"{blob.name}/unread"), [blob.name], [])

    def has(self, *dialects: str) -> bool:
        """Whether the net is in one of these dialects."""
        return self.dialect in dialects

    def _check(self, shape: Shape) -> None:
        if self.has("opencv") and len(shape) < 2:
            raise Unsupported(f"a blob of shape {shape}: OpenCV's have at least two axes; keep the batch axis, or bvlc")
        if 0 in shape:
            raise Unsupported(f"a blob of shape {shape} holds nothing: Caffe has no empty blobs")
        if len(shape) > 32:
            raise Unsupported(f"a blob of {len(shape)} axes: Caffe's have at most 32")

    def _name(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self._names:
            number += 1
            name = f"{wanted}/{number}"
        self._names.add(name)
        return name


def _set(parameter: Any, fields: dict[str, Any]) -> None:
    for field, value in fields.items():
        kind = parameter.DESCRIPTOR.fields_by_name[field]
        if isinstance(value, list | tuple):
            getattr(parameter, field).extend(value)
        elif isinstance(value, dict):
            child = getattr(parameter, field)
            child.SetInParent()
            _set(child, value)
        elif isinstance(value, str) and kind.enum_type is not None:
            setattr(parameter, field, kind.enum_type.values_by_name[value].number)
        else:
            setattr(parameter, field, value)
