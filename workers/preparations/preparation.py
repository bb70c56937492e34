"""What an attempt at a preparation is given, and what it leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from search.measurement import Reading
from search.trial import Trial
from workers.context import JobContext
from workers.steps import Steps


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Order:
    """One attempt at a preparation.

    Attributes:
        trial: At fidelity `prepared`; `trial.preparation` says what is trained.
        context: Of the job.
        steps: Where the time is noted.
        report: Takes progress for watchers: `{"step": ..., "done": ..., "of": ...}`.
        resume: The newest checkpoint that an earlier attempt kept; None to begin at the beginning.
        keep: Stores a checkpoint; the next attempt is given the newest.
    """

    trial: Trial
    context: JobContext
    steps: Steps
    report: Callable[[Mapping[str, Any]], None]
    resume: bytes | None
    keep: Callable[[bytes], None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """What a preparation leaves.

    Attributes:
        found: JSON values for the agent that ordered it.
        parts: Stored as blobs under one manifest, and given back to the loader of the base.
        readings: What was measured of it; may be none.
    """

    found: Mapping[str, Any]
    parts: Mapping[str, bytes]
    readings: tuple[Reading, ...] = ()
