"""Where time is measured: runtime, hardware and threads."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

Place = Literal["local", "agent", "virtual"]
"""`local`: beside the workers. `agent`: a board that pulls its orders over HTTP. `virtual`: a
documented cost profile that nothing is measured on."""

LOCAL_NAME = re.compile(
    r"local/(?P<runtime>[a-z][a-z0-9_]*)(-(?P<threads>[1-9]\d?)t)?(-b(?P<batch>[1-9]\d{0,2}))?"
)
"""`local/<runtime>`, then optionally threads (`-2t`) and inputs at once (`-b32`)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """A named place where time is measured.

    Attributes:
        name: For example `local/onnxruntime`, `local/openvino-2t` or `board/kitchen`.
        runtime: Name in `workers.meters`' table of runtimes, for example `onnxruntime`.
        threads: Threads of one inference, pinned.
        batch: Inputs of one inference.
        place: Who measures.
        hardware: What the machine says of itself (CPU model, flags); empty until fingerprinted.
    """

    name: str
    runtime: str
    threads: int = 1
    batch: int = 1
    place: Place = "local"
    hardware: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {**dataclasses.asdict(self), "hardware": dict(self.hardware)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> DeviceSpec:
        """Rebuild a device from `to_json`."""
        return DeviceSpec(**{**data, "hardware": tuple(data["hardware"].items())})


def local_device(name: str) -> DeviceSpec | None:
    """Return the device that a name of the form `LOCAL_NAME` means; None for any other name.

    Whether its runtime exists is not looked at.
    """
    found = LOCAL_NAME.fullmatch(name)
    if found is None:
        return None
    threads, batch = int(found["threads"] or 1), int(found["batch"] or 1)
    return DeviceSpec(name=name, runtime=found["runtime"], threads=threads, batch=batch)


LOCAL_DEVICES = (DeviceSpec(name="local/onnxruntime", runtime="onnxruntime", threads=1),)
"""Devices that every server has."""
