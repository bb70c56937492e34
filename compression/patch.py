"""The record of how a module came about: what every primitive left, in the order of application."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from compression.decisions import DECISIONS
from compression.errors import CheckpointInvalid


@dataclasses.dataclass(frozen=True, slots=True)
class Patch:
    """What was done to the dense module, stage by stage: it rebuilds the structure without data.

    A plan says how many channels stay and by which criterion; a patch says which ones. Channels
    that were only removed replay bit for bit; weights that a primitive computed (factors, shared
    values) come with the checkpoint.

    Attributes:
        stages: Kind of decision and what its primitive recorded (JSON data), as applied.
    """

    VERSION: ClassVar[int] = 2
    stages: tuple[tuple[str, Mapping[str, Any]], ...] = ()

    def __post_init__(self) -> None:
        kinds = [kind for kind, _ in self.stages]
        if kinds != [kind for kind in DECISIONS if kind in kinds]:
            raise CheckpointInvalid(
                f"Patch has the stages {kinds}; known, in order: {[*DECISIONS]}"
            )

    def stage(self, kind: str) -> Mapping[str, Any] | None:
        """Return what the primitive of a kind recorded; None where it did nothing."""
        return next((record for name, record in self.stages if name == kind), None)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data: `{"version": 2, "stages": [[kind, record], ...]}`."""
        stages = [[kind, dict(record)] for kind, record in self.stages]
        return {"version": self.VERSION, "stages": stages}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Patch:
        """Rebuild a patch.

        Raises:
            CheckpointInvalid: The version is not ours or the stages are not what we write.
        """
        if data.get("version") != Patch.VERSION:
            raise CheckpointInvalid(
                f"Patch version is {data.get('version')!r}; {Patch.VERSION} is known"
            )
        stages = data.get("stages")
        if not isinstance(stages, list) or not all(
            isinstance(stage, list) and len(stage) == 2 and isinstance(stage[1], Mapping)
            for stage in stages
        ):
            raise CheckpointInvalid("Patch has no 'stages' list of kind and record")
        return Patch(tuple((kind, record) for kind, record in stages))
