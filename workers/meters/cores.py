"""Which cores a timing is pinned to."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from workers.errors import DeviceUnknown

TOPOLOGY = Path("/sys/devices/system/cpu")


def choose(threads: int) -> frozenset[int]:
    """Return `threads` cores that this process may use, on different physical cores first.

    High numbers first: interrupts are mostly served by the low ones.

    Raises:
        DeviceUnknown: There are fewer cores.
    """
    allowed = sorted(os.sched_getaffinity(0), reverse=True)
    if not 1 <= threads <= len(allowed):
        raise DeviceUnknown(f"The device has {threads} threads; this process has {len(allowed)}")
    physical: dict[str, int] = {}
    for core in allowed:
        physical.setdefault(_siblings(core), core)
    firsts = list(physical.values())
    others = [core for core in allowed if core not in firsts]
    return frozenset((firsts + others)[:threads])


def _siblings(core: int) -> str:
    """Return a name of the physical core that hyper-threads share."""
    with contextlib.suppress(OSError):
        return (TOPOLOGY / f"cpu{core}/topology/thread_siblings_list").read_text().strip()
    return str(core)
