"""Readings of boards: from raw times, by the statistics of this machine's own."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from search.device import DeviceSpec
from tests.onnx_files import conv_net
from workers.board_readings import TimesInvalid, board_readings, check_wall, read_times
from workers.meters.latency import time_files
from workers.meters.latency_result import LatencyResult

BOARD = DeviceSpec(name="board/kitchen", runtime="onnxruntime", place="agent")


def timed(candidate: bytes, baseline: bytes) -> LatencyResult:
    return time_files(candidate, baseline, BOARD, seed=1, max_seconds=0.4, width=0.5)


@pytest.mark.parametrize("dense", [False, True])
def test_they_are_what_the_board_itself_reads(dense: bool) -> None:
    result = timed(conv_net(16 if dense else 4), conv_net(16))
    sent = [reading.to_json() for reading in result.readings]
    found = board_readings(result.to_npz(), sent, BOARD, dense=dense)
    assert [(r.metric, r.statistic) for r in found] == [
        (r.metric, r.statistic) for r in result.readings
    ]
    for ours, theirs in zip(found, result.readings, strict=True):
        assert ours.value == pytest.approx(theirs.value, rel=1e-9)
        assert (ours.n, ours.device, ours.warning) == (theirs.n, theirs.device, theirs.warning)
        assert ours.ratio is not None
        assert theirs.ratio is not None
        assert ours.ratio.value == pytest.approx(theirs.ratio.value, rel=1e-9)
        if ours.statistic == "p50":
            assert ours.ratio.low == pytest.approx(theirs.ratio.low, rel=1e-9)
            assert ours.ratio.high == pytest.approx(theirs.ratio.high, rel=1e-9)


def test_what_has_no_raw_times_is_taken_as_the_board_reads_it() -> None:
    result = timed(conv_net(4), conv_net(8))
    load = {"metric": "load_ms", "value": 3.0, "low": 2.0, "high": 4.0, "n": 3}
    load |= {"device": BOARD.name, "statistic": "p50"}
    forged = [{**reading.to_json(), "value": 1e-9, "low": 0.0} for reading in result.readings]
    found = board_readings(result.to_npz(), [load, *forged], BOARD, dense=False)
    values = {(r.metric, r.statistic): r.value for r in found}
    assert values["load_ms", "p50"] == 3.0
    assert values["latency_ms", "p50"] == pytest.approx(float(np.median(result.candidate_ms)))


def test_times_of_unknown_names_and_of_half_a_pair_are_refused() -> None:
    for names in (("candidate_ms",), ("candidate_ms", "baseline_ms", "hot_candidate_ms"), ("x",)):
        out = io.BytesIO()
        arrays: dict[str, Any] = {name: np.ones((2, 3)) for name in names}
        np.savez(out, **arrays)
        with pytest.raises(TimesInvalid):
            read_times(out.getvalue())


def test_bursts_count_as_time_that_passed() -> None:
    arrays = {name: np.full((2, 5), 100.0) for name in ("candidate_ms", "baseline_ms")}
    check_wall(arrays, 2.0)
    arrays |= {name: np.full((2, 5), 100.0) for name in ("hot_candidate_ms", "hot_baseline_ms")}
    with pytest.raises(TimesInvalid, match=r"sum up to 4\.000 s"):
        check_wall(arrays, 2.0)
