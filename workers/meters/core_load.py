"""How busy cores are, and with whose work."""

from __future__ import annotations

import dataclasses
import os
import resource
from collections.abc import Iterable, Mapping
from pathlib import Path

STAT = Path("/proc/stat")

BUSY_LIMIT = 0.10
"""Share of the pinned cores' time taken by others from which a reading carries a warning."""

_IDLE = (3, 4)
_GUEST = 8
"""Columns of /proc/stat, see proc(5): idle and iowait; guest time from here on, counted already."""


def core_ticks() -> Mapping[int, tuple[int, int]]:
    """Return busy and all ticks since boot of each core; empty where it cannot be read.

    What a hypervisor gave to others (steal) is busy.
    """
    try:
        lines = STAT.read_text().splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu":
            ticks = [int(field) for field in fields[:_GUEST]]
            found[int(name[3:])] = (sum(ticks) - sum(ticks[i] for i in _IDLE), sum(ticks))
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Neighbours:
    """Watches what else runs on some cores from the moment on that it was made by `watch`."""

    cores: tuple[int, ...]
    _ticks: Mapping[int, tuple[int, int]]
    _own_s: float

    @staticmethod
    def watch(cores: Iterable[int]) -> Neighbours:
        """Begin."""
        return Neighbours(tuple(sorted(cores)), core_ticks(), _own_seconds())

    def share(self) -> float | None:
        """Return the share of the cores' time that others took; None where it is not told.

        This process and its children that have ended are not others. Counted in ticks, mostly of
        10 ms each.
        """
        now = core_ticks()
        if not all(core in now and core in self._ticks for core in self.cores):
            return None
        busy, everything = (
            sum(now[core][i] - self._ticks[core][i] for core in self.cores) for i in (0, 1)
        )
        if everything <= 0:
            return None
        own = (_own_seconds() - self._own_s) * os.sysconf("SC_CLK_TCK")
        return max(0.0, busy - own) / everything

    def warnings(self) -> tuple[str, ...]:
        """Return the warning that a busy machine is worth, if it is one."""
        share = self.share()
        if share is None or share <= BUSY_LIMIT:
            return ()
        return (
            f"busy machine: other processes took {share:.0%} of the time of the timed cores; "
            f"{BUSY_LIMIT:.0%} is the limit",
        )


def _own_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
