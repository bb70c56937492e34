"""Lossless codecs for the bytes of one tensor; `docs/ppz-format.md` is their specification."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import constriction
import numpy as np
import zstandard
from numpy.typing import NDArray

from compression.errors import CheckpointInvalid

_LEVEL = 19


class Codec(enum.IntEnum):
    """How the bytes of a tensor are stored."""

    RAW = 0
    ZSTD = 1
    PLANES = 2
    ANS = 3
    POOLED = 4


def pack_zstd(data: bytes) -> bytes:
    """Compress to one zstd frame that declares its content size."""
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False).compress(data)


def unpack_zstd(data: bytes, size: int) -> bytes:
    """Decompress one frame of exactly `size` bytes.

    Raises:
        CheckpointInvalid: Not a frame, damaged, or of another size; nothing was allocated then.
    """
    try:
        # The library allocates what the frame declares, so the declaration is checked first.
        declared = zstandard.frame_content_size(data)
        if declared != size:
            raise CheckpointInvalid(f"A zstd frame declares {declared} bytes; {size} are expected")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise CheckpointInvalid(f"A zstd frame is damaged: {error}") from error


def split_planes(data: bytes) -> bytes:
    """Put the first bytes of all 4-byte elements first, then the second ones, and so on."""
    return np.frombuffer(data, np.uint8).reshape(-1, 4).T.tobytes()


def join_planes(data: bytes) -> bytes:
    """Undo `split_planes`; the length must be a multiple of 4."""
    return np.frombuffer(data, np.uint8).reshape(4, -1).T.tobytes()


def count_values(data: bytes) -> tuple[int, NDArray[np.int64]]:
    """Return the lowest int8 value and how often it and each value up to the highest occurs."""
    values = np.frombuffer(data, np.int8)
    low, high = int(values.min()), int(values.max())
    counts = np.bincount(values.astype(np.int64) - low, minlength=high - low + 1)
    return low, counts.astype(np.int64)


def pack_ans(data: bytes, low: int, counts: NDArray[np.int64]) -> bytes:
    """Entropy-code int8 values under the model that `counts` make; at least two values differ."""
    symbols = np.frombuffer(data, np.int8).astype(np.int32) - low
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(symbols, _model(counts))
    return bytes(coder.get_compressed().astype("<u4").tobytes())


def unpack_ans(data: bytes, low: int, counts: NDArray[np.int64]) -> bytes:
    """Undo `pack_ans`.

    Raises:
        CheckpointInvalid: The words are not such a code, or some are left over.
    """
    words = np.frombuffer(data, "<u4").astype(np.uint32) if len(data) % 4 == 0 else None
    if words is None or len(words) == 0 or words[-1] == 0:
        raise CheckpointInvalid(f"An ANS stream of {len(data)} bytes is not made of whole words")
    coder = constriction.stream.stack.AnsCoder(words)
    symbols = coder.decode(_model(counts), int(counts.sum()))
    if not coder.is_empty():
        raise CheckpointInvalid("An ANS stream holds more words than its values need")
    return bytes((symbols + low).astype(np.int8).tobytes())


def _model(counts: NDArray[np.int64]) -> object:
    return constriction.stream.model.Categorical(
        counts.astype(np.float64) / counts.sum(), perfect=False
    )


def pack_integers(values: Sequence[int]) -> bytes:
    """Write integers >= 0 in 7-bit groups, low group first, the high bit saying `more follows`."""
    out = bytearray()
    for value in values:
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return bytes(out)


class IntegerReader:
    """Reads back what `pack_integers` wrote."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def read(self, limit: int) -> int:
        """Return the next integer.

        Raises:
            CheckpointInvalid: The data end, or the integer is above `limit`.
        """
        value = shift = 0
        while True:
            if self.position >= len(self._data) or shift > 63:
                raise CheckpointInvalid("An integer of the head is cut off")
            byte = self._data[self.position]
            self.position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if value > limit:
            raise CheckpointInvalid(f"An integer of the head is {value}; at most {limit} fits")
        return value

    def rest(self) -> bytes:
        """Return everything that was not read yet."""
        return self._data[self.position :]
