"""Fresh processes, and that timing with threads of OpenMP's takes one; nothing decides by time."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from search.device import LOCAL_DEVICES, DeviceSpec
from tests.onnx_files import conv_net
from tests.workers_tests.telling_process import MODULE
from workers.errors import FileRefused
from workers.meters import RUNTIMES, latency
from workers.meters.fresh_process import FreshProcess, ProcessFailed, ask, environment
from workers.meters.latency import time_files

TIMEOUT_S = 60.0
TWO_CORES = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core only")


def two_threads(runtime: str) -> DeviceSpec:
    return dataclasses.replace(LOCAL_DEVICES[0], runtime=runtime, threads=2)


def test_it_is_told_how_openmp_shall_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000000")
    told = ask(MODULE, {}, threads=3, timeout_s=TIMEOUT_S)
    assert told["environment"]["OMP_NUM_THREADS"] == "3"
    assert told["environment"]["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "GOMP_SPINCOUNT" not in told["environment"]
    assert told["cores"] == sorted(os.sched_getaffinity(0))


def test_torchs_openmp_does_not_spin_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    libraries = sorted(Path(spec.origin).parent.glob("lib/libgomp*.so*"))
    if not libraries:
        pytest.skip("torch brings no libgomp here")
    monkeypatch.setenv("OMP_DISPLAY_ENV", "VERBOSE")
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000000")
    code = f"import ctypes; ctypes.CDLL({str(libraries[0])!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(2),
        check=True,
    )
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr
    assert "GOMP_SPINCOUNT = '0'" in done.stderr


def test_one_process_answers_many_questions() -> None:
    long = "x" * (1 << 18)
    with FreshProcess(MODULE, threads=1) as process:
        first = process.ask({"echo": "one"}, timeout_s=TIMEOUT_S)
        second = process.ask({"echo": long}, timeout_s=TIMEOUT_S)
    assert first["process"] == second["process"] != os.getpid()
    assert (first["echo"], second["echo"]) == ("one", long)
    with pytest.raises(ProcessLookupError):
        os.kill(first["process"], 0)


def test_a_process_that_fails_says_why_and_answers_no_more() -> None:
    with FreshProcess(MODULE, threads=1) as process:
        process.ask({}, timeout_s=TIMEOUT_S)
        for _ in range(2):
            with pytest.raises(ProcessFailed, match=r"(?s)telling_process ended with 1: .*broken"):
                process.ask({"fail": "broken"}, timeout_s=TIMEOUT_S)


@TWO_CORES
def test_threads_that_need_it_are_timed_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = dataclasses.replace(RUNTIMES["onnxruntime"], process_of_threads=True)
    monkeypatch.setattr(latency, "RUNTIMES", {"onnxruntime": entry})
    device = two_threads("onnxruntime")
    files = conv_net(4), conv_net(8)

    def here(*_: object) -> None:
        raise AssertionError("timed in this process")

    monkeypatch.setattr(latency, "timed_block", here)
    result = time_files(*files, device, seed=0, max_seconds=0.5)
    assert len(result.candidate_ms) == len(result.baseline_ms) >= 3
    one = dataclasses.replace(device, threads=1)
    with pytest.raises(AssertionError, match="in this process"):
        time_files(*files, one, seed=0, max_seconds=0.5)


def test_what_a_runtime_refuses_there_is_refused_here() -> None:
    pytest.importorskip("openvino", reason="the package openvino is not installed")
    device = dataclasses.replace(LOCAL_DEVICES[0], runtime="openvino")
    with pytest.raises(FileRefused, match="OpenVINO cannot run the file"):
        time_files(b"junk", b"junk", device, seed=0, max_seconds=1e-6, processes=True)


@TWO_CORES
@pytest.mark.slow
def test_torch_on_two_threads_is_timed_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(*_: object) -> None:
        raise AssertionError("timed in this process")

    monkeypatch.setattr(latency, "timed_block", here)
    result = time_files(conv_net(4), conv_net(8), two_threads("torch"), seed=0, max_seconds=0.5)
    assert len(result.candidate_ms) >= 3


def test_which_runtimes_have_threads_that_need_it() -> None:
    found = {name for name, entry in RUNTIMES.items() if entry.process_of_threads}
    assert found == {"torch", "torch_compile"}
