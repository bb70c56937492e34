"""What a running job must write down and may read: the port between loop and database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from compression.artifact import Digest
from search.agent import Request, Snapshot
from search.budget import Spent
from search.trial import Attempt, Trial
from workers.executor import Finished
from workers.memory import Remembered

Wish = Literal["run", "cancel"]

RUNGS = "job.rungs"
"""Kind of the event that says how far the rungs agree on the order of plans; the newest counts."""


class Ledger(Protocol):
    """The durable record of one job. Every method is one transaction and safe to repeat.

    One conductor holds the job's lease; every write checks it and raises `LeaseLost` when it is
    gone. Outcomes are recorded before the agent is told.
    """

    def trials(self) -> Sequence[Trial]:
        """Return all trials in the order of proposal."""
        ...

    def snapshot(self) -> Snapshot | None:
        """Return the agent's snapshot of the last `propose`; None before the first."""
        ...

    def spent(self) -> Spent:
        """Return what the job has used so far, over all conductors."""
        ...

    def wish(self) -> Wish:
        """Renew the lease and return what the user wants of the job.

        Raises:
            LeaseLost: Another conductor holds it.
        """
        ...

    def propose(
        self, requests: Sequence[Request], *, agent: str, snapshot: Snapshot | None
    ) -> Sequence[Trial]:
        """Write new trials with the snapshot of the agent after asking for them.

        A request whose (plan, fidelity, base, preparation) the job already has returns that
        trial, not a new one. `snapshot` None keeps the stored one (trials that no agent asked for).
        """
        ...

    def start(self, trial: Trial) -> Attempt:
        """Open an attempt; the trial becomes RUNNING. An older live attempt becomes LOST.

        Its `resume` is the newest checkpoint that was kept of the trial.
        """
        ...

    def keep(self, attempt: Attempt, checkpoint: Digest) -> None:
        """Note how far an attempt's training came; ignored of an attempt that is not live."""
        ...

    def record(self, finished: Finished) -> Trial | None:
        """Write outcome, readings, artifacts and costs; return the trial as it now stands.

        A retryable failure with attempts left returns the trial PROPOSED again. A result of an
        attempt that is no longer the trial's newest is dropped and returns None.
        """
        ...

    def lost(self, attempt: Attempt, reason: str) -> Trial:
        """Close an attempt whose process died: PROPOSED again, or FAILED with none left."""
        ...

    def warm_start(self, known: Sequence[Remembered]) -> int:
        """Write what other jobs have measured as finished proxies of agent `memory`.

        They cost no budget. Done once, with the event `job.warm_start` beside it: again, or after
        any trial but the dense model's own was proposed, it changes nothing. A plan that the job
        has a proxy of is left out.

        Returns:
            How many trials were written.
        """
        ...

    def event(self, kind: str, payload: Mapping[str, Any]) -> None:
        """Append to the job's event log."""
        ...
