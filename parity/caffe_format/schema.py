"""Caffe's messages as Python classes, made from `caffe.proto` at run time: no protoc, no generated code, no network."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from parity.errors import ParityError

DIALECTS = ("bvlc", "ssd", "opencv")
"""Which Caffe a file is for: upstream; the SSD fork (Permute, Normalize); OpenCV's importer."""

_SOURCE = Path(__file__).with_name("caffe.proto")
_FIELD = re.compile(r"(optional|repeated|required) (\w+) (\w+) = (\d+)(?: \[(\w+) = ([^\]]+)\])?;")
_FieldProto = descriptor_pb2.FieldDescriptorProto


def check_dialect(dialect: str) -> str:
    """The dialect itself; raises ParityError for an unknown one."""
    if dialect not in DIALECTS:
        raise ParityError(f"no Caffe dialect {dialect!r}: {', '.join(DIALECTS)}")
    return dialect


def message(name: str, dialect: str) -> Any:
    """A new, empty message of Caffe's, such as `NetParameter`, with the fields that the dialect has."""
    return message_factory.GetMessageClass(_pool(dialect).FindMessageTypeByName(f"caffe.{name}"))()


@cache
def _pool(dialect: str) -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(parse(_SOURCE.read_text(encoding="utf-8"), check_dialect(dialect)))
    return pool


def parse(text: str, dialect: str) -> descriptor_pb2.FileDescriptorProto:
    """The descriptor of a `.proto` text in the plain form of `caffe.proto`: one statement a line, one-line enums."""
    lines = [line for line in text.splitlines() if _belongs(line, dialect)]
    names = set(re.findall(r"^message (\w+)", text, re.M))
    file = descriptor_pb2.FileDescriptorProto(name=f"caffe_{dialect}.proto", package="caffe", syntax="proto2")
    current: Any = None
    for line in lines:
        statement = line.split("//")[0].strip()
        if statement.startswith("message "):
            current = file.message_type.add(name=statement.split()[1])
        elif statement.startswith("enum "):
            _add_enum(current or file, statement)
        elif found := _FIELD.fullmatch(statement):
            _add_field(current, found.groups(), names)
        elif statement == "}":
            current = None
        elif statement:
            raise ValueError(f"caffe.proto: cannot read {statement!r}")
    return file


def _belongs(line: str, dialect: str) -> bool:
    # A message that other dialects have is harmless: nothing refers to it.
    _, _, only = line.partition("// only:")
    return not only or line.startswith("message") or dialect in only.split()


def _add_enum(scope: Any, statement: str) -> None:
    name, body = re.fullmatch(r"enum (\w+) \{(.*)\}", statement).groups()  # type: ignore[union-attr]
    enum = scope.enum_type.add(name=name)
    for value, number in re.findall(r"(\w+) = (\d+);", body):
        enum.value.add(name=value, number=int(number))


def _add_field(scope: Any, parts: tuple[str, ...], messages: set[str]) -> None:
    label, kind, name, number, option, value = parts
    field = scope.field.add(name=name, number=int(number), label=getattr(_FieldProto, f"LABEL_{label.upper()}"))
    scalar = getattr(_FieldProto, f"TYPE_{kind.upper()}", None)
    if scalar is not None:
        field.type = scalar
    else:
        own_enum = kind in {enum.name for enum in scope.enum_type}
        field.type = _FieldProto.TYPE_MESSAGE if kind in messages else _FieldProto.TYPE_ENUM
        field.type_name = f".caffe.{scope.name}.{kind}" if own_enum else f".caffe.{kind}"
    if option == "packed":
        field.options.packed = value == "true"
    elif option == "default":
        field.default_value = value.strip('"')
