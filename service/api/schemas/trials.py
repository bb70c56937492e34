"""The shape of trials, readings and fronts."""

from __future__ import annotations

import datetime
from typing import Any

from pydantic import Field

from search.trial import AttemptState, Fidelity, TrialState
from service.api.schemas.jobs import ConstraintIn, ObjectiveIn
from service.api.schemas.strict import Answer, Request
from service.job_state import JobOutcome


class IntervalOut(Answer):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class ReadingOut(Answer):
    """A measured value; see `/metrics` for the units.

    Attributes:
        metric: What was measured.
        value: In `unit`.
        low: Lower end of the 95 % interval; equals `value` for exact quantities.
        high: Upper end.
        n: Inputs scored or runs timed.
        unit: Physical unit, `1` for a share.
        device: Where it was timed.
        statistic: `p50`, `p95` or `p99` for times.
        split: Which data an accuracy is of: `search` or the held-out `test`.
        ratio: Value over the dense model's, measured beside it.
        estimated: True when predicted.
        warning: Why it should be doubted.
    """

    metric: str
    value: float
    low: float
    high: float
    n: int
    unit: str
    device: str | None = None
    statistic: str | None = None
    split: str | None = None
    ratio: IntervalOut | None = None
    estimated: bool = False
    warning: str | None = None


ReadingsOut = dict[str, ReadingOut]
"""By metric name. A time stands under its plain name for the job's first device at p50, and under
`metric@device:statistic` otherwise."""


class AttemptOut(Answer):
    """One execution of a trial; `seconds` is wall time by step."""

    id: str
    epoch: int
    state: AttemptState
    reason: str | None
    seconds: dict[str, float]
    started_at: datetime.datetime
    ended_at: datetime.datetime | None


class PreparationOut(Answer):
    """What a trial trains for later trials, apart from its plan and its base."""

    kind: str
    options: dict[str, Any]


class TrialOut(Answer):
    """One plan at one fidelity in one job.

    Attributes:
        id: Identifier.
        job_id: Its job.
        number: 0, 1, 2, ... in the order of proposal.
        state: Where it stands.
        fidelity: How it is scored.
        agent: Who asked for it.
        base: Artifact digest the plan was applied to; None for the job's model.
        preparation: What is trained, at fidelity `prepared`: such a trial is no candidate, its
            artifact is the `base` of later ones. None for every other trial.
        plan_digest: The plan's name.
        plan: Decisions by site.
        feasible: Whether it holds the job's bounds at this fidelity; None until measured.
            Before recovery an accuracy floor does not count, because nothing would hold it.
        violations: By how much each bound is missed, relative to its size, by constraint;
            `<= 0` holds.
        readings: What was measured.
        found: What a preparation found out, by its kind; empty for every other trial.
        failure: Why nothing was.
        remembered: Whether its outcome is that of an earlier job's trial, so that nothing was
            carried out.
        attempts: Executions, oldest first.
        artifacts: Role to artifact id.
        proposed_at: Moment it was asked for.
        finished_at: Moment its outcome was recorded.
    """

    id: str
    job_id: str
    number: int
    state: TrialState
    fidelity: Fidelity
    agent: str
    base: str | None
    preparation: PreparationOut | None
    plan_digest: str
    plan: dict[str, Any]
    feasible: bool | None
    violations: dict[str, float]
    readings: ReadingsOut
    found: dict[str, Any]
    failure: dict[str, Any] | None
    remembered: bool
    attempts: list[AttemptOut]
    artifacts: dict[str, str]
    proposed_at: datetime.datetime
    finished_at: datetime.datetime | None


class MemberOut(Answer):
    """A point of a front, or one near it."""

    trial_id: str
    plan_digest: str
    readings: ReadingsOut
    artifacts: dict[str, str]


class RankCorrelationOut(Answer):
    """How far two rungs agree on the order of plans.

    Attributes:
        rho: Spearman's rank correlation of the accuracies, in [-1, 1]; None below 3 plans and
            where one rung scores all alike.
        n: Plans that were measured at both.
    """

    rho: float | None
    n: int


class FrontOut(Answer):
    """The feasible, undominated trials of a job, beside the dense model.

    Attributes:
        job_id: Of which job.
        outcome: What came of the job; None while it runs.
        provisional: True while no revision is published: computed from search trials, which
            were scored without recovery and on search-validation data.
        revision: Of the published front; None when provisional.
        published_at: Moment of the revision.
        baseline: Readings of the dense model.
        hypervolume: Of the front, in units of the baseline's losses.
        members: In a fixed order.
        nearest: Points that miss the bounds least, where there is no member.
        binding_constraints: What stood in the way, and what relaxing it would buy.
        rank_correlation: How far the search's scores order plans like dearer ones, by pair of
            rungs: `proxy_full`, `proxy_short`, `short_full`; empty while provisional.
    """

    job_id: str
    outcome: JobOutcome | None
    provisional: bool
    revision: int | None
    published_at: datetime.datetime | None
    baseline: ReadingsOut
    hypervolume: float | None
    members: list[MemberOut]
    nearest: list[MemberOut]
    binding_constraints: list[dict[str, Any]]
    rank_correlation: dict[str, RankCorrelationOut]


class SelectIn(Request):
    """Other bounds, to be met by what is already measured.

    Attributes:
        constraints: Instead of the job's own.
        objective: What decides among those that hold; the job's first objective when left out.
    """

    constraints: list[ConstraintIn] = Field(default_factory=list)
    objective: ObjectiveIn | None = None


class SelectOut(Answer):
    """The best confirmed point under other bounds.

    Attributes:
        selected: None where no confirmed point holds them all.
        considered: Confirmed points.
        feasible: How many of them hold the bounds.
        nearest: Those that miss the bounds least, where none holds them.
    """

    selected: MemberOut | None
    considered: int
    feasible: int
    nearest: list[MemberOut]
