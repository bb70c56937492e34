"""Symbols of a small alphabet, entropy-coded under static histograms.

The symbols of a tensor are split into classes by what row and column of the tensor they lie in,
and each class has a histogram of its own: output and input channels of a trained network differ
in scale and in their share of zeros. `docs/ppz-format.md` is the specification.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator

import constriction
import numpy as np
from numpy.typing import NDArray

from compression.container_codecs import Cursor, IntegerReader, pack_integers
from compression.errors import CheckpointInvalid

MAX_ALPHABET = 2**16
MAX_BIN = 63
RUN = 2**18
"""Symbols that are put in the order of their classes at a time; it bounds the decoder's memory."""

# round(2^(i/8) * 2^16): the mantissas of eighths of an octave.
_EIGHTHS = np.array([65536, 71468, 77936, 84990, 92682, 101070, 110218, 120194], np.int64)
_MAX_LEVEL = 31 * 8
_BELL_TOP = 30 * 8
MAX_SLOPE = 79
MAX_FLOOR = 30


class Form(enum.IntEnum):
    """How the histograms of a tensor are told."""

    COUNTS = 0
    LEVELS_1 = 1
    LEVELS_2 = 2
    LEVELS_4 = 3
    LEVELS_8 = 4
    BELL = 5


LEVELS_PER_OCTAVE = {Form.LEVELS_1: 1, Form.LEVELS_2: 2, Form.LEVELS_4: 4, Form.LEVELS_8: 8}


@dataclasses.dataclass(frozen=True, slots=True)
class Axis:
    """One division of the symbols: symbol `i` has the bin `bins[i // inner % len(bins)]`."""

    inner: int
    bins: NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, slots=True)
class Coding:
    """The histograms of one tensor's symbols.

    Attributes:
        alphabet: Symbols are 0 to alphabet - 1.
        axes: At most two; the class of a symbol is the sum of its bins.
        form: What `parameters` mean.
        parameters: One row for each class that has symbols: counts, levels, or for `BELL` the two
            slopes and the floor.
        centre: Only for `BELL`: the symbol at its top.
    """

    alphabet: int
    axes: tuple[Axis, ...]
    form: Form
    parameters: NDArray[np.int64]
    centre: int = 0

    def weights(self) -> NDArray[np.int64]:
        """Return how likely each symbol is: a row for each class, a column for each symbol."""
        if self.form is Form.COUNTS:
            return self.parameters
        if self.form is Form.BELL:
            return bell(self.parameters, self.alphabet, self.centre)
        return level_weights(self.parameters, LEVELS_PER_OCTAVE[self.form])

    def write(self) -> tuple[bytes, bytes]:
        """Return the integers of the table and the bytes of the steps section."""
        if self.alphabet < 2:
            return b"", b""
        integers = [len(self.axes)]
        for axis in self.axes:
            integers += [axis.inner, len(axis.bins)]
        integers.append(int(self.form))
        steps = b"".join(axis.bins.tobytes() for axis in self.axes)
        if self.form is Form.COUNTS:
            integers += self.parameters.ravel().tolist()
            return pack_integers(integers), steps
        if self.form is Form.BELL:
            integers.append(self.centre)
        return pack_integers(integers), steps + self.parameters.astype(np.uint8).tobytes()


def read_coding(
    table: IntegerReader, steps: Cursor, alphabet: int, symbols: int
) -> tuple[Coding, NDArray[np.uint8] | None]:
    """Read what `Coding.write` wrote, and return the class of each symbol where there are many.

    Raises:
        CheckpointInvalid: A number is out of its range, or a section ends.
    """
    if alphabet < 2:
        return Coding(alphabet, (), Form.COUNTS, np.ones((1, alphabet), np.int64)), None
    axes = []
    for _ in range(table.read(2)):
        inner, count = table.read(symbols), table.read(symbols)
        if inner * count == 0 or symbols % (inner * count):
            raise CheckpointInvalid(f"An axis of {count} x {inner} does not divide {symbols}")
        bins = np.frombuffer(steps.take(count), np.uint8)
        if int(bins.max()) > MAX_BIN:
            raise CheckpointInvalid(f"A bin is {bins.max()}; at most {MAX_BIN} is allowed")
        axes.append(Axis(inner, bins))
    classes = class_map(axes, symbols)
    present = 1 if classes is None else int(np.count_nonzero(np.bincount(classes)))
    if present > 1 and present * alphabet > symbols:
        raise CheckpointInvalid(f"{present} histograms of {alphabet} stand for {symbols} symbols")
    form = Form(table.read(max(Form)))
    centre = 0
    if form is Form.COUNTS:
        counts = [table.read(2**31) for _ in range(present * alphabet)]
        parameters = np.array(counts, np.int64).reshape(present, alphabet)
        if int(parameters.sum(1).min()) == 0:
            raise CheckpointInvalid(f"A histogram of {alphabet} symbols counts none")
    elif form is Form.BELL:
        centre = table.read(alphabet - 1)
        parameters = _bytes(steps, present, 3)
        if int(parameters[:, :2].max()) > MAX_SLOPE or int(parameters[:, 2].max()) > MAX_FLOOR:
            raise CheckpointInvalid(f"A bell's slopes and floor are {parameters.max(0).tolist()}")
    else:
        parameters = _bytes(steps, present, alphabet)
        if int(parameters.max()) > 31 * LEVELS_PER_OCTAVE[form] or not parameters.any(1).all():
            raise CheckpointInvalid(f"Levels of {alphabet} symbols reach {parameters.max()}")
    return Coding(alphabet, tuple(axes), form, parameters, centre), classes


def _bytes(steps: Cursor, rows: int, columns: int) -> NDArray[np.int64]:
    return np.frombuffer(steps.take(rows * columns), np.uint8).reshape(rows, columns).astype(int)


def class_map(axes: list[Axis] | tuple[Axis, ...], symbols: int) -> NDArray[np.uint8] | None:
    """Return the class of each symbol; None where all are of one."""
    if not axes:
        return None
    total = np.zeros(symbols, np.uint8)
    for axis in axes:
        total.reshape(-1, len(axis.bins) * axis.inner)[:] += np.repeat(axis.bins, axis.inner)
    return total


def level_weights(levels: NDArray[np.int64], per_octave: int) -> NDArray[np.int64]:
    """Return 2^((level - 1) / per_octave) in fixed point with 16 bits; 0 for level 0."""
    eighths = (levels - 1) * (8 // per_octave)
    return np.where(levels > 0, _EIGHTHS[eighths % 8] << np.maximum(eighths, 0) // 8, 0)


def slope(index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number that an index of a slope stands for: 0, or about 2^(index / 4 + 2)."""
    return np.where(index > 0, (4 + index % 4) << index // 4, 0)


def bell(parameters: NDArray[np.int64], alphabet: int, centre: int) -> NDArray[np.int64]:
    """Return weights that fall by `a |k| + b k^2` octaves with the distance k from the centre.

    With b = 0 that is Laplace's density, with a = 0 Gauss's.

    Args:
        parameters: Rows of the indices of a and b (in units of 2^-19 octaves, see `slope`), and of
            the floor in octaves below the top, under which no weight falls.
        alphabet: Number of symbols.
        centre: The symbol at the top.
    """
    distance = np.abs(np.arange(alphabet, dtype=np.int64) - centre)
    a, b = slope(parameters[:, :1]), slope(parameters[:, 1:2])
    fall = (a * distance + b * distance**2) >> 16
    eighths = _BELL_TOP - np.minimum(fall, 8 * parameters[:, 2:])
    weights: NDArray[np.int64] = _EIGHTHS[eighths % 8] << eighths // 8
    return weights


def runs(classes: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.int64], list[int]]]:
    """Yield for each run its start, the order of its symbols, and how many are of each class."""
    present = np.flatnonzero(np.bincount(classes, minlength=256))
    for start in range(0, len(classes), RUN):
        part = classes[start : start + RUN]
        sizes = np.bincount(part, minlength=256)[present].tolist()
        yield start, np.argsort(part, kind="stable"), sizes


class SymbolWriter:
    """Collects symbols in the order in which they are decoded, and codes them all at once."""

    def __init__(self) -> None:
        self._parts: list[tuple[NDArray[np.int32], object]] = []

    def add(self, symbols: NDArray[np.int32], coding: Coding) -> None:
        """Append the symbols of one tensor."""
        if coding.alphabet < 2:
            return
        models = [_model(row) for row in coding.weights()]
        classes = class_map(coding.axes, len(symbols))
        if classes is None:
            self._parts.append((symbols, models[0]))
            return
        for start, order, sizes in runs(classes):
            ordered, position = symbols[start : start + RUN][order], 0
            for size, model in zip(sizes, models, strict=True):
                if size:
                    self._parts.append((ordered[position : position + size], model))
                    position += size

    def words(self) -> bytes:
        """Return the stream."""
        coder = constriction.stream.stack.AnsCoder()
        for symbols, model in reversed(self._parts):
            coder.encode_reverse(symbols, model)
        return bytes(coder.get_compressed().astype("<u4").tobytes())


class SymbolReader:
    """Reads the tensors' symbols back, one tensor after the other."""

    def __init__(self, data: bytes) -> None:
        words = np.frombuffer(data, "<u4").astype(np.uint32) if len(data) % 4 == 0 else None
        if words is None or (len(words) and words[-1] == 0):
            raise CheckpointInvalid(f"An ANS stream of {len(data)} bytes is not of whole words")
        self._coder = constriction.stream.stack.AnsCoder(words) if len(words) else None

    def read(
        self, coding: Coding, classes: NDArray[np.uint8] | None, count: int
    ) -> Iterator[NDArray[np.int32]]:
        """Yield `count` symbols in pieces of at most `RUN`."""
        if coding.alphabet < 2:
            for start in range(0, count, RUN):
                yield np.zeros(min(RUN, count - start), np.int32)
            return
        if self._coder is None:
            raise CheckpointInvalid(f"There is no ANS stream for {count} symbols")
        models = [_model(row) for row in coding.weights()]
        if classes is None:
            for start in range(0, count, RUN):
                yield self._coder.decode(models[0], min(RUN, count - start))
            return
        for _, order, sizes in runs(classes):
            out = np.empty(len(order), np.int32)
            position = 0
            for size, model in zip(sizes, models, strict=True):
                if size:
                    out[order[position : position + size]] = self._coder.decode(model, size)
                    position += size
            yield out

    def finish(self) -> None:
        """Check that nothing is left.

        Raises:
            CheckpointInvalid: There are more words than the symbols needed.
        """
        if self._coder is not None and not self._coder.is_empty():
            raise CheckpointInvalid("The ANS stream holds more words than its symbols need")


def _model(weights: NDArray[np.int64]) -> object:
    return constriction.stream.model.Categorical(
        weights.astype(np.float64) / weights.sum(), perfect=False
    )
