"""The memory of all jobs in a dictionary."""

from __future__ import annotations

from collections.abc import Sequence

from workers.memory import MemoryKey, Remembered


class MemoryOfEvaluations:
    """Implements `workers.memory.Memory`; the newest entry is the last."""

    def __init__(self) -> None:
        self.entries: dict[MemoryKey, Remembered] = {}

    def find(self, key: MemoryKey) -> Remembered | None:
        return self.entries.get(key)

    def put(self, key: MemoryKey, known: Remembered) -> None:
        self.entries.pop(key, None)
        self.entries[key] = known

    def relevant(self, circumstances: Sequence[str], limit: int) -> Sequence[Remembered]:
        found = [e for k, e in self.entries.items() if k.circumstances in circumstances]
        return found[::-1][:limit]
