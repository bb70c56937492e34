"""The download container `.ppz`: an ONNX file, entropy-coded, given back byte for byte.

The file's weights are cut out; what is left (the graph and all names) is compressed as one text,
and each tensor by whatever codec makes it smallest. `docs/ppz-format.md` is the specification.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from compression.container_codecs import (
    Codec,
    IntegerReader,
    count_values,
    join_planes,
    pack_ans,
    pack_integers,
    pack_zstd,
    split_planes,
    unpack_ans,
    unpack_zstd,
)
from compression.errors import CheckpointInvalid
from compression.onnx_payload import FOUR_BYTES, INT8, Payload, payloads

# Like PNG's: the first byte is not text, and the line ends show a transfer that changed them.
MAGIC = b"\x89PPZ\r\n\x1a\n"
VERSION = 1

MAX_CONTENT_BYTES = 2**31 - 1
"""Protocol Buffers end here, and so does an ONNX file that carries its own weights."""

# magic, version, CRC-32 of all that follows it, content size, SHA-256 of the content, head sizes
_FIXED = struct.Struct("<8sI I Q32s QQ")
_CRC_END = 16

# Below this a tensor costs more to describe than to leave where it is.
_LEAST_CUT = 32
# Short vectors (scales, biases) are coded together: alone, each would pay for a frame.
_POOL_BELOW = 2048
_INT8_SPAN = 256


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    """One tensor: bytes of graph before it, its size, its codec and coded size, its histogram."""

    gap: int
    size: int
    codec: Codec
    coded_size: int
    low: int = 0
    counts: NDArray[np.int64] | None = None

    def integers(self) -> list[int]:
        values = [self.gap, self.size, int(self.codec), self.coded_size]
        if self.counts is not None:
            values += [self.low + 128, len(self.counts), *self.counts.tolist()]
        return values


def encode_onnx(onnx: bytes) -> bytes:
    """Return the container of a serialized ONNX model; equal models give equal bytes.

    Raises:
        CompressionError: The bytes are not an ONNX model.
        CheckpointInvalid: The model is larger than an ONNX file may be.
    """
    if len(onnx) > MAX_CONTENT_BYTES:
        raise CheckpointInvalid(f"The model has {len(onnx)} bytes; {MAX_CONTENT_BYTES} fit")
    entries: list[_Entry] = []
    graph, pool, coded = bytearray(), bytearray(), bytearray()
    position = 0
    for payload in payloads(onnx):
        if payload.end - payload.start < _LEAST_CUT:
            continue
        gap = payload.start - position
        graph += onnx[position : payload.start]
        data = onnx[payload.start : payload.end]
        entry, packed = _pack(data, payload, gap)
        entries.append(entry)
        if entry.codec is Codec.POOLED:
            pool += data
        coded += packed
        position = payload.end
    graph += onnx[position:]
    integers = [len(entries), *(value for entry in entries for value in entry.integers())]
    head = pack_integers(integers) + split_planes(bytes(pool)) + bytes(graph)
    packed_head = pack_zstd(head)
    digest = hashlib.sha256(onnx).digest()
    sizes = (len(head), len(packed_head))
    fixed = _FIXED.pack(MAGIC, VERSION, 0, len(onnx), digest, *sizes)
    rest = fixed[_CRC_END:] + packed_head + bytes(coded)
    return fixed[: _CRC_END - 4] + struct.pack("<I", zlib.crc32(rest)) + rest


def decode(container: bytes, *, max_bytes: int = MAX_CONTENT_BYTES) -> bytes:
    """Return the ONNX file of a container, byte for byte.

    Args:
        container: What `encode_onnx` made; it may be damaged or hostile.
        max_bytes: Largest file to give back; memory stays within a small multiple of it.

    Raises:
        CheckpointInvalid: It is not a container, of another version, damaged, or too large.
    """
    if len(container) < _FIXED.size or not container.startswith(MAGIC):
        raise CheckpointInvalid(f"Not a .ppz container ({len(container)} bytes, no signature)")
    _, version, crc, size, digest, head_size, packed_size = _FIXED.unpack_from(container)
    if version != VERSION:
        raise CheckpointInvalid(f"Container version is {version}; {VERSION} is known")
    if zlib.crc32(container[_CRC_END:]) != crc:
        raise CheckpointInvalid("The container is damaged: its checksum differs")
    if size > max_bytes:
        raise CheckpointInvalid(
            f"The container holds {size} bytes; at most {max_bytes} are allowed"
        )
    # Every entry of the head costs less than what it stands for, but for histograms of 256 counts.
    if packed_size > len(container) - _FIXED.size or head_size > 16 * size + 64:
        raise CheckpointInvalid(f"The head declares {packed_size} and {head_size} bytes")
    start = _FIXED.size + packed_size
    head = IntegerReader(unpack_zstd(container[_FIXED.size : start], head_size))
    entries = _read_entries(head, size, len(container) - start)
    content = _assemble(entries, head.rest(), container[start:], size)
    if hashlib.sha256(content).digest() != digest:
        raise CheckpointInvalid("The decoded model's SHA-256 differs from the container's")
    return content


def _pack(data: bytes, payload: Payload, gap: int) -> tuple[_Entry, bytes]:
    size = len(data)
    if payload.data_type in FOUR_BYTES and size < _POOL_BELOW and size % 4 == 0:
        return _Entry(gap, size, Codec.POOLED, 0), b""
    choices = [
        (_Entry(gap, size, Codec.RAW, size), data, 0),
        _coded(gap, size, Codec.ZSTD, pack_zstd(data)),
    ]
    if payload.data_type in FOUR_BYTES and size % 4 == 0:
        choices.append(_coded(gap, size, Codec.PLANES, pack_zstd(split_planes(data))))
    if payload.data_type == INT8:
        low, counts = count_values(data)
        if len(counts) > 1:
            packed = pack_ans(data, low, counts)
            entry = _Entry(gap, size, Codec.ANS, len(packed), low, counts)
            # The histogram shares the head's compression, which one frame of its own resembles.
            choices.append((entry, packed, len(pack_zstd(pack_integers(counts.tolist())))))
    entry, packed, _ = min(choices, key=lambda choice: len(choice[1]) + choice[2])
    return entry, packed


def _coded(gap: int, size: int, codec: Codec, packed: bytes) -> tuple[_Entry, bytes, int]:
    return _Entry(gap, size, codec, len(packed)), packed, 0


def _read_entries(head: IntegerReader, size: int, coded_size: int) -> list[_Entry]:
    """Read the table and check its sums before anything is allocated by it."""
    entries = []
    left, coded_left = size, coded_size
    for _ in range(head.read(size)):
        gap = head.read(left)
        length = head.read(left - gap)
        codec, coded = head.read(max(Codec)), head.read(coded_left)
        left -= gap + length
        coded_left -= coded
        low, counts = 0, None
        if codec == Codec.ANS:
            low, counts = _read_counts(head, length)
        entries.append(_Entry(gap, length, Codec(codec), coded, low, counts))
        if codec == Codec.RAW and coded != length:
            raise CheckpointInvalid(f"A raw tensor of {length} bytes is stored in {coded}")
        if codec == Codec.POOLED and (coded or length % 4):
            raise CheckpointInvalid(f"A pooled tensor has {length} bytes and {coded} of its own")
        if codec == Codec.PLANES and length % 4:
            raise CheckpointInvalid(f"A tensor of 4-byte elements has {length} bytes")
    if coded_left:
        raise CheckpointInvalid(f"The container has {coded_left} bytes that no tensor owns")
    return entries


def _read_counts(head: IntegerReader, length: int) -> tuple[int, NDArray[np.int64]]:
    low = head.read(_INT8_SPAN - 1) - 128
    values = head.read(_INT8_SPAN)
    if values < 2 or low + values > 128:
        raise CheckpointInvalid(f"A histogram of {values} values from {low} is not one of int8")
    counts = np.array([head.read(length) for _ in range(values)], np.int64)
    if int(counts.sum()) != length:
        raise CheckpointInvalid(f"A histogram counts {counts.sum()} of {length} values")
    return low, counts


def _assemble(entries: list[_Entry], rest: bytes, coded: bytes, size: int) -> bytes:
    pooled = sum(entry.size for entry in entries if entry.codec is Codec.POOLED)
    cut = sum(entry.size for entry in entries)
    if len(rest) != pooled + size - cut:
        raise CheckpointInvalid(
            f"The head ends in {len(rest)} bytes; {pooled + size - cut} are expected"
        )
    pool, graph = join_planes(rest[:pooled]), rest[pooled:]
    parts = []
    at_graph = at_pool = at_coded = 0
    for entry in entries:
        parts.append(graph[at_graph : at_graph + entry.gap])
        at_graph += entry.gap
        if entry.codec is Codec.POOLED:
            parts.append(pool[at_pool : at_pool + entry.size])
            at_pool += entry.size
            continue
        parts.append(_unpack(entry, coded[at_coded : at_coded + entry.coded_size]))
        at_coded += entry.coded_size
    parts.append(graph[at_graph:])
    return b"".join(parts)


def _unpack(entry: _Entry, data: bytes) -> bytes:
    if entry.codec is Codec.RAW:
        return data
    if entry.codec is Codec.ZSTD:
        return unpack_zstd(data, entry.size)
    if entry.codec is Codec.PLANES:
        return join_planes(unpack_zstd(data, entry.size))
    if entry.counts is None:
        raise CheckpointInvalid("An entropy-coded tensor has no histogram")
    return unpack_ans(data, entry.low, entry.counts)
