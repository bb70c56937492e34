"""What every runtime that is timed must hold."""

from __future__ import annotations

import os

import numpy as np
import pytest

from compression.onnx_session import open_session, run_batches
from tests.onnx_files import conv_net, integer_conv_net, integer_net
from workers.errors import DeviceUnknown
from workers.meters import RUNTIMES, LoadedModel, Runtime, open_runtime

TOLERANCE = 1e-4
"""Largest difference to ONNX Runtime's outputs, over their largest size, of a float file."""

INT8_TOLERANCE = 0.1
"""The same of an INT8 file: roundings at ties may fall either way, and are carried on."""


class RuntimeContract:
    """Subclass it with the runtime's name in `workers.meters.RUNTIMES`."""

    name: str

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        entry = RUNTIMES[self.name]
        if not entry.installed:
            pytest.skip(f"the package {entry.package} is not installed")

    def loaded(self, runtime: Runtime, file: bytes, batch: int = 1) -> LoadedModel:
        return runtime.load(runtime.build(file, batch), batch)

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
            models = [self.loaded(runtime, conv_net(width)) for width in (4, 8)]
            for model in models * 2:
                assert model.run() is None  # type: ignore[func-returns-value]

    def test_outputs_are_those_of_onnx_runtime_for_any_number_of_rows(self) -> None:
        file = conv_net(8)
        inputs = np.random.default_rng(1).standard_normal((5, 3, 8, 8), dtype=np.float32)
        expected = run_batches(open_session(file), inputs)
        cores = len(os.sched_getaffinity(0))
        for batch, threads in ((1, 1), (2, min(2, cores))):
            with open_runtime(self.name, threads=threads, seed=0) as runtime:
                model = self.loaded(runtime, file, batch)
                model.run()
                found = model.outputs(inputs)
                # Running and asking leave each other alone.
                model.run()
                np.testing.assert_array_equal(model.outputs(inputs), found)
            assert found.shape == expected.shape
            assert found.dtype == np.float32
            assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()

    def test_int8_files_run_alike_or_are_refused(self) -> None:
        file = integer_conv_net()
        inputs = np.random.default_rng(1).standard_normal((4, 3, 8, 8), dtype=np.float32)
        with open_runtime(self.name, threads=1, seed=0) as runtime:
            if not RUNTIMES[self.name].int8:
                with pytest.raises(ValueError, match="INT8"):
                    runtime.build(file)
                return
            found = self.loaded(runtime, file, 2).outputs(inputs)
        expected = run_batches(open_session(file), inputs)
        assert np.abs(found - expected).max() <= INT8_TOLERANCE * np.abs(expected).max()

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
            self.loaded(runtime, integer_net())

    def test_another_batch_than_the_file_has_is_refused(self) -> None:
        with (
            open_runtime(self.name, threads=1, seed=0) as runtime,
            pytest.raises(ValueError, match="batch 3; 2 was asked for"),
        ):
            self.loaded(runtime, conv_net(batch=3), 2)
