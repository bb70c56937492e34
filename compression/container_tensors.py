"""The encoder's choice of a codec for each tensor: what takes the fewest bytes, tables included."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compression.container_codecs import pack_integers, pack_zstd
from compression.container_fit import fit
from compression.container_layouts import (
    divisions,
    float_layouts,
    int8_layout,
    layout_bytes,
    numbers_bytes,
)
from compression.container_symbols import Coding
from compression.container_values import Codec, Layout
from compression.onnx_payload import FOUR_BYTES, INT8, Payload

# Below this a tensor costs more to describe than to leave in the graph's text.
_LEAST_CUT = 32
# Tensors of other types hold shapes and axes; the text's own compression suits short ones.
_LEAST_OTHER = 2048
_POOL_BELOW = 2048
_QUICK_LEVEL = 3
# A quick frame this much larger than the best codec will not win at the slow level either.
_HOPELESS = 1.25


class TensorWriter:
    """Collects the coded tensors of a file, section by section.

    Attributes:
        tensors: Number of tensors added.
        table: What the table says of them.
        steps: Bins and levels of their histograms.
        words: Four-byte numbers that are stored as they are.
        halves: Two-byte numbers.
        bulk: Tensors of codec `RAW` and `ZSTD`.
        symbols: Symbols and their histograms, in order.
    """

    def __init__(self) -> None:
        self.tensors = 0
        self.table = bytearray()
        self.steps = bytearray()
        self.words = bytearray()
        self.halves = bytearray()
        self.bulk = bytearray()
        self.symbols: list[tuple[NDArray[np.int32], Coding]] = []

    def add(self, data: bytes, payload: Payload, gap: int) -> bool:
        """Add a tensor that follows `gap` bytes of text; return whether it was taken."""
        known = payload.data_type == INT8 or payload.data_type in FOUR_BYTES
        if len(data) < (_LEAST_CUT if known else _LEAST_OTHER):
            return False
        self.tensors += 1
        self.table += pack_integers([gap, len(data)])
        pooled = payload.data_type in FOUR_BYTES and len(data) % 4 == 0
        best: tuple[Layout, Coding] | None = None
        size = float(len(data))
        if pooled:
            size = min(size, numbers_bytes(np.frombuffer(data, "<u4"), narrow=False))
        for layout, axes in _layouts(data, payload):
            beside = layout_bytes(layout)
            if beside >= size:
                continue
            coding, coded = fit(layout.symbols, layout.alphabet, axes, layout.centre)
            if beside + coded < size:
                best, size = (layout, coding), beside + coded
        # Short vectors (scales, biases) are better off together than each in a frame.
        short = pooled and len(data) < _POOL_BELOW
        frame = data if short else pack_zstd(data, _QUICK_LEVEL)
        if not short and len(frame) < _HOPELESS * size:
            frame = pack_zstd(data)
        if len(frame) < size:
            self.table += pack_integers([Codec.ZSTD, len(frame)])
            self.bulk += frame
        elif best is not None:
            self._add_symbols(*best)
        elif pooled:
            self.table += pack_integers([Codec.POOLED])
            self.words += data
        else:
            self.table += pack_integers([Codec.RAW])
            self.bulk += data
        return True

    def _add_symbols(self, layout: Layout, coding: Coding) -> None:
        table, words, halves = layout.write()
        integers, steps = coding.write()
        self.table += pack_integers([layout.codec]) + table + integers
        self.steps += steps
        self.words += words
        self.halves += halves
        self.symbols.append((layout.symbols, coding))


def _layouts(data: bytes, payload: Payload) -> list[tuple[Layout, tuple[tuple[int, int], ...]]]:
    elements = len(data) // (1 if payload.data_type == INT8 else 4)
    shape = payload.shape if np.prod(payload.shape, dtype=object) == elements else (elements,)
    if payload.data_type == INT8:
        return [(int8_layout(data), divisions(shape))]
    if payload.data_type not in FOUR_BYTES or len(data) % 4:
        return []
    bits = np.frombuffer(data, "<u4").astype(np.uint32)
    return [(layout, divisions(shape, layout.block)) for layout in float_layouts(bits, shape)]
