"""The byte codecs of the container; `docs/ppz-format.md` is their specification."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import zstandard

from compression.errors import CheckpointInvalid

_LEVEL = 19


def pack_zstd(data: bytes, level: int = _LEVEL) -> bytes:
    """Compress to one zstd frame that declares its content size."""
    return zstandard.ZstdCompressor(level=level, write_checksum=False).compress(data)


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


def split_planes(data: bytes, width: int = 4) -> bytes:
    """Put the first bytes of all `width`-byte elements first, then the second ones, and so on."""
    return np.frombuffer(data, np.uint8).reshape(-1, width).T.tobytes()


def join_planes(data: bytes, width: int = 4) -> bytes:
    """Undo `split_planes`; the length must be a multiple of `width`."""
    return np.frombuffer(data, np.uint8).reshape(width, -1).T.tobytes()


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


class Cursor:
    """Hands out the bytes of a section, front to back."""

    def __init__(self, data: bytes, name: str) -> None:
        self._data = memoryview(data)
        self._name = name
        self._position = 0

    def take(self, size: int) -> memoryview:
        """Return the next bytes.

        Raises:
            CheckpointInvalid: Fewer are left.
        """
        end = self._position + size
        if end > len(self._data):
            raise CheckpointInvalid(
                f"Section {self._name} has {len(self._data)} bytes; {end} are needed"
            )
        part = self._data[self._position : end]
        self._position = end
        return part

    def finish(self) -> None:
        """Check that all was taken.

        Raises:
            CheckpointInvalid: Something is left.
        """
        if self._position != len(self._data):
            raise CheckpointInvalid(
                f"Section {self._name} has {len(self._data)} bytes; {self._position} are used"
            )
