"""The encoder's search for structure in a tensor: few values, repeated blocks, a grid, zeros."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from compression.container_fit import entropy_bytes
from compression.container_values import MAX_BLOCK, MAX_STEPS, Codec, Layout, Numbers

MAX_ENTRIES = 4096
_SAMPLE = 2**13
# A value that occurs less often costs no less in the table than as an escape.
_WORTH_AN_ENTRY = 3
_LEAST_GRID_SHARE = 0.9
_GRID_PROBES = 8
_NONE = np.zeros(0, np.uint32)

Divisions = tuple[tuple[int, int], ...]


def divisions(shape: Sequence[int], block: int = 1) -> Divisions:
    """Return the axes of output and of input channels, in symbols of `block` elements.

    Where a block holds several input channels, the second axis is the block's place in its row.
    """
    if len(shape) < 2 or 0 in shape:
        return ()
    row = int(np.prod(shape[1:]))
    field = int(np.prod(shape[2:]))
    if row % block:
        return ()
    if field % block:
        return ((row // block, shape[0]), (1, row // block))
    return ((row // block, shape[0]), (field // block, shape[1]))


def int8_layout(data: bytes) -> Layout:
    """Return the values of an int8 tensor as symbols."""
    values = np.frombuffer(data, np.int8)
    low, high = int(values.min()), int(values.max())
    alphabet = high - low + 1
    symbols = values.astype(np.int32) - low
    centre = min(max(-low, 0), alphabet - 1)
    return Layout(Codec.INT8, symbols, alphabet, centre, (low + 128, alphabet), _NONE, _NONE)


def float_layouts(bits: NDArray[np.uint32], shape: Sequence[int]) -> Iterator[Layout]:
    """Yield the ways in which symbols can tell a float32 tensor; none where nothing repeats.

    Args:
        bits: The elements' bit patterns, flat.
        shape: The tensor's.
    """
    if Numbers(bits).narrow() is not None:
        yield Layout(Codec.PALETTE, np.zeros(len(bits), np.int32), 1, 0, (1, 0), _NONE, bits)
    sample = bits[:: max(1, len(bits) // _SAMPLE)]
    if 2 * len(np.unique(sample)) > len(sample) > 256:
        yield from _grids(bits, shape)
        return
    values, places, counts = np.unique(bits, return_inverse=True, return_counts=True)
    order = np.argsort(_sortable(values), kind="stable")
    values, counts = values[order], counts[order]
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    inverse = rank[places]
    yield from _palettes(bits, values, inverse, counts)
    if 2 * len(values) <= len(bits):
        yield from _vectors(inverse, values, shape)
    yield from _grids(bits, shape)


def layout_bytes(layout: Layout) -> float:
    """Return about how many bytes the layout takes beside its symbols and histograms."""
    tables = [layout.escapes] if layout.codec is Codec.GRID else [layout.table, layout.escapes]
    size = numbers_bytes(layout.table, narrow=False) if layout.codec is Codec.GRID else 0.0
    return size + 6 + sum(numbers_bytes(table) for table in tables)


def numbers_bytes(bits: NDArray[np.uint32], *, narrow: bool = True) -> float:
    """Return about how many bytes numbers take among the words or halves."""
    if not len(bits):
        return 0.0
    halves = Numbers(bits).narrow() if narrow else None
    planes = (bits if halves is None else halves).view(np.uint8).reshape(len(bits), -1)
    if len(bits) < 1024:
        return 0.9 * planes.size
    return sum(entropy_bytes(plane) for plane in np.ascontiguousarray(planes.T))


def _sortable(bits: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return integers that are ordered as the floats are."""
    return np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))


def _palettes(
    bits: NDArray[np.uint32],
    values: NDArray[np.uint32],
    inverse: NDArray[np.int32],
    counts: NDArray[np.int64],
) -> Iterator[Layout]:
    if len(values) <= min(MAX_ENTRIES, len(bits)):
        yield _palette(bits, values, inverse, np.ones(len(values), bool))
    frequent = counts >= _WORTH_AN_ENTRY
    if int(frequent.sum()) > MAX_ENTRIES:
        frequent = counts > np.sort(counts)[-MAX_ENTRIES]
    if frequent.any() and not frequent.all():
        yield _palette(bits, values, inverse, frequent)
    common = counts == counts.max()
    if int(common.sum()) == 1 and int(frequent.sum()) > 1:
        yield _palette(bits, values, inverse, common)


def _palette(
    bits: NDArray[np.uint32],
    values: NDArray[np.uint32],
    inverse: NDArray[np.int32],
    entries: NDArray[np.bool_],
) -> Layout:
    count = int(entries.sum())
    number = np.where(entries, np.cumsum(entries) - 1, count).astype(np.int32)
    symbols = number[inverse]
    escapes = bits[symbols == count]
    table = values[entries]
    nearest = int(np.abs(np.nan_to_num(table.view(np.float32))).argmin())
    alphabet = count + (len(escapes) > 0)
    return Layout(Codec.PALETTE, symbols, alphabet, nearest, (1, count), table, escapes)


def _vectors(
    inverse: NDArray[np.int32], values: NDArray[np.uint32], shape: Sequence[int]
) -> Iterator[Layout]:
    """Yield the block size at which the fewest bytes are expected."""
    row = int(np.prod(shape[1:])) if len(shape) > 1 else len(inverse)
    best: tuple[float, Layout] | None = None
    for block in range(2, MAX_BLOCK + 1):
        if row % block or len(inverse) % block:
            continue
        blocks = inverse.reshape(-1, block)
        if len(blocks) > 64 and 2 * len(np.unique(_hash(blocks[:_SAMPLE]))) > len(blocks[:_SAMPLE]):
            continue
        _, first, number, counts = np.unique(
            _hash(blocks), return_index=True, return_inverse=True, return_counts=True
        )
        if len(first) > MAX_ENTRIES or not np.array_equal(blocks[first[number]], blocks):
            continue
        # Frequent ones first: the histogram falls, and is told in few bytes.
        order = np.argsort(-counts, kind="stable")
        rank = np.empty(len(order), np.int32)
        rank[order] = np.arange(len(order), dtype=np.int32)
        table = values[blocks[first[order]].ravel()]
        shape_of = (block, len(order))
        layout = Layout(Codec.PALETTE, rank[number], len(order), 0, shape_of, table, _NONE, block)
        indices = float((counts * np.log2(counts.sum() / counts)).sum() / 8)
        expected = indices + numbers_bytes(table) + len(order)
        if best is None or expected < best[0]:
            best = expected, layout
    if best is not None:
        yield best[1]


def _hash(blocks: NDArray[np.int32]) -> NDArray[np.uint64]:
    factors = np.random.default_rng(blocks.shape[1]).integers(1, 2**63, blocks.shape[1])
    products = (blocks.astype(np.uint64) + np.uint64(1)) * (
        factors.astype(np.uint64) | np.uint64(1)
    )
    hashes: NDArray[np.uint64] = products.sum(1, dtype=np.uint64)
    return hashes


def _grids(bits: NDArray[np.uint32], shape: Sequence[int]) -> Iterator[Layout]:
    rows = {1, shape[0]} if len(shape) > 1 and shape[0] else {1}
    for count in sorted(rows):
        if len(bits) and len(bits) % count == 0 and len(bits) // count >= 2:
            layout = _grid(bits.reshape(count, -1))
            if layout is not None:
                yield layout


def _grid(bits: NDArray[np.uint32]) -> Layout | None:
    """Find for each row a scale of which its elements are float32 multiples."""
    values = bits.view(np.float32)
    steps = np.zeros(values.shape, np.int32)
    fits = np.zeros(values.shape, bool)
    scales = np.zeros(len(values), np.float32)
    for row, elements in enumerate(values):
        scales[row] = _scale(elements)
        steps[row], fits[row] = _multiples(elements, scales[row])
        probed = row + 1 == min(_GRID_PROBES, len(values))
        if probed and fits[: row + 1].mean() < _LEAST_GRID_SHARE:
            return None
    if fits.mean() < _LEAST_GRID_SHARE:
        return None
    low, high = int(steps[fits].min()), int(steps[fits].max())
    width = high - min(low, 0) + 1
    if 4 * width > max(4 * bits.size, 1024):
        return None
    zero = max(-low, 0)
    symbols = np.where(fits, steps + zero, width).ravel()
    escapes = bits[~fits]
    alphabet = width + (len(escapes) > 0)
    told = (len(values), zero, width)
    return Layout(
        Codec.GRID, symbols.astype(np.int32), alphabet, zero, told, scales.view(np.uint32), escapes
    )


def _multiples(
    elements: NDArray[np.float32], scale: np.float32
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return the whole numbers of steps, and where they give the elements bit for bit."""
    with np.errstate(all="ignore"):
        ratio = elements / scale if scale else np.zeros_like(elements)
        steps = np.rint(np.nan_to_num(ratio, nan=0.0)).clip(1 - MAX_STEPS, MAX_STEPS - 1)
        rebuilt = steps.astype(np.int32).astype(np.float32) * scale
    return steps.astype(np.int32), rebuilt.view(np.uint32) == elements.view(np.uint32)


def _scale(elements: NDArray[np.float32]) -> np.float32:
    """Return the float32 scale that explains most elements of a row; 0 where none does."""
    sizes = np.unique(np.abs(elements[np.isfinite(elements)]))
    sizes = sizes[sizes > 0].astype(np.float64)
    if not len(sizes):
        return np.float32(0)
    gaps = np.diff(sizes)
    gaps = gaps[gaps > sizes[-1] / MAX_STEPS]
    starts = {sizes[0], sizes[0] / 2, sizes[0] / 3}
    if len(gaps):
        starts |= {float(gaps.min()), float(np.median(gaps))}
    best, most = np.float32(0), 0
    # Any part of a scale explains as much; the largest makes the smallest numbers.
    for start in sorted(starts, reverse=True):
        scale = start
        for tolerance in (0.02, 0.05):
            # Errors of the start grow with the multiple, so the small multiples speak first.
            ratio = sizes / scale
            near = np.abs(ratio - np.rint(ratio)) < tolerance
            whole = np.rint(ratio[near])
            if not whole.any():
                break
            scale = float((sizes[near] * whole).sum() / (whole**2).sum())
        centre = int(np.float32(scale).view(np.uint32))
        candidates = [np.uint32(max(centre + ulp, 1)).view(np.float32) for ulp in range(-3, 4)]
        for candidate in candidates:
            matched = int(_multiples(elements, candidate)[1].sum())
            if matched > most:
                best, most = candidate, matched
        if most == len(elements):
            break
    return best
