"""A Caffe model in memory, and its files: `.prototxt` (the layers, as text) and `.caffemodel` (with the weights)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from google.protobuf.message import DecodeError

from parity.caffe_format.schema import check_dialect, message
from parity.errors import ParityError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class CaffeModel:
    """A network with its weights, in one dialect of Caffe."""

    net: Any
    """The `NetParameter` message: layers and weights."""
    dialect: str
    outputs: tuple[str, ...]
    """The blobs that are the model's outputs, in order. In a file they are the tops that no layer reads."""

    @property
    def inputs(self) -> dict[str, Shape]:
        """Name and shape of every input blob, batch axis first, in order."""
        shapes = {name: tuple(shape.dim) for name, shape in zip(self.net.input, self.net.input_shape, strict=False)}
        for layer in self.net.layer:
            if layer.type == "Input":
                declared = layer.input_param.shape
                for place, top in enumerate(layer.top):
                    shapes[top] = tuple(declared[min(place, len(declared) - 1)].dim)
        return shapes

    def layer(self, name: str) -> Any:
        """The `LayerParameter` of that name; raises ParityError if there is none."""
        for layer in self.net.layer:
            if layer.name == name:
                return layer
        raise ParityError(f"no layer {name!r}: {', '.join(layer.name for layer in self.net.layer)}")

    def blobs(self, name: str) -> list[np.ndarray]:
        """Copies of a layer's weights as float32 arrays, in Caffe's order (weights, then bias)."""
        return [blob_array(blob) for blob in self.layer(name).blobs]

    def set_blob(self, name: str, index: int, values: np.ndarray) -> None:
        """Overwrite one weight blob in place; raises ParityError unless the shape is the one it has."""
        blob = self.layer(name).blobs[index]
        if np.shape(values) != blob_shape(blob):
            raise ParityError(f"blob {index} of layer {name!r} has shape {blob_shape(blob)}, not {np.shape(values)}")
        fill_blob(blob, values)

    def prototxt(self) -> str:
        """The network without its weights, as protobuf text."""
        bare = type(self.net)()
        bare.CopyFrom(self.net)
        for layer in bare.layer:
            layer.ClearField("blobs")
        return str(text_format.MessageToString(bare))

    def caffemodel(self) -> bytes:
        """The network with its weights, as binary protobuf."""
        return bytes(self.net.SerializeToString())


def blob_shape(blob: Any) -> Shape:
    """Shape of a `BlobProto`; the four old fields are read where there is no `shape`."""
    if blob.HasField("shape"):
        return tuple(blob.shape.dim)
    if any(blob.HasField(axis) for axis in ("num", "channels", "height", "width")):
        return (blob.num, blob.channels, blob.height, blob.width)
    return ()


def blob_array(blob: Any) -> np.ndarray:
    """Values of a `BlobProto` as a new float32 array."""
    values = np.array(blob.data if len(blob.data) else blob.double_data, np.float32)
    return values.reshape(blob_shape(blob))


def fill_blob(blob: Any, values: np.ndarray) -> None:
    """Write an array into a `BlobProto`."""
    array = np.ascontiguousarray(values, "<f4")
    blob.Clear()
    blob.shape.dim.extend(np.shape(values))
    # A packed field is its tag, its length and the numbers as they lie in memory: a hundred times faster than a list.
    raw = array.tobytes()
    blob.MergeFromString(bytes([blob.DESCRIPTOR.fields_by_name["data"].number << 3 | 2]) + _varint(len(raw)) + raw)


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def unread_tops(net: Any) -> tuple[str, ...]:
    """The blobs that no layer reads, in the order they are made: what Caffe calls the outputs of a net.

    A layer that works in place makes its blob anew.
    """
    loose: dict[str, None] = dict.fromkeys(net.input)
    for layer in net.layer:
        for bottom in layer.bottom:
            loose.pop(bottom, None)
        loose.update(dict.fromkeys(layer.top))
    return tuple(loose)


def save(model: CaffeModel, prototxt: str | Path, caffemodel: str | Path) -> None:
    """Write the two files."""
    Path(prototxt).write_text(model.prototxt(), encoding="utf-8")
    Path(caffemodel).write_bytes(model.caffemodel())


def load(prototxt: str | Path, caffemodel: str | Path | None = None, dialect: str = "bvlc") -> CaffeModel:
    """Read the two files; raises ParityError, in one line, for files that are not what they should be.

    The text is read strictly: a field that the dialect does not have is an error. The layers come from the text, the
    weights from the binary file's layers of the same name, as Caffe does it.
    """
    weights = None if caffemodel is None else _read(caffemodel)
    text = _read(prototxt)
    try:
        return parse(text.decode("utf-8"), weights, dialect)
    except UnicodeDecodeError:
        raise ParityError(f"{prototxt} is not text: give the .prototxt first, then the .caffemodel") from None
    except ParityError as error:
        raise ParityError(f"{prototxt}: {error}") from None


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ParityError(f"cannot read {path}: {error.strerror}") from None


def parse(prototxt: str, caffemodel: bytes | None = None, dialect: str = "bvlc") -> CaffeModel:
    """The model that a prototxt and the bytes of a caffemodel describe; raises ParityError in one line."""
    net = message("NetParameter", check_dialect(dialect))
    try:
        text_format.Parse(prototxt, net)
    except text_format.ParseError as error:
        raise ParityError(f"not a prototxt of {dialect} Caffe: {error}".replace("\n", " ")) from None
    if caffemodel is not None:
        _take_blobs(net, parse_binary(caffemodel, dialect))
    return CaffeModel(net, dialect, unread_tops(net))


def parse_binary(caffemodel: bytes, dialect: str = "bvlc") -> Any:
    """The `NetParameter` in the bytes of a caffemodel; raises ParityError in one line."""
    net = message("NetParameter", check_dialect(dialect))
    try:
        net.ParseFromString(caffemodel)
    except DecodeError:
        raise ParityError(f"not a caffemodel, or cut short: {len(caffemodel)} bytes do not parse") from None
    return net


def _take_blobs(net: Any, weights: Any) -> None:
    stored = {layer.name: layer.blobs for layer in weights.layer if len(layer.blobs)}
    for layer in net.layer:
        if layer.name in stored:
            layer.ClearField("blobs")
            layer.blobs.extend(stored[layer.name])


def add_layer(
    net: Any, kind: str, name: str, bottoms: Sequence[str], tops: Sequence[str], blobs: Sequence[np.ndarray] = ()
) -> Any:
    """Append a layer to a `NetParameter`; its parameters are for the caller to set."""
    layer = net.layer.add(name=name, type=kind, bottom=bottoms, top=tops)
    for values in blobs:
        fill_blob(layer.blobs.add(), values)
    return layer
