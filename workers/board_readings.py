"""Readings of a board, from the raw times that it sent."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.device import DeviceSpec
from search.measurement import Reading
from workers.errors import WorkerError
from workers.meters.latency_result import result_of
from workers.meters.quantiles import Times
from workers.meters.stopwatch import Comparison, regime_of

CANDIDATE, BASELINE = "candidate_ms", "baseline_ms"
"""Names of the raw times in their archive, milliseconds of one inference each: blocks x rounds,
short blocks filled up with NaN."""

HOT_CANDIDATE, HOT_BASELINE = "hot_candidate_ms", "hot_baseline_ms"
"""Times of bursts, where there were any."""

KNOWN = (CANDIDATE, BASELINE, HOT_CANDIDATE, HOT_BASELINE)

MAX_TIMES_BYTES = 64 << 20
"""Largest unpacked archive."""

TOLD_APART = "told apart from itself"


class TimesInvalid(WorkerError, ValueError):
    """What a board sent is no plausible record of times."""


def read_times(archive: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of an archive of raw times.

    Raises:
        TimesInvalid: It is no such archive, or candidate and baseline have not equally many finite
            times above 0.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as members:
            size = sum(entry.file_size for entry in members.infolist())
        if size > MAX_TIMES_BYTES:
            raise TimesInvalid(
                f"The times unpack to {size:,} bytes; {MAX_TIMES_BYTES:,} is the limit"
            )
        with np.load(io.BytesIO(archive), allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError) as error:
        if isinstance(error, TimesInvalid):
            raise
        raise TimesInvalid(f"The times are no NumPy archive: {error}") from error
    wrong = sorted({CANDIDATE, BASELINE} - set(arrays)) or sorted(set(arrays) - set(KNOWN))
    if wrong:
        raise TimesInvalid(
            f"The times have the arrays {sorted(arrays)}; {CANDIDATE} and {BASELINE} are required, "
            f"{HOT_CANDIDATE} and {HOT_BASELINE} are optional"
        )
    for name, array in arrays.items():
        _check(name, array)
    for pair in ((CANDIDATE, BASELINE), (HOT_CANDIDATE, HOT_BASELINE)):
        shapes = [list(arrays[name].shape) for name in pair if name in arrays]
        if shapes and (len(shapes) < 2 or shapes[0] != shapes[1]):
            raise TimesInvalid(
                f"Times of {' and '.join(pair)} have shapes {shapes}; each round times both"
            )
    return arrays


def _check(name: str, times: NDArray[Any]) -> None:
    if times.ndim not in (1, 2) or times.dtype.kind != "f" or times.size == 0:
        raise TimesInvalid(
            f"{name} has type {times.dtype} and shape {list(times.shape)}; "
            "blocks x rounds of milliseconds are expected"
        )
    rows = np.atleast_2d(times)
    if np.isnan(rows).all(axis=1).any():
        raise TimesInvalid(f"{name} has a block without any time")
    lowest, highest = np.nanmin(rows), np.nanmax(rows)
    if not (lowest > 0 and np.isfinite(highest)):
        raise TimesInvalid(
            f"{name} reaches from {lowest:g} to {highest:g} ms; finite times above 0 are expected"
        )


def check_wall(arrays: Mapping[str, NDArray[Any]], wall_s: float) -> None:
    """Refuse times that sum up to more than passed by the server's own clock.

    Raises:
        TimesInvalid: They do; the board's clock runs wrong, or it lies.
    """
    spent_s = sum(float(np.nansum(array)) for array in arrays.values()) / 1e3
    if spent_s > wall_s:
        raise TimesInvalid(
            f"The times sum up to {spent_s:.3f} s; the order was leased {wall_s:.3f} s ago"
        )


def check_readings(given: Sequence[Mapping[str, Any]], device: str) -> list[Reading]:
    """Return what a board read, as readings.

    Raises:
        TimesInvalid: A reading is malformed, is of another device, or is predicted.
    """
    found = []
    for item in given:
        try:
            reading = Reading.from_json(item)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise TimesInvalid(f"A reading is malformed: {error}") from error
        if reading.device != device or reading.estimated:
            raise TimesInvalid(
                f"A reading of {reading.metric} is of {reading.device!r}, estimated "
                f"{reading.estimated}; measured ones of {device!r} are expected"
            )
        found.append(reading)
    return found


def board_readings(
    archive: bytes, given: Sequence[Mapping[str, Any]], device: DeviceSpec, *, dense: bool
) -> list[Reading]:
    """Return the readings of a board; all of latency are computed here, of the raw times.

    Args:
        archive: Raw times.
        given: What the board made of them, as JSON: its warnings, and metrics without raw times.
        device: The pool.
        dense: Whether the candidate is the baseline itself; its ratio is 1 by definition.

    Raises:
        TimesInvalid: The archive is none, or the readings are not of it.
    """
    arrays = {name: _blocks(array) for name, array in read_times(archive).items()}
    sent = check_readings(given, device.name)
    said = next((r.warning for r in sent if r.metric == "latency_ms" and r.warning), "")
    cold = regime_of("interleaved", arrays[CANDIDATE], arrays[BASELINE])
    hot = None
    if HOT_CANDIDATE in arrays and HOT_BASELINE in arrays:
        hot = regime_of("hot", arrays[HOT_CANDIDATE], arrays[HOT_BASELINE])
    seen = Comparison(
        interleaved=cold,
        hot=hot,
        load_s=np.zeros(0),
        # What the comparison itself shows is found again.
        warnings=tuple(w for w in said.split("; ") if w and TOLD_APART not in w),
    )
    result = result_of(seen, device, same=dense, seed=len(cold.candidate_ms), seconds=0.0)
    have = {(reading.metric, reading.statistic) for reading in result.readings}
    return [*result.readings, *(r for r in sent if (r.metric, r.statistic) not in have)]


def _blocks(times: NDArray[Any]) -> Times:
    rows: Times = np.atleast_2d(times.astype(np.float64))
    return rows
