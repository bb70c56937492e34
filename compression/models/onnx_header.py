"""The frame of an ONNX file: its input's shape, read without ONNX, torch or the weights.

An ONNX file is protocol buffers: fields of a number, a wire type and a content. Only the lengths
of large fields are read; their contents are stepped over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import BinaryIO

from compression.errors import ModelRefused

# Field numbers of ModelProto, GraphProto, TensorProto, ValueInfoProto and what lies in it.
_MODEL_IR, _MODEL_GRAPH, _MODEL_OPSET = 1, 7, 8
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_TENSOR_NAME, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 8, 13, 14
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_TYPE_SHAPE = 1, 2, 1, 2
_SHAPE_DIM, _DIM_VALUE = 1, 1

_SMALL_BYTES = 1 << 16
"""Names and shapes are no longer than this."""


@dataclasses.dataclass(frozen=True, slots=True)
class OnnxHeader:
    """What the frame says.

    Attributes:
        nodes: Number of operators.
        input_shape: Sizes of the first input that is no weight, None where they are free.
    """

    nodes: int
    input_shape: tuple[int | None, ...]


def read_onnx_header(stream: BinaryIO, size_bytes: int) -> OnnxHeader:
    """Read the frame of an ONNX file.

    Args:
        stream: Seekable, at its beginning.
        size_bytes: Of the file.

    Raises:
        ModelRefused: The file is truncated or no ONNX model, or its weights lie outside it.
    """
    graph: tuple[int, int] | None = None
    found = set()
    for number, start, end, _ in _fields(stream, 0, size_bytes):
        found.add(number)
        if number == _MODEL_GRAPH:
            graph = (start, end)
    if graph is None or not {_MODEL_IR, _MODEL_OPSET} <= found:
        raise ModelRefused("The file is no ONNX model: it lacks a version, an opset or a graph")
    nodes, outputs = 0, 0
    weights: set[bytes] = set()
    inputs: list[tuple[bytes, tuple[int | None, ...]]] = []
    for number, start, end, _ in _fields(stream, *graph):
        nodes += number == _GRAPH_NODE
        outputs += number == _GRAPH_OUTPUT
        if number == _GRAPH_INITIALIZER:
            weights.add(_weight(stream, start, end))
        elif number == _GRAPH_INPUT:
            inputs.append(_input(stream, start, end))
    free = [shape for name, shape in inputs if name not in weights]
    if not nodes or len(free) != 1 or outputs != 1:
        raise ModelRefused(
            f"The ONNX graph has {nodes} nodes, {len(free)} inputs and {outputs} outputs; "
            "one input and one output are read"
        )
    return OnnxHeader(nodes, free[0])


def declared_shape(header: OnnxHeader) -> tuple[int, int, int]:
    """Return C, H, W as the file says.

    Raises:
        ModelRefused: It does not say them.
    """
    shape = header.input_shape
    sizes = [size for size in shape[1:] if size is not None and size > 0]
    if len(shape) != 4 or len(sizes) != 3:
        shown = ["free" if size is None else size for size in shape]
        raise ModelRefused(f"The ONNX file's input has shape {shown}; give input_shape as C, H, W")
    return sizes[0], sizes[1], sizes[2]


def _weight(stream: BinaryIO, start: int, end: int) -> bytes:
    name = b""
    for number, begin, stop, value in _fields(stream, start, end):
        if number == _TENSOR_NAME:
            name = _bytes(stream, begin, stop)
        if number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value):
            raise ModelRefused(
                f"The ONNX file keeps weights ({name.decode('utf-8', 'replace')!r}) in another "
                "file; save the model as one file"
            )
    return name


def _input(stream: BinaryIO, start: int, end: int) -> tuple[bytes, tuple[int | None, ...]]:
    name = b""
    dims: tuple[int | None, ...] = ()
    for number, begin, stop, _ in _fields(stream, start, end):
        if number == _VALUE_NAME:
            name = _bytes(stream, begin, stop)
        elif number == _VALUE_TYPE:
            for path in (_TYPE_TENSOR, _TENSOR_TYPE_SHAPE):
                inner = [f for f in _fields(stream, begin, stop) if f[0] == path]
                begin, stop = (inner[0][1], inner[0][2]) if inner else (stop, stop)
            dims = tuple(
                next((v for n, _, _, v in _fields(stream, a, b) if n == _DIM_VALUE), None)
                for n, a, b, _ in _fields(stream, begin, stop)
                if n == _SHAPE_DIM
            )
    return name, dims


def _bytes(stream: BinaryIO, start: int, end: int) -> bytes:
    if end - start > _SMALL_BYTES:
        raise ModelRefused(f"The ONNX file has a name of {end - start} bytes")
    stream.seek(start)
    return stream.read(end - start)


def _fields(stream: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int, int | None]]:
    """Yield number, begin and end of every field's content, and its value if it is an integer."""
    here = start
    while here < end:
        stream.seek(here)
        head = stream.read(20)
        tag, used = _varint(head, 0)
        number, wire = tag >> 3, tag & 7
        value: int | None = None
        begin = here + used
        if wire == 0:
            value, after = _varint(head, used)
            stop = here + after
        elif wire == 2:
            length, after = _varint(head, used)
            begin = here + after
            stop = begin + length
        elif wire in (1, 5):
            stop = begin + (8 if wire == 1 else 4)
        else:
            raise ModelRefused(f"The file is no ONNX model: wire type {wire} at byte {here}")
        if stop > end or number == 0:
            raise ModelRefused(
                f"The ONNX file is truncated or damaged: the field at byte {here} ends at byte "
                f"{stop}, beyond {end}"
            )
        yield number, begin, stop, value
        here = stop


def _varint(head: bytes, at: int) -> tuple[int, int]:
    value = 0
    for count, byte in enumerate(head[at : at + 10]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, at + count + 1
    raise ModelRefused("The file is no ONNX model: a number does not end")
