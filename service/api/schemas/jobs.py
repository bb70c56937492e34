"""The shape of a job."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, StringConstraints

from compression.decisions import Refit
from compression.methods import Methods
from search.trial import TrialState
from service.api.schemas.strict import Answer, Finite, Name, Request
from service.job_state import JobOutcome, JobState
from workers.job import Average, FeatureLoss, KdLoss, RaceMode, Recovery, Scoring

_METHODS, _RECOVERY, _SCORING = Methods(), Recovery(), Scoring()

Statistic = Literal["p50", "p95", "p99"]
Relation = Literal["baseline", "baseline_difference"]
Label = Annotated[str, StringConstraints(max_length=200)]
Labels = Annotated[
    dict[Annotated[str, StringConstraints(min_length=1, max_length=64)], Label],
    Field(max_length=16),
]


class ObjectiveIn(Request):
    """A metric to push as far as it goes.

    Attributes:
        metric: Name under `/metrics`.
        direction: The metric's own when left out.
        device: For timed metrics, name under `/devices`.
        statistic: For timed metrics; `p50` when left out.
    """

    metric: str
    direction: Literal["maximize", "minimize"] | None = None
    device: str | None = None
    statistic: Statistic | None = None


class ConstraintIn(Request):
    """A bound on a metric of the deployed model; exactly one of `at_most` and `at_least`.

    Attributes:
        metric: Name under `/metrics`.
        at_most: Upper bound.
        at_least: Lower bound.
        relative_to: `baseline` makes the bound a multiple of the dense model's value,
            `baseline_difference` adds it to that value; absolute when left out.
        device: For timed metrics, name under `/devices`.
        statistic: For timed metrics; `p50` when left out.
    """

    metric: str
    at_most: Finite | None = None
    at_least: Finite | None = None
    relative_to: Relation | None = None
    device: str | None = None
    statistic: Statistic | None = None


class MethodsIn(Request):
    """Which primitives may be used, and how; see `/methods`."""

    allow: list[str] = Field(default_factory=lambda: list(_METHODS.allow))
    freeze: list[str] = Field(default_factory=list)
    channel_multiple: int = _METHODS.channel_multiple
    min_keep_ratio: Finite = _METHODS.min_keep_ratio
    selectors: list[str] = Field(default_factory=lambda: list(_METHODS.selectors))
    factorize: list[str] = Field(default_factory=lambda: list(_METHODS.factorize))
    sparsify: list[str] = Field(default_factory=lambda: list(_METHODS.sparsify))
    quantize_weights: list[str] = Field(default_factory=lambda: list(_METHODS.quantize_weights))
    share: list[str] = Field(default_factory=lambda: list(_METHODS.share))
    refit: Refit = _METHODS.refit


class AgentIn(Request):
    """Who proposes plans; `auto` is this server's default. See `/agents` for the options."""

    name: str = "auto"
    options: dict[str, JsonValue] = Field(default_factory=dict)


class RecoveryIn(Request):
    """How the finalists get their accuracy back."""

    epochs: float = Field(default=_RECOVERY.epochs, ge=0, le=1000, allow_inf_nan=False)
    distill: bool = _RECOVERY.distill
    learning_rate: float = Field(default=_RECOVERY.learning_rate, gt=0, le=10, allow_inf_nan=False)
    batch_size: int = Field(default=_RECOVERY.batch_size, ge=1, le=4096)
    temperature: float = Field(default=_RECOVERY.temperature, gt=0, le=100, allow_inf_nan=False)
    distill_weight: float = Field(default=_RECOVERY.distill_weight, ge=0, le=1, allow_inf_nan=False)
    augment: bool = _RECOVERY.augment
    short_steps: int = Field(default=_RECOVERY.short_steps, ge=1, le=100_000)
    finalists: int = Field(default=_RECOVERY.finalists, ge=1, le=64)
    kd_loss: KdLoss = _RECOVERY.kd_loss
    feature_loss: FeatureLoss = _RECOVERY.feature_loss
    mixup: float = Field(default=_RECOVERY.mixup, ge=0, le=1, allow_inf_nan=False)
    average: Average = _RECOVERY.average
    weight_decay: float = Field(default=_RECOVERY.weight_decay, ge=0, le=1, allow_inf_nan=False)
    early_stop: int | None = Field(default=_RECOVERY.early_stop, ge=1, le=10_000)
    quantization_aware: bool = _RECOVERY.quantization_aware
    short_finalists: int = Field(default=_RECOVERY.short_finalists, ge=0, le=256)
    race: RaceMode = _RECOVERY.race
    race_reduction: int = Field(default=_RECOVERY.race_reduction, ge=2, le=4)


class ScoringIn(Request):
    """How much data a proxy trial reads, and which trials are not measured at all.

    With `prune_hopeless` a proposal whose latency is foretold to miss its bound, by a model of the
    readings so far, is recorded as infeasible without being measured.
    """

    recalibration_images: int = Field(default=_SCORING.recalibration_images, ge=1)
    proxy_images: int = Field(default=_SCORING.proxy_images, ge=1)
    parity_images: int = Field(default=_SCORING.parity_images, ge=1, le=1024)
    prune_hopeless: bool = _SCORING.prune_hopeless


class BudgetIn(Request):
    """When the search stops; at least one limit.

    With `only_if_promising` there is no search where trials of earlier jobs on the model keep the
    new bounds and no untried plan is likely to be better: finalists are chosen at once.
    """

    trials: int | None = Field(default=None, ge=1)
    wall_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    device_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    only_if_promising: bool = False


class JobCreate(Request):
    """One search: model + dataset + objectives + constraints + methods + agent + budget.

    With `memory` the job starts from what other jobs have measured in the same circumstances
    (model, data, scoring, version of the server, and seed where something is drawn), and what it
    would evaluate again is answered at once; such a trial counts against the budget, and takes no
    time. Without it nothing of other jobs is used and nothing is left to them: the same job then
    gives the same trials, whatever ran before.
    """

    name: Name = "job"
    model_id: str
    dataset_id: str
    objectives: list[ObjectiveIn] = Field(min_length=1, max_length=4)
    constraints: list[ConstraintIn] = Field(default_factory=list)
    methods: MethodsIn = MethodsIn()
    agent: AgentIn = AgentIn()
    recovery: RecoveryIn = RecoveryIn()
    scoring: ScoringIn = ScoringIn()
    budget: BudgetIn
    parallelism: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    labels: Labels = Field(default_factory=dict)
    memory: bool = True


class JobProgress(Answer):
    """How far a job is.

    Attributes:
        trials: Search trials recorded.
        budget_trials: Search trials it may take; None when only time is bounded.
        by_state: Trials of every fidelity, by state.
        wall_s: Seconds of running so far.
        device_s: Seconds of timing on devices so far.
    """

    trials: int
    budget_trials: int | None
    by_state: dict[TrialState, int]
    wall_s: float
    device_s: float


class JobPhase(Answer):
    """A state the job was in; `seconds` is None for the one it is in now."""

    state: JobState
    reason: str
    since: datetime.datetime
    seconds: float | None


class JobOut(Answer):
    """A job as it stands.

    Attributes:
        id: Identifier.
        name: The user's name for it.
        state: Where it stands.
        outcome: What came of it; None until it ended.
        problem: Why it failed; None otherwise.
        spec: What was asked for, with every default filled in and `auto` resolved.
        progress: How far it is.
        warm_trials: Trials that it began with, measured in earlier jobs; they cost no budget.
        phases: Every state it was in, oldest first, and for how long.
        links: Paths of what belongs to it.
    """

    id: str
    name: str
    state: JobState
    outcome: JobOutcome | None
    problem: dict[str, Any] | None
    model_id: str
    dataset_id: str
    labels: dict[str, str]
    created_at: datetime.datetime
    started_at: datetime.datetime | None
    ended_at: datetime.datetime | None
    spec: dict[str, Any]
    progress: JobProgress
    warm_trials: int
    phases: list[JobPhase]
    links: dict[str, str]


class JobSummary(Answer):
    """A job in a listing; the whole of it is at `/jobs/{id}`."""

    id: str
    name: str
    state: JobState
    outcome: JobOutcome | None
    model_id: str
    dataset_id: str
    labels: dict[str, str]
    created_at: datetime.datetime
    progress: JobProgress
