"""The only stopping rule of a search."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a job has used.

    Attributes:
        trials: Search trials recorded (finished, any state).
        wall_s: Seconds of running, over all conductors.
        device_s: Seconds of timing on devices.
    """

    trials: int = 0
    wall_s: float = 0.0
    device_s: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a job may use; None is no limit, but at least one limit is required by the API.

    Attributes:
        trials: Search trials.
        wall_s: Seconds of the search phase; finalists are recovered after it.
        device_s: Seconds of timing on devices.
        only_if_promising: Whether the search is spared where remembered trials keep the bounds
            and no untried plan is likely to be better.
    """

    trials: int | None = None
    wall_s: float | None = None
    device_s: float | None = None
    only_if_promising: bool = False

    def exhausted(self, spent: Spent) -> bool:
        """Whether any limit is reached."""
        return (
            (self.trials is not None and spent.trials >= self.trials)
            or (self.wall_s is not None and spent.wall_s >= self.wall_s)
            or (self.device_s is not None and spent.device_s >= self.device_s)
        )

    def trials_left(self, proposed: int) -> int:
        """Return how many more trials may be proposed; a large number when unlimited."""
        return max(0, self.trials - proposed) if self.trials is not None else 1_000_000_000
