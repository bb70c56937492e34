"""What the server answers, as typed data; unknown fields are kept, unknown values tolerated.

A newer server may add fields and states: nothing here refuses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

FINISHED_JOB_STATES = frozenset({"SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED"})
FINISHED_TRIAL_STATES = frozenset({"MEASURED", "INFEASIBLE", "FAILED", "CANCELLED"})
MAXIMIZED_METRICS = frozenset({"top1", "top5", "agreement", "throughput"})
"""Metrics of which more is better; of every other one less is."""


class Answer(BaseModel):
    """Base of all answers: unknown fields stay readable as attributes."""

    model_config = ConfigDict(extra="allow", protected_namespaces=(), frozen=True)


class Interval(Answer):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class Reading(Answer):
    """A measured value.

    Attributes:
        metric: What was measured, for example `latency_ms`.
        value: In `unit`.
        low: Lower end of the 95 % interval; equals `value` for exact quantities.
        high: Upper end.
        n: Inputs scored or runs timed; 1 for exact quantities.
        unit: `ms`, `bytes`, ...; `1` for a share.
        device: Where it was timed.
        statistic: `p50`, `p95` or `p99` for times.
        split: Which data an accuracy is of; `test` was held out from the search.
        ratio: Value over the baseline's, measured beside it.
        estimated: True when predicted instead of measured.
        warning: Why the value should be doubted; None when it need not.
    """

    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int = 1
    unit: str = ""
    device: str | None = None
    statistic: str | None = None
    split: str | None = None
    ratio: Interval | None = None
    estimated: bool = False
    warning: str | None = None


class Readings(Answer):
    """The readings of one evaluation, in the order in which the server gave them."""

    all: tuple[Reading, ...] = ()

    @staticmethod
    def of(data: Any) -> Readings:
        """Build from the server's mapping of name to reading, or from a list of readings."""
        if isinstance(data, Readings):
            return data
        if isinstance(data, Mapping):
            items = [
                {"metric": str(name).partition("@")[0], **item}
                for name, item in data.items()
                if isinstance(item, Mapping)
            ]
        else:
            items = list(data or [])
        return Readings(all=tuple(Reading.model_validate(item) for item in items))

    def get(
        self, metric: str, device: str | None = None, statistic: str | None = None
    ) -> Reading | None:
        """Return the first reading of a metric; None where there is none.

        Args:
            metric: Name.
            device: Only of this device; None takes any.
            statistic: Only this statistic; None takes any.
        """
        for reading in self.all:
            if (
                reading.metric == metric
                and device in (None, reading.device)
                and statistic in (None, reading.statistic)
            ):
                return reading
        return None

    def value(self, metric: str) -> float:
        """Return the value of a metric.

        Raises:
            KeyError: It was not measured.
        """
        reading = self.get(metric)
        if reading is None:
            raise KeyError(f"No reading of {metric!r}; there are {[r.metric for r in self.all]}")
        return reading.value


class ModelInfo(Answer):
    """A registered model; `state` goes from SCANNING to READY or REJECTED."""

    id: str
    name: str = ""
    state: str = ""
    problem: dict[str, Any] | None = None


class DatasetInfo(Answer):
    """A registered dataset; `state` goes from SCANNING to READY or REJECTED."""

    id: str
    name: str = ""
    state: str = ""
    problem: dict[str, Any] | None = None


class JobProgress(Answer):
    """How far a job is.

    Attributes:
        trials: Search trials recorded.
        budget_trials: Search trials it may take; None when only time is bounded.
        by_state: Trials of every fidelity, by state.
        wall_s: Seconds of running so far.
    """

    trials: int = 0
    budget_trials: int | None = None
    by_state: dict[str, int] = Field(default_factory=dict)
    wall_s: float = 0.0


class JobInfo(Answer):
    """A job as it stands.

    Attributes:
        id: Identifier.
        name: The user's name for it.
        state: QUEUED, RUNNING, FINALIZING, CANCELLING, or a finished state.
        outcome: `front_found`, `infeasible`, `cancelled`, `failed`; None until finished.
        problem: Why it failed.
        progress: How far it is.
        warm_trials: Trials that it began with, measured in earlier jobs; they cost no budget.
        spec: What was asked for, every default filled in; empty in listings.
    """

    id: str
    name: str = ""
    state: str = ""
    outcome: str | None = None
    model_id: str | None = None
    dataset_id: str | None = None
    problem: dict[str, Any] | None = None
    progress: JobProgress = JobProgress()
    warm_trials: int = 0
    spec: dict[str, Any] = Field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether it will not change any more."""
        return self.state in FINISHED_JOB_STATES


class TrialInfo(Answer):
    """One plan at one fidelity in one job.

    Attributes:
        feasible: Whether it holds the job's bounds; None until measured.
        remembered: Whether its outcome is that of an earlier job's trial.
    """

    id: str
    number: int = 0
    state: str = ""
    fidelity: str = ""
    plan_digest: str = ""
    feasible: bool | None = None
    remembered: bool = False
    readings: Readings = Readings()

    @field_validator("readings", mode="before")
    @classmethod
    def _of_any_form(cls, data: Any) -> Readings:
        return Readings.of(data)


class Event(Answer):
    """One entry of a job's event log.

    Attributes:
        seq: 1, 2, 3, ... within the job.
        kind: `job.state`, `trial.finished`, ...
        payload: What happened, as JSON data.
    """

    seq: int
    kind: str
    payload: dict[str, Any] = Field(default_factory=dict)

    @property
    def ends_job(self) -> bool:
        """Whether this is the last event of its job."""
        if not self.kind.startswith("job."):
            return False
        states = {str(self.payload.get(key, "")).upper() for key in ("state", "to")}
        return bool(states & FINISHED_JOB_STATES)


class EventPage(Answer):
    """Events after a number, oldest first."""

    data: tuple[Event, ...] = ()
    has_more: bool = False


class FrontMember(Answer):
    """One point of the front.

    Attributes:
        trial_id: The confirmed trial.
        plan_digest: Name of its plan.
        readings: Measured on the rebuilt, deployed files.
        artifacts: Role (`checkpoint`, `onnx`, `coded`, `report`) to artifact id.
    """

    trial_id: str
    plan_digest: str = ""
    readings: Readings = Readings()
    artifacts: dict[str, str] = Field(default_factory=dict)

    @field_validator("readings", mode="before")
    @classmethod
    def _of_any_form(cls, data: Any) -> Readings:
        return Readings.of(data)


class Front(Answer):
    """The feasible, non-dominated, confirmed trials of a job, beside the dense baseline.

    Attributes:
        job_id: Of which job.
        outcome: See `JobInfo`.
        baseline: Readings of the model as it was given.
        members: In the server's order; commands and tables number them from 0.
        provisional: True while the job runs: the members are search trials, neither recovered
            nor confirmed, and have no checkpoints yet.
        hypervolume: Of the front, in units of the baseline.
        nearest: The points that miss the bounds least, where no point meets them all.
        binding_constraints: Which bounds stood in the way, and what relaxing them would buy.
    """

    job_id: str = ""
    outcome: str | None = None
    provisional: bool = False
    baseline: Readings = Readings()
    members: tuple[FrontMember, ...] = ()
    hypervolume: float | None = None
    nearest: tuple[FrontMember, ...] = ()
    binding_constraints: tuple[Any, ...] = ()

    @field_validator("baseline", mode="before")
    @classmethod
    def _of_any_form(cls, data: Any) -> Readings:
        return Readings.of(data)

    def best(
        self,
        metric: str = "top1",
        *,
        at_most: Mapping[str, float] | None = None,
        at_least: Mapping[str, float] | None = None,
    ) -> FrontMember:
        """Return the member that is best in a metric, among those within further bounds.

        Args:
            metric: Accuracies and throughput: the larger the better; else the smaller.
            at_most: Metric to largest value, in the metric's unit.
            at_least: Metric to smallest value.

        Raises:
            LookupError: No member is within the bounds.
        """
        within = [
            member
            for member in self.members
            if all(member.readings.value(m) <= limit for m, limit in (at_most or {}).items())
            and all(member.readings.value(m) >= limit for m, limit in (at_least or {}).items())
        ]
        if not within:
            raise LookupError(
                f"None of the {len(self.members)} members of the front has "
                f"at_most={dict(at_most or {})}, at_least={dict(at_least or {})}"
            )
        sign = -1.0 if metric in MAXIMIZED_METRICS else 1.0
        return min(within, key=lambda member: sign * member.readings.value(metric))


class ArtifactInfo(Answer):
    """A stored file: its digest, size and media type."""

    id: str
    sha256: str = ""
    size_bytes: int | None = None
    media_type: str = ""
