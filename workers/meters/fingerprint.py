"""What a device says of itself; a latency is true for this only."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
from importlib import metadata
from pathlib import Path

from search.device import DeviceSpec
from workers.meters import RUNTIMES
from workers.meters.energy import energy_counter

CPUINFO = Path("/proc/cpuinfo")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")

ENERGY_COUNTER = "energy_counter"
"""Fact of a machine whose processor counts energy; absent where it does not, or may not be read."""

FLAGS = (
    # x86-64
    *("avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    # Arm
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
"""Instruction sets that decide how fast float and int8 kernels are."""


def fingerprint(device: DeviceSpec) -> DeviceSpec:
    """Return the device with its hardware and versions filled in, sorted by name.

    What cannot be read is left out, never invented.
    """
    seen = {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "cores": str(len(os.sched_getaffinity(0))),
        "threads": str(device.threads),
        **_cpu(),
    }
    with contextlib.suppress(OSError):
        seen["governor"] = GOVERNOR.read_text().strip()
    counter = energy_counter()
    if counter is not None:
        seen[ENERGY_COUNTER] = counter
    entry = RUNTIMES.get(device.runtime)
    if entry is not None:
        with contextlib.suppress(metadata.PackageNotFoundError):
            seen[device.runtime] = metadata.version(entry.package)
    return dataclasses.replace(device, hardware=tuple(sorted(seen.items())))


def _cpu() -> dict[str, str]:
    """Return model and flags of the first core."""
    try:
        text = CPUINFO.read_text()
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    seen: dict[str, str] = {}
    # Arm kernels name the implementer and part instead of a model.
    model = fields.get("model name") or " ".join(
        fields[key] for key in ("cpu implementer", "cpu part") if key in fields
    )
    if model:
        seen["cpu"] = model
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    known = [flag for flag in FLAGS if flag in flags]
    if known:
        seen["flags"] = " ".join(known)
    return seen
