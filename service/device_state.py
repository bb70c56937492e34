"""Where a board's agent and a timing order stand."""

from __future__ import annotations

from enum import StrEnum


class AgentState(StrEnum):
    """Whether an agent of a board gets orders."""

    ACTIVE = "ACTIVE"
    """It gets orders when it asks."""
    DRAINING = "DRAINING"
    """It ends what it holds and gets nothing more, until it registers again."""


class OrderState(StrEnum):
    """Where a timing order stands."""

    QUEUED = "QUEUED"
    """No agent works at it."""
    LEASED = "LEASED"
    """An agent works at it until the lease ends."""
    DONE = "DONE"
    """Its times are stored."""
    FAILED = "FAILED"
    """Nothing came of it; its reason says why. Asking again puts it back into the queue."""
