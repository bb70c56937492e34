"""The first version of the download container: still read, no longer written.

`docs/ppz-format.md` has its specification at the end.
"""

from __future__ import annotations

import dataclasses
import enum

import constriction
import numpy as np
from numpy.typing import NDArray

from compression.container_codecs import IntegerReader, join_planes, unpack_zstd
from compression.errors import CheckpointInvalid

_INT8_SPAN = 256


class _Codec(enum.IntEnum):
    RAW = 0
    ZSTD = 1
    PLANES = 2
    ANS = 3
    POOLED = 4


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    """One tensor: bytes of graph before it, its size, its codec and coded size, its histogram."""

    gap: int
    size: int
    codec: _Codec
    coded_size: int
    low: int = 0
    counts: NDArray[np.int64] | None = None


def decode_v1(body: bytes, size: int, head_size: int, packed_size: int) -> bytes:
    """Return the content of a container of version 1.

    Args:
        body: All that follows the fixed part.
        size: Bytes of the content.
        head_size: Bytes of the head when decompressed.
        packed_size: Bytes of the head as stored.

    Raises:
        CheckpointInvalid: The sizes do not add up, or a code is damaged.
    """
    # Every entry of the head costs less than what it stands for, but for histograms of 256 counts.
    if packed_size > len(body) or head_size > 16 * size + 64:
        raise CheckpointInvalid(f"The head declares {packed_size} and {head_size} bytes")
    head = IntegerReader(unpack_zstd(body[:packed_size], head_size))
    entries = _read_entries(head, size, len(body) - packed_size)
    return _assemble(entries, head.rest(), body[packed_size:], size)


def _read_entries(head: IntegerReader, size: int, coded_size: int) -> list[_Entry]:
    """Read the table and check its sums before anything is allocated by it."""
    entries = []
    left, coded_left = size, coded_size
    for _ in range(head.read(size)):
        gap = head.read(left)
        length = head.read(left - gap)
        codec, coded = head.read(max(_Codec)), head.read(coded_left)
        left -= gap + length
        coded_left -= coded
        low, counts = 0, None
        if codec == _Codec.ANS:
            low, counts = _read_counts(head, length)
        entries.append(_Entry(gap, length, _Codec(codec), coded, low, counts))
        if codec == _Codec.RAW and coded != length:
            raise CheckpointInvalid(f"A raw tensor of {length} bytes is stored in {coded}")
        if codec == _Codec.POOLED and (coded or length % 4):
            raise CheckpointInvalid(f"A pooled tensor has {length} bytes and {coded} of its own")
        if codec == _Codec.PLANES and length % 4:
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
    pooled = sum(entry.size for entry in entries if entry.codec is _Codec.POOLED)
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
        if entry.codec is _Codec.POOLED:
            parts.append(pool[at_pool : at_pool + entry.size])
            at_pool += entry.size
            continue
        parts.append(_unpack(entry, coded[at_coded : at_coded + entry.coded_size]))
        at_coded += entry.coded_size
    parts.append(graph[at_graph:])
    return b"".join(parts)


def _unpack(entry: _Entry, data: bytes) -> bytes:
    if entry.codec is _Codec.RAW:
        return data
    if entry.codec is _Codec.ZSTD:
        return unpack_zstd(data, entry.size)
    if entry.codec is _Codec.PLANES:
        return join_planes(unpack_zstd(data, entry.size))
    if entry.counts is None:
        raise CheckpointInvalid("An entropy-coded tensor has no histogram")
    return _unpack_ans(data, entry.low, entry.counts)


def _unpack_ans(data: bytes, low: int, counts: NDArray[np.int64]) -> bytes:
    words = np.frombuffer(data, "<u4").astype(np.uint32) if len(data) % 4 == 0 else None
    if words is None or len(words) == 0 or words[-1] == 0:
        raise CheckpointInvalid(f"An ANS stream of {len(data)} bytes is not made of whole words")
    model = constriction.stream.model.Categorical(
        counts.astype(np.float64) / counts.sum(), perfect=False
    )
    coder = constriction.stream.stack.AnsCoder(words)
    symbols = coder.decode(model, int(counts.sum()))
    if not coder.is_empty():
        raise CheckpointInvalid("An ANS stream holds more words than its values need")
    return bytes((symbols + low).astype(np.int8).tobytes())
