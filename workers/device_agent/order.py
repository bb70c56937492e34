"""What an agent gets and sends: an order, and what came of it."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from search.device import DeviceSpec

FILES = ("candidate", "baseline", "probe")
"""The parts of an order, each a file named by its SHA-256."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A file to be timed beside the dense one.

    Attributes:
        id: The order's.
        attempt: Secret of the lease.
        device: Where it is to be timed.
        files: SHA-256 by part.
        compare: Whether outputs must agree in `values` or in `decisions`.
        seed: Of the inputs and of the order of calls.
        width: Relative width of the ratio's interval that is wanted.
        max_seconds: Longest timing.
        metrics: What is to be read beside latency and throughput.
        lease_s: Seconds until the lease ends.
    """

    id: str
    attempt: str
    device: DeviceSpec
    files: Mapping[str, str]
    compare: str
    seed: int
    width: float
    max_seconds: float
    lease_s: float
    metrics: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {**dataclasses.asdict(self), "device": self.device.to_json()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Order:
        """Rebuild from `to_json`; members that are not known are left out."""
        names = {field.name for field in dataclasses.fields(Order)}
        known = {name: value for name, value in data.items() if name in names}
        return Order(**{**known, "device": DeviceSpec.from_json(data["device"])})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of an order: times, or why there are none.

    Attributes:
        times: Raw times as a NumPy archive; None with a failure.
        readings: What was made of them, as JSON.
        failure: Why nothing was timed.
    """

    times: bytes | None = None
    readings: Sequence[Mapping[str, Any]] = ()
    failure: str | None = None

    def to_json(self, attempt: str) -> dict[str, Any]:
        """Return the body of a result."""
        if self.times is None:
            return {"attempt": attempt, "failure": self.failure or "no reason was given"}
        return {
            "attempt": attempt,
            "times": base64.b64encode(self.times).decode(),
            "readings": [dict(reading) for reading in self.readings],
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A result on disk until the server has it: it survives the agent."""

    order_id: str
    body: Mapping[str, Any]

    def write(self, path: Path) -> None:
        """Write it whole or not at all."""
        write_whole(path, json.dumps(dataclasses.asdict(self)))

    @staticmethod
    def read(path: Path) -> Kept | None:
        """Return what is kept; None where nothing is, or nothing that can be read."""
        try:
            return Kept(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None


def write_whole(path: Path, text: str) -> None:
    """Replace a file that nobody else may read, in one step."""
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.replace(path)
