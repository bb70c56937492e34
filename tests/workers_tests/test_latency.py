"""Timing a file beside the baseline; nothing here depends on how fast the machine is."""

from __future__ import annotations

import dataclasses
import gc
import math
import os

import numpy as np
import pytest

from search.device import LOCAL_DEVICES
from search.measurement import Interval, Measurement, Reading
from tests.contracts.meter import RuntimeContract
from tests.onnx_files import conv_net
from workers.errors import DeviceUnknown
from workers.meters import latency
from workers.meters.latency import LatencyResult, time_baseline, time_onnx
from workers.meters.stopwatch import Comparison

DEVICE = LOCAL_DEVICES[0]
BRIEFLY = 1.0


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
    assert result.regime == "interleaved"
    assert len(result.candidate_ms) == len(result.baseline_ms) >= 3
    assert result.seconds > 0
    assert all(np.isfinite(times).all() for times in (result.candidate_ms, result.baseline_ms))
    keys = [(reading.metric, reading.statistic) for reading in result.readings]
    assert keys == [("latency_ms", "p50"), ("latency_ms", "p95"), ("throughput", "p50")]
    p50, p95 = get(result, "latency_ms", "p50"), get(result, "latency_ms", "p95")
    assert p50.value == pytest.approx(np.median(result.candidate_ms))
    assert p50.value <= p95.value
    assert p50.n == len(result.candidate_ms)
    assert p50.ratio == result.ratio
    assert p95.ratio is not None
    assert p50.warning == ("; ".join(result.warnings) or None)


def test_throughput_is_the_inverse_of_the_median_latency() -> None:
    result = time_onnx(conv_net(4), conv_net(8), DEVICE, seed=0, max_seconds=BRIEFLY)
    p50, rate = get(result, "latency_ms", "p50"), get(result, "throughput", "p50")
    assert rate.value == pytest.approx(1000 / p50.value)
    assert (rate.low, rate.high) == pytest.approx((1000 / p50.high, 1000 / p50.low))
    assert rate.ratio is not None
    assert rate.ratio.value == pytest.approx(1 / result.ratio.value)


def test_a_much_larger_net_is_told_to_be_slower() -> None:
    # 200 times the work: no machine is noisy enough to hide it.
    result = time_onnx(conv_net(64, 4), conv_net(4), DEVICE, seed=0, max_seconds=BRIEFLY)
    assert result.ratio.low > 1


def test_the_baseline_has_the_ratio_one() -> None:
    result = time_baseline(conv_net(4), DEVICE, seed=0, max_seconds=BRIEFLY)
    both = np.concatenate([result.candidate_ms, result.baseline_ms])
    for reading in result.readings:
        assert reading.ratio is not None
        assert (reading.ratio.low, reading.ratio.value, reading.ratio.high) == (1.0, 1.0, 1.0)
        assert reading.n == len(both)
    assert get(result, "latency_ms", "p50").value == pytest.approx(np.median(both))


def test_a_baseline_told_apart_from_itself_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    times = np.full(100, 2.0)
    seen = Comparison(
        candidate_ms=1.2 * times,
        baseline_ms=times,
        ratio=Interval(value=1.2, low=1.1, high=1.3),
        warmup_calls=16,
        warnings=(),
    )
    monkeypatch.setattr(latency, "compare", lambda *_: seen)
    result = time_baseline(conv_net(4), DEVICE, seed=0)
    assert result.ratio.value == pytest.approx(1.2)
    assert all("told apart from itself" in str(reading.warning) for reading in result.readings)


def test_the_time_limit_holds_and_is_said() -> None:
    result = time_onnx(conv_net(4), conv_net(4), DEVICE, seed=0, max_seconds=1e-6)
    assert len(result.candidate_ms) == 3
    assert any("of the ratio is" in warning for warning in result.warnings)
    assert all(math.isfinite(reading.value) for reading in result.readings)


def test_unknown_runtimes_and_too_many_threads_are_refused() -> None:
    for changes in ({"runtime": "abacus"}, {"threads": 10_000}):
        device = dataclasses.replace(DEVICE, **changes)
        with pytest.raises(DeviceUnknown, match=r"abacus|10000"):
            time_onnx(conv_net(), conv_net(), device, seed=0)
