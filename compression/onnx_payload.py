"""Where the raw bytes of the weights lie inside a serialized ONNX model.

Protocol Buffers write a message as fields: a key (number and wire type), then a value. Weights are
ModelProto.graph (7) > GraphProto.initializer (5) > TensorProto.raw_data (9); reading the few keys
on the way keeps every other byte of the file untouched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from compression.errors import CompressionError

_GRAPH, _INITIALIZER, _DIMS, _DATA_TYPE, _RAW_DATA = 7, 5, 1, 2, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

INT8 = 3
"""TensorProto.INT8."""

FOUR_BYTES = frozenset({1, 6})
"""TensorProto.FLOAT and INT32."""


@dataclasses.dataclass(frozen=True, slots=True)
class Payload:
    """The raw bytes of one tensor: `model[start:end]`, of a TensorProto data type and a shape.

    The shape is what the file says; nothing holds it to the number of bytes.
    """

    start: int
    end: int
    data_type: int
    shape: tuple[int, ...] = ()


def payloads(model: bytes) -> list[Payload]:
    """Return the raw weights of a serialized model, in file order.

    Raises:
        CompressionError: The bytes are not a protocol buffer of this shape.
    """
    found = []
    for number, start, end in _messages(model, 0, len(model)):
        if number != _GRAPH:
            continue
        for inner, tensor_start, tensor_end in _messages(model, start, end):
            if inner == _INITIALIZER:
                found += _payload(model, tensor_start, tensor_end)
    return found


def _payload(model: bytes, start: int, end: int) -> list[Payload]:
    data_type = 0
    shape: list[int] = []
    raw: tuple[int, int] | None = None
    for number, wire, first, last in _fields(model, start, end):
        if number == _DATA_TYPE and wire == _VARINT:
            data_type = first
        elif number == _RAW_DATA and wire == _BYTES:
            raw = (first, last)
        elif number == _DIMS and wire == _VARINT:
            shape.append(first)
        elif number == _DIMS and wire == _BYTES:
            position = first
            while position < last:
                value, position = _varint(model, position, last)
                shape.append(value)
    return [Payload(*raw, data_type, tuple(shape))] if raw else []


def _messages(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    for number, wire, first, last in _fields(data, start, end):
        if wire == _BYTES:
            yield number, first, last


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, wire type, and either value and 0, or the span of the bytes."""
    position = start
    while position < end:
        key, position = _varint(data, position, end)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, position = _varint(data, position, end)
            yield number, wire, value, 0
            continue
        if wire == _BYTES:
            length, position = _varint(data, position, end)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise CompressionError(f"Not an ONNX model: wire type {wire} at byte {position}")
        if position + length > end:
            raise CompressionError(f"Not an ONNX model: a field at byte {position} ends beyond it")
        yield number, wire, position, position + length
        position += length


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
    raise CompressionError(f"Not an ONNX model: an integer is cut off at byte {position}")
