"""Which cores a timing is pinned to."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from workers.errors import DeviceUnknown
from workers.meters.core_load import core_ticks

TOPOLOGY = Path("/sys/devices/system/cpu")

LOOK_S = 0.05
"""How long cores are looked at to see which are busy."""

BUSY_STEPS = 4
"""A core that is busier by less than one part of these is as good."""


def choose(threads: int) -> frozenset[int]:
    """Return `threads` cores that this process may use, on different physical cores first.

    Among equals the idlest, and of equally idle ones those with high numbers: interrupts are
    mostly served by the low ones. Takes `LOOK_S` where there is something to choose.

    Raises:
        DeviceUnknown: There are fewer cores.
    """
    allowed = os.sched_getaffinity(0)
    if not 1 <= threads <= len(allowed):
        raise DeviceUnknown(f"The device has {threads} threads; this process has {len(allowed)}")
    if threads == len(allowed):
        return frozenset(allowed)
    busy = _busy_steps(allowed)
    ordered = sorted(allowed, key=lambda core: (busy[core], -core))
    physical: dict[str, int] = {}
    for core in ordered:
        physical.setdefault(_siblings(core), core)
    firsts = list(physical.values())
    others = [core for core in ordered if core not in firsts]
    return frozenset((firsts + others)[:threads])


def _busy_steps(cores: set[int]) -> dict[int, int]:
    """Return how busy each core is now, 0 (idle) to `BUSY_STEPS`; 0 where it is not told."""
    before = core_ticks()
    time.sleep(LOOK_S if before else 0.0)
    after = core_ticks()
    found = {}
    for core in cores:
        was, now = before.get(core, (0, 0)), after.get(core, (0, 0))
        share = (now[0] - was[0]) / max(1, now[1] - was[1])
        found[core] = round(BUSY_STEPS * min(1.0, max(0.0, share)))
    return found


def _siblings(core: int) -> str:
    """Return a name of the physical core that hyper-threads share."""
    with contextlib.suppress(OSError):
        return (TOPOLOGY / f"cpu{core}/topology/thread_siblings_list").read_text().strip()
    return str(core)
