"""How busy cores are, and which are chosen."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from workers.errors import DeviceUnknown
from workers.meters import core_load, cores
from workers.meters.core_load import Neighbours, core_ticks

BEFORE = """cpu  99 0 99 99 0 0 0 0 0 0
cpu0 100 10 20 1000 5 1 2 3 50 0
cpu1 0 0 0 1000 0 0 0 0 0 0
intr 12 34
"""
AFTER = """cpu  99 0 99 99 0 0 0 0 0 0
cpu0 150 10 20 1048 5 1 2 5 90 0
cpu1 4 0 0 1096 0 0 0 0 0 0
intr 12 34
"""


@pytest.fixture(name="stat")
def _stat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "stat"
    path.write_text(BEFORE)
    monkeypatch.setattr(core_load, "STAT", path)
    return path


def test_ticks_are_read_by_core(stat: Path) -> None:
    # Waiting for disks is idle; what the hypervisor took is busy; guest time is in user time.
    assert core_ticks() == {0: (136, 1141), 1: (0, 1000)}


def test_the_share_of_others_is_what_is_not_ours(
    stat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = iter([1.0, 1.0 + 30 / os.sysconf("SC_CLK_TCK")])
    monkeypatch.setattr(core_load, "_own_seconds", lambda: next(own))
    neighbours = Neighbours.watch({0})
    stat.write_text(AFTER)
    # 52 busy ticks of 100, 30 of them ours.
    assert neighbours.share() == pytest.approx(0.22)


def test_a_busy_machine_is_warned_of(stat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_load, "_own_seconds", lambda: 0.0)
    busy, idle = Neighbours.watch({0}), Neighbours.watch({1})
    stat.write_text(AFTER)
    assert busy.warnings() == (
        "busy machine: other processes took 52% of the time of the timed cores; 10% is the limit",
    )
    assert idle.share() == pytest.approx(0.04)
    assert idle.warnings() == ()


def test_what_is_not_told_is_no_warning(stat: Path) -> None:
    neighbours = Neighbours.watch({7})
    assert neighbours.share() is None
    stat.unlink()
    assert core_ticks() == {}
    assert neighbours.warnings() == ()


def test_own_work_is_not_others() -> None:
    neighbours = Neighbours.watch(os.sched_getaffinity(0))
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    share = neighbours.share()
    assert share is None or 0.0 <= share <= 1.0


def test_the_idlest_cores_are_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(cores, "TOPOLOGY", tmp_path)
    monkeypatch.setattr(cores, "LOOK_S", 0.0)

    def chosen(threads: int, busy: list[int]) -> set[int]:
        looks = iter([dict.fromkeys(range(4), (0, 0)), {i: (busy[i], 100) for i in range(4)}])
        monkeypatch.setattr(cores, "core_ticks", lambda: next(looks))
        return set(cores.choose(threads))

    assert chosen(1, [0, 0, 0, 0]) == {3}
    assert chosen(2, [0, 0, 0, 90]) == {2, 1}
    # A little busier is as good: high numbers serve fewer interrupts.
    assert chosen(1, [0, 0, 0, 10]) == {3}
    assert chosen(1, [5, 90, 90, 90]) == {0}
    assert chosen(4, [0, 0, 0, 0]) == {0, 1, 2, 3}
    with pytest.raises(DeviceUnknown, match="5 threads"):
        cores.choose(5)


def test_physical_cores_come_before_their_siblings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for core in range(4):
        folder = tmp_path / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{core % 2},{core % 2 + 2}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(cores, "TOPOLOGY", tmp_path)
    monkeypatch.setattr(cores, "core_ticks", dict)
    assert cores.choose(2) == {3, 2}
    assert cores.choose(3) == {3, 2, 1}
