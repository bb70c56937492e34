"""One plan at one fidelity in one job, and the table of its legal transitions."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal

from compression.artifact import Digest
from compression.plan import Plan, canonical_json
from search.errors import IllegalTransition
from search.measurement import Failed, Infeasible, Measured, Outcome


class Fidelity(StrEnum):
    """How much recovery and how much data goes into scoring a trial; a rung of the ladder."""

    PROXY = "proxy"
    """Plan applied, BatchNorm recalibrated, scored on a search-validation subset, timed."""
    SHORT = "short"
    """Proxy plus a few hundred steps of distillation."""
    FULL = "full"
    """The job's whole recovery recipe, all of search-validation."""
    CONFIRMED = "confirmed"
    """Rebuilt from its files, parity-checked, timed with interval, held-out test read once."""
    PREPARED = "prepared"
    """No rung: long training that an agent ordered, whose artifact later trials start from."""


SEARCH_FIDELITIES = frozenset({Fidelity.PROXY, Fidelity.SHORT})
"""Rungs that count against a job's budget of trials."""


class TrialState(StrEnum):
    """Where a trial stands. Finished states never change; states are never removed."""

    PROPOSED = "PROPOSED"
    """Asked of the agent and recorded; no attempt is live. A lost attempt leads back here."""
    RUNNING = "RUNNING"
    """One attempt is live."""
    MEASURED = "MEASURED"
    """Evaluated; violated constraints are data, not a state."""
    INFEASIBLE = "INFEASIBLE"
    """Cannot be evaluated by nature; the agent learns from it, it is never retried."""
    FAILED = "FAILED"
    """The error is not retryable, or the attempts are spent."""
    CANCELLED = "CANCELLED"
    """The job ended first."""


LEGAL: Mapping[TrialState, frozenset[TrialState]] = {
    TrialState.PROPOSED: frozenset({TrialState.RUNNING, TrialState.CANCELLED, TrialState.FAILED}),
    TrialState.RUNNING: frozenset(
        {
            TrialState.PROPOSED,
            TrialState.MEASURED,
            TrialState.INFEASIBLE,
            TrialState.FAILED,
            TrialState.CANCELLED,
        }
    ),
    TrialState.MEASURED: frozenset(),
    TrialState.INFEASIBLE: frozenset(),
    TrialState.FAILED: frozenset(),
    TrialState.CANCELLED: frozenset(),
}

FINISHED = frozenset(state for state, after in LEGAL.items() if not after)


class AttemptState(StrEnum):
    """Where one execution of a trial stands."""

    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    LOST = "LOST"
    """Its process or its conductor died; says nothing about the plan."""


BASELINE_AGENT = "baseline"
"""Who asks for the dense model's own trials; they count against no budget."""

FINALIST_AGENT = "finalist"
"""Who asks for the recovery and confirmation of the search's best."""

MEMORY_AGENT = "memory"
"""Whose trials were measured in earlier jobs; they count against no budget."""

MAX_ATTEMPTS = 3
"""Executions a trial may have before a retryable failure becomes final."""


PrepareKind = Literal["finetune", "admm", "pruning_net", "supernet", "tas"]
"""See `search.agent.Prepare`."""

PREPARED_ROLE = "prepared"
"""Role of the artifact that a preparation leaves: the base of later requests."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What is trained, apart from the plan and the base.

    Attributes:
        kind: Which training.
        options: JSON values; what they mean depends on the kind.
    """

    kind: PrepareKind
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> str:
        """SHA-256 of kind and options: with plan and base the name of the order."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {"kind": self.kind, "options": dict(self.options)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Preparation:
        """Rebuild from `to_json`."""
        return Preparation(kind=data["kind"], options=data["options"])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One plan at one fidelity in one job; (plan digest, fidelity, base, preparation) is unique.

    Attributes:
        id: Unique everywhere.
        number: 0, 1, 2, ... in the order of proposal within the job.
        plan: What is tried.
        fidelity: How it is scored.
        base: Artifact the plan is applied to; None for the job's model.
        preparation: What is trained, at fidelity `prepared`; None for every other trial.
        seed: Of everything random in the evaluation.
        state: Where it stands.
        agent: Who asked for it.
        outcome: What came of it; None until finished.
        artifacts: Role (`weights`, `onnx`, ...) to digest of the files it produced.
        recorded: 0, 1, 2, ... in the order in which outcomes were recorded; None until finished.
    """

    id: str
    number: int
    plan: Plan
    fidelity: Fidelity
    seed: int
    agent: str
    base: Digest | None = None
    preparation: Preparation | None = None
    state: TrialState = TrialState.PROPOSED
    outcome: Outcome | None = None
    artifacts: Mapping[str, Digest] = dataclasses.field(default_factory=dict)
    recorded: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One execution of a trial.

    Attributes:
        id: Unique everywhere.
        trial_id: Which trial.
        epoch: 1, 2, ... within the trial.
        state: Where it stands.
        resume: Newest checkpoint that an earlier attempt left, where the training goes on; None
            to begin at the beginning.
    """

    id: str
    trial_id: str
    epoch: int
    state: AttemptState = AttemptState.RUNNING
    resume: Digest | None = None


def check_transition(before: TrialState, after: TrialState) -> None:
    """Refuse a move that the table does not allow.

    Raises:
        IllegalTransition: `after` cannot follow `before`.
    """
    if after not in LEGAL[before]:
        raise IllegalTransition(f"A {before} trial cannot become {after}")


def state_of(outcome: Outcome) -> TrialState:
    """Return the finished state that an outcome leads to."""
    match outcome:
        case Measured():
            return TrialState.MEASURED
        case Infeasible():
            return TrialState.INFEASIBLE
        case Failed():
            return TrialState.FAILED
