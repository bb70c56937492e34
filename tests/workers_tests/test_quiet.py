"""The quiet-node rule with real processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from workers.quiet import QuietNode

SPAWN = multiprocessing.get_context("spawn")
DEADLINE_S = 20.0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.005)


def hold(folder: str, mode: str, until: str | None, log: str) -> None:
    """Take the node, write `+mode`, hold it until the file `until` exists, write `-mode`."""
    node = QuietNode(Path(folder))
    Path(f"{log}.{os.getpid()}.asking").touch()
    with node.busy() if mode == "busy" else node.alone():
        append(log, f"+{mode}")
        while until is None or not Path(until).exists():
            time.sleep(0.002)
        append(log, f"-{mode}")


def breathing(folder: str, until: str, log: str) -> None:
    """Compute and breathe until the file `until` exists."""
    node = QuietNode(Path(folder))
    with node.busy():
        append(log, "+busy")
        while not Path(until).exists():
            if node.breathe():
                append(log, "breathed")
            time.sleep(0.002)
        append(log, "-busy")


def repeat(folder: str, mode: str, count: int, log: str) -> None:
    """Take and leave the node `count` times, logging both."""
    node = QuietNode(Path(folder))
    for _ in range(count):
        with node.busy() if mode == "busy" else node.alone():
            append(log, f"+{mode}")
            time.sleep(0.001)
            append(log, f"-{mode}")


def append(log: str, line: str) -> None:
    # O_APPEND writes of one short line are atomic, so the log is in true order.
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{line}\n".encode())
    os.close(handle)


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


Start = Callable[..., BaseProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    processes: list[BaseProcess] = []

    def begin(target: Callable[..., None], *args: object) -> BaseProcess:
        process = SPAWN.Process(target=target, args=tuple(map(_plain, args)))
        process.start()
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.join()


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def asking(log: Path, process: BaseProcess) -> None:
    """Wait until the process is about to take its lock, then long enough for it to block."""
    wait_for(lambda: Path(f"{log}.{process.pid}.asking").exists())
    time.sleep(0.1)


def test_busy_is_shared_and_alone_excludes(tmp_path: Path) -> None:
    first, second = QuietNode(tmp_path), QuietNode(tmp_path)
    entered = threading.Event()
    with first.busy(), second.busy():

        def time_it() -> None:
            with QuietNode(tmp_path).alone():
                entered.set()

        timer = threading.Thread(target=time_it)
        timer.start()
        assert not entered.wait(0.1)
    assert entered.wait(DEADLINE_S)
    timer.join()


def test_kill_9_of_a_holder_frees_the_node(tmp_path: Path, start: Start) -> None:
    log = tmp_path / "log"
    for mode in ("alone", "busy"):
        holder = start(hold, tmp_path, mode, None, log)
        wait_for(lambda mode=mode: f"+{mode}" in lines(log))  # type: ignore[misc]
        assert holder.pid is not None
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
        with QuietNode(tmp_path).alone():
            append(str(log), "mine")
    assert lines(log) == ["+alone", "mine", "+busy", "mine"]


def test_computing_that_comes_later_does_not_overtake_a_waiting_timer(
    tmp_path: Path, start: Start
) -> None:
    log, release = tmp_path / "log", tmp_path / "release"
    start(hold, tmp_path, "busy", release, log)
    wait_for(lambda: "+busy" in lines(log))
    timer = start(hold, tmp_path, "alone", release, log)
    asking(log, timer)
    late = start(hold, tmp_path, "busy", release, log)
    asking(log, late)
    assert lines(log) == ["+busy"]
    release.touch()
    for process in (timer, late):
        process.join(DEADLINE_S)
    assert lines(log) == ["+busy", "-busy", "+alone", "-alone", "+busy", "-busy"]


def test_breathing_lets_a_timer_through(tmp_path: Path, start: Start) -> None:
    log, release = tmp_path / "log", tmp_path / "release"
    worker = start(breathing, tmp_path, release, log)
    wait_for(lambda: "+busy" in lines(log))
    with QuietNode(tmp_path).alone():
        append(str(log), "timed")
        assert "breathed" not in lines(log)
    wait_for(lambda: "breathed" in lines(log))
    release.touch()
    worker.join(DEADLINE_S)
    assert lines(log) == ["+busy", "timed", "breathed", "-busy"]


def test_two_breathing_computations_both_let_a_timer_through(tmp_path: Path, start: Start) -> None:
    log, release = tmp_path / "log", tmp_path / "release"
    for _ in range(2):
        start(breathing, tmp_path, release, log)
    wait_for(lambda: lines(log).count("+busy") == 2)
    with QuietNode(tmp_path).alone():
        assert "breathed" not in lines(log)
    wait_for(lambda: lines(log).count("breathed") == 2)


def test_breathing_costs_nothing_when_nobody_waits(tmp_path: Path) -> None:
    node = QuietNode(tmp_path)
    assert node.breathe() is False
    with node.busy():
        assert node.breathe() is False
        with QuietNode(tmp_path).busy():
            assert node.breathe() is False


def test_nesting_never_waits_for_itself(tmp_path: Path) -> None:
    node = QuietNode(tmp_path)
    with node.busy(), node.busy(), node.alone(), node.alone(), node.busy():
        # The shared lock was given up: the exclusive one would wait for it otherwise.
        assert node.breathe() is False
    with node.busy(), node.alone():
        pass
    with QuietNode(tmp_path).alone():
        assert node.breathe() is False


def test_the_shared_lock_is_taken_again_after_timing(tmp_path: Path) -> None:
    node = QuietNode(tmp_path)
    entered = threading.Event()

    def time_it() -> None:
        with QuietNode(tmp_path).alone():
            entered.set()

    with node.busy():
        with node.alone():
            pass
        timer = threading.Thread(target=time_it)
        timer.start()
        assert not entered.wait(0.1)
    timer.join(DEADLINE_S)
    assert entered.is_set()


def test_an_exception_leaves_the_node_free(tmp_path: Path) -> None:
    node = QuietNode(tmp_path)
    with pytest.raises(RuntimeError), node.busy(), node.alone():
        raise RuntimeError
    with QuietNode(tmp_path).alone():
        assert node.breathe() is False


def test_many_processes_never_overlap_a_timer(tmp_path: Path, start: Start) -> None:
    log = tmp_path / "log"
    modes = ["busy", "busy", "alone", "alone"]
    processes = [start(repeat, tmp_path, mode, 25, log) for mode in modes]
    for process in processes:
        process.join(DEADLINE_S)
        assert process.exitcode == 0
    inside = {"busy": 0, "alone": 0}
    for line in lines(log):
        inside[line[1:]] += 1 if line[0] == "+" else -1
        assert inside["alone"] in (0, 1)
        assert not (inside["alone"] and inside["busy"])
    assert len(lines(log)) == 2 * 25 * len(modes)
