"""The header of a safetensors file, checked in full before anything reads the tensors.

Reference:
    https://github.com/huggingface/safetensors, "Format": 8 bytes little-endian length of the
    header, a JSON object of tensor name to dtype, shape and data offsets, then the data without
    holes.
"""

from __future__ import annotations

import json
import math
from typing import Any, BinaryIO, TypeGuard

from compression.errors import ModelRefused

MAX_HEADER_BYTES = 100_000_000
"""The limit of the reference implementation."""

DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "F32": 4,
    "I64": 8,
    "F64": 8,
}
"""Size of one value; types that no trainable weight has are left out."""


def check_safetensors(stream: BinaryIO, size_bytes: int) -> None:
    """Require a complete, gapless, unambiguous file.

    Args:
        stream: At the file's start.
        size_bytes: Of the whole file.

    Raises:
        ModelRefused: Naming the tensor, the value and the limit.
    """
    header_bytes = int.from_bytes(stream.read(8), "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise ModelRefused(
            f"The safetensors header claims {header_bytes} bytes; "
            f"at most {MAX_HEADER_BYTES} are accepted"
        )
    if 8 + header_bytes > size_bytes:
        raise ModelRefused(
            f"The safetensors file is truncated: its header claims {header_bytes} bytes, "
            f"the file has {size_bytes}"
        )
    tensors = _parse(stream.read(header_bytes))
    data_bytes = size_bytes - 8 - header_bytes
    extents = sorted((*_extent(name, entry), name) for name, entry in tensors.items())
    position, previous = 0, ""
    for start, end, name in extents:
        if end > data_bytes:
            raise ModelRefused(
                f"The safetensors file is truncated or damaged: tensor {name!r} ends at byte "
                f"{end} of the data, which has {data_bytes}"
            )
        if start < position:
            raise ModelRefused(
                f"Tensors {previous!r} and {name!r} of the safetensors file overlap at byte {start}"
            )
        if start > position:
            raise ModelRefused(
                f"The safetensors file has a hole of {start - position} bytes before {name!r}"
            )
        position, previous = end, name
    if position != data_bytes:
        raise ModelRefused(
            f"The safetensors file has {data_bytes - position} bytes behind its last tensor"
        )


def _parse(header: bytes) -> dict[str, dict[str, Any]]:
    try:
        tensors = json.loads(header.decode(), object_pairs_hook=_unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ModelRefused(f"The safetensors header is not JSON: {error}") from error
    if not isinstance(tensors, dict):
        raise ModelRefused("The safetensors header is not a JSON object")
    tensors.pop("__metadata__", None)
    if not tensors:
        raise ModelRefused("The safetensors file holds no tensors")
    return tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise ModelRefused(f"The safetensors header names {name!r} twice")
        table[name] = value
    return table


def _extent(name: str, entry: object) -> tuple[int, int]:
    """Return the byte range of a tensor, which must fit its dtype and shape."""
    if not isinstance(entry, dict):
        raise ModelRefused(f"Entry {name!r} of the safetensors header is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise ModelRefused(
            f"Tensor {name!r} has the type {dtype!r}; accepted are {', '.join(DTYPE_BYTES)}"
        )
    if not _counts(shape):
        raise ModelRefused(f"Tensor {name!r} has the shape {shape!r}; it must be a list of counts")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ModelRefused(f"Tensor {name!r} has the data offsets {offsets!r}, no [begin, end]")
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    start, end = offsets
    if end - start != expected:
        raise ModelRefused(
            f"Tensor {name!r} of type {dtype} and shape {shape} needs {expected} bytes; "
            f"its offsets {offsets} span {end - start}"
        )
    return start, end


def _counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)
