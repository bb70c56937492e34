"""What every runtime that is timed must hold."""

from __future__ import annotations

import os

import pytest

from tests.onnx_files import conv_net, integer_net
from workers.errors import DeviceUnknown
from workers.meters import open_runtime


class RuntimeContract:
    """Subclass it with the runtime's name in `workers.meters.RUNTIMES`."""

    name: str

    def test_it_pins_as_many_cores_as_threads_and_gives_them_back(self) -> None:
        before = os.sched_getaffinity(0)
        for threads in range(1, min(2, len(before)) + 1):
            with open_runtime(self.name, threads=threads, seed=0):
                assert len(os.sched_getaffinity(0)) == threads
                assert os.sched_getaffinity(0) <= before
            assert os.sched_getaffinity(0) == before

    def test_cores_come_back_after_an_error(self) -> None:
        before = os.sched_getaffinity(0)
        with pytest.raises(KeyError), open_runtime(self.name, threads=1, seed=0):
            raise KeyError
        assert os.sched_getaffinity(0) == before

    def test_two_models_are_loaded_beside_each_other_and_run(self) -> None:
        with open_runtime(self.name, threads=1, seed=0) as runtime:
            models = [runtime.load(runtime.build(conv_net(width))) for width in (4, 8)]
            for model in models * 2:
                assert model.run() is None  # type: ignore[func-returns-value]

    def test_more_threads_than_cores_are_refused(self) -> None:
        cores = len(os.sched_getaffinity(0))
        with pytest.raises(DeviceUnknown, match=f"{cores + 1} threads"):
            open_runtime(self.name, threads=cores + 1, seed=0)
        with pytest.raises(DeviceUnknown, match="0 threads"):
            open_runtime(self.name, threads=0, seed=0)

    def test_an_input_that_is_not_float32_is_refused(self) -> None:
        with (
            open_runtime(self.name, threads=1, seed=0) as runtime,
            pytest.raises(ValueError, match="one float32 input is required"),
        ):
            runtime.load(runtime.build(integer_net()))
