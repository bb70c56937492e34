"""What a primitive on modules leaves: enough to check it, to replay its shapes, to keep it true."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from compression.recover.hook import Hook


class ModuleRecord(Protocol):
    """The trace of one primitive's `apply`."""

    def to_json(self) -> dict[str, Any]:
        """Return what `replay` needs to rebuild the structure: plain JSON data, no weights.

        Values that live in the state dict (masked, factorized or shared weights) are not part of
        it: a replayed module gets them from the checkpoint.
        """
        ...

    def invariants(self) -> Sequence[Hook]:
        """Return fresh hooks that hold what the primitive made through a training; may be empty.

        Called once per training. What they need (masks, assignments) is found in the record.
        """
        ...
