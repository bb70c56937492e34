"""Tensors as symbols: what a symbol stands for, and how the values are built from symbols."""

from __future__ import annotations

import dataclasses
import enum

import numpy as np
from numpy.typing import NDArray

from compression.container_codecs import Cursor, IntegerReader, pack_integers
from compression.container_symbols import MAX_ALPHABET, SymbolReader, read_coding
from compression.errors import CheckpointInvalid

MAX_BLOCK = 64
MAX_STEPS = 2**15


class Codec(enum.IntEnum):
    """How the bytes of a tensor are stored."""

    RAW = 0
    ZSTD = 1
    INT8 = 3
    POOLED = 4
    PALETTE = 5
    GRID = 6


class _Flag(enum.IntFlag):
    NARROW_TABLE = 1
    NARROW_ESCAPES = 2
    ESCAPES = 4


_ALL_FLAGS = 7


@dataclasses.dataclass(frozen=True, slots=True)
class Numbers:
    """Float32 numbers as bit patterns; in the file as float16 where all are exactly such."""

    bits: NDArray[np.uint32]

    def narrow(self) -> NDArray[np.uint16] | None:
        """Return the float16 bit patterns, if nothing is lost."""
        with np.errstate(all="ignore"):
            halves = self.bits.view(np.float32).astype(np.float16)
            exact = np.array_equal(halves.astype(np.float32).view(np.uint32), self.bits)
        return halves.view(np.uint16) if exact else None


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """One way to tell a tensor by symbols.

    Attributes:
        codec: `INT8`, `PALETTE` or `GRID`.
        symbols: One for each element or block.
        alphabet: Number of symbols, with the one that means `escaped`.
        centre: The symbol of the value 0, or the nearest.
        shape: Codec's own integers: the lowest value of `INT8`; the block and the number of
            entries of `PALETTE`; the rows, the zero symbol and the number of steps of `GRID`.
        table: Entries or scales, as float32 bit patterns.
        escapes: Values no symbol stands for, in order.
        block: Elements that a symbol stands for.
    """

    codec: Codec
    symbols: NDArray[np.int32]
    alphabet: int
    centre: int
    shape: tuple[int, ...]
    table: NDArray[np.uint32]
    escapes: NDArray[np.uint32]
    block: int = 1

    def write(self) -> tuple[bytes, bytes, bytes]:
        """Return the integers of the table, and what is added to the words and to the halves."""
        if self.codec is Codec.INT8:
            return pack_integers(self.shape), b"", b""
        flags, words, halves = 0, b"", b""
        narrow = Numbers(self.table).narrow() if self.codec is Codec.PALETTE else None
        if narrow is not None:
            flags, halves = flags | _Flag.NARROW_TABLE, halves + narrow.tobytes()
        else:
            words += self.table.tobytes()
        if len(self.escapes):
            flags |= _Flag.ESCAPES
            narrow = Numbers(self.escapes).narrow()
            if narrow is not None:
                flags, halves = flags | _Flag.NARROW_ESCAPES, halves + narrow.tobytes()
            else:
                words += self.escapes.tobytes()
        return pack_integers([int(flags), *self.shape]), words, halves


@dataclasses.dataclass(frozen=True, slots=True)
class Sections:
    """The decoder's sections, each read from front to back."""

    table: IntegerReader
    steps: Cursor
    words: Cursor
    halves: Cursor
    symbols: SymbolReader

    def numbers(self, count: int, *, narrow: bool) -> NDArray[np.uint32]:
        """Take float32 bit patterns from the words, or from the halves."""
        if not narrow:
            return np.frombuffer(self.words.take(4 * count), "<u4")
        halves = np.frombuffer(self.halves.take(2 * count), "<f2")
        with np.errstate(all="ignore"):
            return halves.astype(np.float32).view(np.uint32)


def read_int8(sections: Sections, size: int) -> bytes:
    """Decode an int8 tensor of `size` values.

    Raises:
        CheckpointInvalid: A number is out of its range, or a section ends.
    """
    low, alphabet = sections.table.read(255) - 128, sections.table.read(256)
    if alphabet < 1 or low + alphabet > 128:
        raise CheckpointInvalid(f"{alphabet} values from {low} are not those of int8")
    coding, classes = read_coding(sections.table, sections.steps, alphabet, size)
    out = np.empty(size, np.int8)
    position = 0
    for part in sections.symbols.read(coding, classes, size):
        out[position : position + len(part)] = part + low
        position += len(part)
    return out.tobytes()


def read_palette(sections: Sections, size: int) -> bytes:
    """Decode a float32 tensor whose blocks take few values.

    Raises:
        CheckpointInvalid: A number is out of its range, or a section ends.
    """
    flags = sections.table.read(_ALL_FLAGS)
    block, entries = sections.table.read(MAX_BLOCK), sections.table.read(MAX_ALPHABET - 1)
    if block < 1 or size % (4 * block) or entries * block * 4 > size:
        raise CheckpointInvalid(f"{entries} blocks of {block} do not make up {size} bytes")
    count = size // (4 * block)
    table = np.zeros((entries + 1, block), np.uint32)
    known = sections.numbers(entries * block, narrow=bool(flags & _Flag.NARROW_TABLE))
    table[:-1] = known.reshape(entries, block)
    escaped = bool(flags & _Flag.ESCAPES)
    coding, classes = read_coding(sections.table, sections.steps, entries + escaped, count)
    if count and coding.alphabet == 0:
        raise CheckpointInvalid(f"A palette of no entries stands for {count} blocks")
    out = np.empty((count, block), np.uint32)
    position = 0
    for part in sections.symbols.read(coding, classes, count):
        piece = out[position : position + len(part)]
        np.take(table, part, axis=0, out=piece, mode="clip")
        if escaped:
            places = np.flatnonzero(part == entries)
            narrow = bool(flags & _Flag.NARROW_ESCAPES)
            piece[places] = sections.numbers(len(places) * block, narrow=narrow).reshape(-1, block)
        position += len(part)
    return out.astype("<u4", copy=False).tobytes()


def read_grid(sections: Sections, size: int) -> bytes:
    """Decode a float32 tensor whose rows are whole multiples of a scale of each row.

    Raises:
        CheckpointInvalid: A number is out of its range, or a section ends.
    """
    flags = sections.table.read(_ALL_FLAGS)
    rows, zero = sections.table.read(size // 4), sections.table.read(MAX_STEPS)
    steps = sections.table.read(2 * MAX_STEPS)
    if rows < 1 or steps < 1 or steps * 4 > max(size, 1024) or size % (4 * rows):
        raise CheckpointInvalid(f"{rows} rows of {steps} steps do not make up {size} bytes")
    scales = sections.numbers(rows, narrow=False).view(np.float32)
    escaped = bool(flags & _Flag.ESCAPES)
    count = size // 4
    coding, classes = read_coding(sections.table, sections.steps, steps + escaped, count)
    out = np.empty(count, np.float32)
    places, values = [], []
    position = 0
    for part in sections.symbols.read(coding, classes, count):
        out[position : position + len(part)] = part - zero
        if escaped:
            found = np.flatnonzero(part == steps)
            places.append(found + position)
            narrow = bool(flags & _Flag.NARROW_ESCAPES)
            values.append(sections.numbers(len(found), narrow=narrow))
        position += len(part)
    with np.errstate(all="ignore"):
        out.reshape(rows, -1)[:] *= scales[:, None]
    if escaped and places:
        out.view(np.uint32)[np.concatenate(places)] = np.concatenate(values)
    return out.astype("<f4", copy=False).tobytes()
