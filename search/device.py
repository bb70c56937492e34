"""Where time is measured: runtime, hardware and threads."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """A named place where time is measured.

    Attributes:
        name: For example `local/onnxruntime`.
        runtime: Name in `workers.meters`' table of runtimes, for example `onnxruntime`.
        threads: Threads of one inference, pinned.
        hardware: What the machine says of itself (CPU model, flags); empty until fingerprinted.
    """

    name: str
    runtime: str
    threads: int = 1
    hardware: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {**dataclasses.asdict(self), "hardware": dict(self.hardware)}


LOCAL_DEVICES = (DeviceSpec(name="local/onnxruntime", runtime="onnxruntime", threads=1),)
"""Devices that every server has."""
