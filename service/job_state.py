"""Where a job stands, what its user wants of it, and the table of legal moves."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from search.errors import IllegalTransition


class JobState(StrEnum):
    """Where a job stands. Ended states never change."""

    QUEUED = "QUEUED"
    """Recorded; no conductor has begun it."""
    RUNNING = "RUNNING"
    """The search goes on: baseline, trials."""
    FINALIZING = "FINALIZING"
    """Finalists are recovered, confirmed and written as checkpoints."""
    SUCCEEDED = "SUCCEEDED"
    """Ended by its budget, with an answer; `JobOutcome` says which."""
    FAILED = "FAILED"
    """Could not go on; the job's problem says why."""
    CANCELLING = "CANCELLING"
    """The user cancelled it; its conductor has not let go yet."""
    CANCELLED = "CANCELLED"
    """Ended by its user; what was measured stays."""


class JobWish(StrEnum):
    """What the user wants of a job; the conductor reads it."""

    RUN = "run"
    CANCEL = "cancel"


class JobOutcome(StrEnum):
    """What came of an ended job."""

    FRONT_FOUND = "front_found"
    INFEASIBLE = "infeasible"
    CANCELLED = "cancelled"
    FAILED = "failed"


LEGAL: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.FAILED}),
    JobState.RUNNING: frozenset({JobState.FINALIZING, JobState.CANCELLING, JobState.FAILED}),
    JobState.FINALIZING: frozenset({JobState.SUCCEEDED, JobState.CANCELLING, JobState.FAILED}),
    JobState.CANCELLING: frozenset({JobState.CANCELLED, JobState.FAILED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}

ENDED = frozenset(state for state, after in LEGAL.items() if not after)

ACTIVE = frozenset(LEGAL) - ENDED
"""States in which a conductor has something to do."""


def check_transition(before: JobState, after: JobState) -> None:
    """Refuse a move that the table does not allow.

    Raises:
        IllegalTransition: `after` cannot follow `before`.
    """
    if after not in LEGAL[before]:
        raise IllegalTransition(f"A {before} job cannot become {after}")
