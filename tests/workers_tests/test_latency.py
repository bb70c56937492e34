"""Timing a file beside the baseline; nothing here depends on how fast the machine is."""

from __future__ import annotations

import dataclasses
import gc
import io
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from search.device import LOCAL_DEVICES
from search.measurement import Interval, Measurement, Reading
from tests.contracts.meter import RuntimeContract
from tests.onnx_files import conv_net
from tests.workers_tests.machines import Machine
from workers.errors import DeviceUnknown
from workers.meters.latency import time_baseline, time_files, time_onnx
from workers.meters.latency_result import LatencyResult, result_of, times_npz
from workers.meters.stopwatch import StoppingRule, compare

DEVICE = LOCAL_DEVICES[0]
BRIEFLY = 0.6


class TestOnnxRuntimeCpu(RuntimeContract):
    name = "onnxruntime"


def get(result: LatencyResult, metric: str, statistic: str) -> Reading:
    reading = Measurement(result.readings).get(metric, DEVICE.name, statistic)
    assert reading is not None
    return reading


def test_a_file_is_timed_beside_its_baseline() -> None:
    cores = os.sched_getaffinity(0)
    result = time_onnx(conv_net(4), conv_net(8), DEVICE, seed=0, max_seconds=BRIEFLY)
    assert os.sched_getaffinity(0) == cores
    assert gc.isenabled()
    assert len(result.candidate_ms) == len(result.baseline_ms) >= 3
    assert result.seconds > 0
    assert all(np.isfinite(times).all() for times in (result.candidate_ms, result.baseline_ms))
    keys = [(reading.metric, reading.statistic) for reading in result.readings][:4]
    assert keys == [
        ("latency_ms", "p50"),
        ("latency_ms", "p95"),
        ("latency_ms", "p99"),
        ("throughput", "p50"),
    ]
    p50, p95, p99 = (get(result, "latency_ms", name) for name in ("p50", "p95", "p99"))
    assert p50.value == pytest.approx(np.median(result.candidate_ms))
    assert p50.value <= p95.value <= p99.value
    assert p50.n == len(result.candidate_ms)
    assert p50.ratio == result.ratio
    assert p95.ratio is not None
    assert p50.warning == ("; ".join(result.warnings) or None)


def made_up(ratio: float = 0.5, batch: int = 1, *, same: bool = False) -> LatencyResult:
    """A result of a machine without noise."""
    machine = Machine()
    rule = StoppingRule(max_seconds=1e9)
    seen = compare(machine.blocks(ratio), np.random.default_rng(0), rule, clock=machine.clock)
    device = dataclasses.replace(DEVICE, batch=batch)
    return result_of(seen, device, same=same, seed=0, seconds=1.0)


def test_both_regimes_are_read() -> None:
    result = made_up()
    for metric in ("latency_ms", "latency_hot_ms"):
        reading = get(result, metric, "p50")
        assert (reading.low, reading.value, reading.high) == (0.5, 0.5, 0.5)
        assert reading.ratio is not None
        assert reading.ratio.value == pytest.approx(0.5)
    assert get(result, "latency_ms", "p50").n == 160
    assert get(result, "latency_hot_ms", "p50").n == 80


@pytest.mark.parametrize("batch", [1, 32])
def test_throughput_is_inputs_per_second(batch: int) -> None:
    rate = get(made_up(batch=batch), "throughput", "p50")
    assert rate.value == pytest.approx(2000 * batch)
    assert rate.ratio is not None
    assert rate.ratio.value == pytest.approx(2.0)


def test_raw_times_are_kept() -> None:
    result = made_up()
    with np.load(io.BytesIO(result.to_npz())) as found:
        assert set(found.files) == {
            "candidate_ms",
            "baseline_ms",
            "hot_candidate_ms",
            "hot_baseline_ms",
        }
        assert found["candidate_ms"].shape == found["baseline_ms"].shape == (8, 20)
        assert found["hot_candidate_ms"].shape == (8, 10)
        assert (found["candidate_ms"] == 0.5).all()
    other = dataclasses.replace(result, device=dataclasses.replace(DEVICE, name="board/kitchen"))
    with np.load(io.BytesIO(times_npz([result, other]))) as found:
        assert len(found.files) == 8
        assert (found["board/kitchen/baseline_ms"] == 1.0).all()


def test_a_much_larger_net_is_told_to_be_slower() -> None:
    # 200 times the work: no machine is noisy enough to hide it.
    result = time_onnx(conv_net(64, 4), conv_net(4), DEVICE, seed=0, max_seconds=1.0)
    assert result.ratio.low > 1


def test_files_are_timed_as_they_are() -> None:
    result = time_files(conv_net(4), conv_net(4), DEVICE, seed=0, max_seconds=BRIEFLY)
    ratio = get(result, "latency_ms", "p50").ratio
    assert ratio == Interval(value=1.0, low=1.0, high=1.0)


def test_the_baseline_has_the_ratio_one() -> None:
    result = time_baseline(conv_net(4), DEVICE, seed=0, max_seconds=BRIEFLY)
    both = np.concatenate([result.candidate_ms, result.baseline_ms])
    for reading in result.readings:
        assert reading.ratio is not None
        assert (reading.ratio.low, reading.ratio.value, reading.ratio.high) == (1.0, 1.0, 1.0)
    assert get(result, "latency_ms", "p50").n == len(both)
    assert get(result, "latency_ms", "p50").value == pytest.approx(np.median(both))


def test_a_baseline_told_apart_from_itself_is_warned_of() -> None:
    result = made_up(1.2, same=True)
    assert result.ratio.value == pytest.approx(1.2)
    assert all("told apart from itself" in str(reading.warning) for reading in result.readings)
    assert not any(reading.warning for reading in made_up(1.2).readings)


def test_every_block_can_have_a_process_of_its_own() -> None:
    result = time_onnx(conv_net(4), conv_net(8), DEVICE, seed=0, max_seconds=1e-6, processes=True)
    assert len(result.candidate_ms) == len(result.baseline_ms) == 3
    assert any("few loads" in warning for warning in result.warnings)


def test_a_process_that_cannot_load_says_why() -> None:
    with pytest.raises(ValueError, match=r"(?s)block_process ended with 1: .*Protobuf"):
        time_files(b"junk", b"junk", DEVICE, seed=0, max_seconds=1e-6, processes=True)


def test_processes_load_nothing_but_the_runtime() -> None:
    script = (
        "import sys, workers.meters.block_process, workers.meters.load_process\n"
        "from workers.meters import open_runtime\n"
        "open_runtime('onnxruntime', threads=1, seed=0)\n"
        "print([name for name in ('torch', 'onnx', 'ray', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_the_time_limit_holds_and_is_said() -> None:
    result = time_onnx(conv_net(4), conv_net(4), DEVICE, seed=0, max_seconds=1e-6)
    assert len(result.candidate_ms) == 3
    assert any("few loads" in warning for warning in result.warnings)
    assert all(math.isfinite(reading.value) for reading in result.readings)


def test_unknown_runtimes_and_too_many_threads_are_refused() -> None:
    for changes in ({"runtime": "abacus"}, {"threads": 10_000}):
        device = dataclasses.replace(DEVICE, **changes)
        with pytest.raises(DeviceUnknown, match=r"abacus|10000"):
            time_onnx(conv_net(), conv_net(), device, seed=0)
