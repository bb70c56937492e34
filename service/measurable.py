"""Whether a device can give a reading at all, asked before a job spends trials on it."""

from __future__ import annotations

from collections.abc import Callable

from search.device import DeviceSpec
from search.virtual_target import ESTIMATED
from workers.meters.energy import energy_counter
from workers.meters.fingerprint import ENERGY_COUNTER

WITH_TAILS = "latency_ms"
"""The one metric of a measured device that has statistics beside the median."""


def no_reading(
    metric: str,
    statistic: str,
    device: DeviceSpec,
    counter: Callable[[], str | None] = energy_counter,
) -> str | None:
    """Return why a device never gives a reading of a timed metric; None where it may.

    A board says by its fingerprint whether it has a counter of energy; of local devices this
    process looks itself, as it does for cores.

    Args:
        metric: A timed one.
        statistic: Of it.
        device: Where.
        counter: What counts energy on this machine; None where nothing does.
    """
    if device.place == "virtual":
        if metric in ESTIMATED:
            return None
        return f"{metric} of {device.name} is not estimated; {', '.join(ESTIMATED)} are"
    if statistic != "p50" and metric != WITH_TAILS:
        return f"{metric} of {device.name} has p50 only, not {statistic}; {WITH_TAILS} has both"
    if metric != "energy_mj":
        return None
    if device.place == "agent":
        if ENERGY_COUNTER in dict(device.hardware):
            return None
        return (
            f"energy_mj of {device.name} cannot be read: its boards name no energy counter "
            f"({ENERGY_COUNTER!r}) in their fingerprint"
        )
    if counter() is not None:
        return None
    return (
        f"energy_mj of {device.name} cannot be read: this server has no energy counter of its "
        "processor, or may not read it (/sys/class/powercap/intel-rapl:*/energy_uj)"
    )
