"""What fresh processes pay; real processes, no judgement of their speed."""

from __future__ import annotations

import mmap

import pytest

from search.device import LOCAL_DEVICES
from tests.onnx_files import conv_net
from workers.meters.fresh_process import ProcessFailed, ask
from workers.meters.load_process import added_bytes, status_bytes
from workers.meters.startup import start_once, startup_readings

DEVICE = LOCAL_DEVICES[0]


def test_a_fresh_process_tells_memory_and_times() -> None:
    large = conv_net(512, 3)
    started = start_once(large, DEVICE)
    assert started.load_ms > 0
    assert started.first_inference_ms > 0
    assert started.resident_bytes > 0.9 * len(large)
    assert started.peak_bytes is None or started.peak_bytes >= 0.9 * len(large)


def test_readings_stand_beside_the_baselines() -> None:
    readings = startup_readings(conv_net(8), conv_net(256, 3), DEVICE, seed=0, repeats=1)
    names = [reading.metric for reading in readings]
    assert names[:2] == ["load_ms", "first_inference_ms"]
    for reading in readings:
        assert (reading.device, reading.statistic, reading.n) == (DEVICE.name, "p50", 1)
        assert reading.ratio is not None
    memory = next((r for r in readings if r.metric == "peak_memory_bytes"), None)
    if memory is not None:
        assert memory.ratio is not None
        assert memory.ratio.high < 1


def test_the_baseline_has_the_ratio_one() -> None:
    for reading in startup_readings(conv_net(), conv_net(), DEVICE, seed=0, repeats=1):
        assert reading.ratio is not None
        assert (reading.ratio.low, reading.ratio.high) == (1.0, 1.0)


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(ProcessFailed, match=r"load_process ended with 1"):
        start_once(b"not a model", DEVICE)
    with pytest.raises(ProcessFailed, match=r"No answer of workers\.meters\.load_process"):
        ask("workers.meters.load_process", {}, threads=1, timeout_s=1e-3)


def test_memory_of_this_process_is_read() -> None:
    before = added_bytes()
    # Pages of its own: what the heap has free from earlier would not be added.
    with mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.write(b"x" * len(held))
        assert added_bytes() - before > 0.9 * len(held)
    assert status_bytes("VmHWM") is not None
    assert status_bytes("VmNothing") is None
