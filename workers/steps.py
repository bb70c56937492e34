"""What one attempt costs, step by step, and the files that it stored."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from compression.artifact import Digest


class Steps:
    """Wall seconds by step of one attempt, and the artifacts that it stored.

    Attributes:
        seconds: Step to wall seconds; a step entered twice adds up.
        artifacts: Role to digest.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.artifacts: dict[str, Digest] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Count the block's wall time under `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
