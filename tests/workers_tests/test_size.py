"""The three sizes."""

from __future__ import annotations

import dataclasses

import pytest

from tests.onnx_files import conv_net
from workers.meters.size import download_bytes, resident_bytes, runtime_bytes


def test_sizes_of_bytes_are_exact() -> None:
    dense = runtime_bytes(b"x" * 1000)
    assert (dense.metric, dense.value, dense.low, dense.high, dense.n) == (
        "runtime_bytes",
        1000,
        1000,
        1000,
        1,
    )
    assert dense.ratio is None
    small = runtime_bytes(b"x" * 250, dense)
    assert small.ratio is not None
    assert (small.ratio.value, small.ratio.low, small.ratio.high) == (0.25, 0.25, 0.25)
    coded = download_bytes(b"x" * 300, download_bytes(b"x" * 600))
    assert (coded.metric, coded.value, coded.unit) == ("download_bytes", 300, "bytes")
    assert coded.ratio is not None
    assert coded.ratio.value == 0.5


def test_memory_grows_by_at_least_the_weights() -> None:
    # 4 layers of 512 x 512 x 9 float32: 9.4 MB each but the first.
    small, large = conv_net(8, 2), conv_net(512, 4)
    small_reading = resident_bytes(small, repeats=1)
    large_reading = resident_bytes(large, small_reading, repeats=2)
    assert small_reading.value > 0
    assert large_reading.value - small_reading.value > 0.9 * (len(large) - len(small))
    assert large_reading.n == 2
    assert large_reading.ratio is not None
    assert large_reading.ratio.low <= large_reading.ratio.value <= large_reading.ratio.high
    assert large_reading.ratio.value == pytest.approx(large_reading.value / small_reading.value)


def test_a_baseline_of_nothing_gives_no_ratio() -> None:
    nothing = dataclasses.replace(runtime_bytes(b""), metric="resident_bytes")
    assert resident_bytes(conv_net(), nothing, repeats=1).ratio is None


def test_a_file_that_does_not_load_is_refused_with_its_reason() -> None:
    with pytest.raises(ValueError, match="could not be loaded"):
        resident_bytes(b"not an ONNX file", repeats=1)
