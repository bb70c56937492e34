"""Every table, on SQLite and on PostgreSQL alike.

Empty text stands for "none" wherever a column is part of a unique key, because SQL treats NULLs
as different from each other.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from search.trial import AttemptState, Fidelity, TrialState
from service.db.columns import JSON_VALUE, UtcTime, one_of
from service.job_state import JobOutcome, JobState, JobWish
from service.scan_state import ScanState

JsonObject = Mapping[str, Any]
JsonList = Sequence[Any]
Moment = datetime.datetime

ID_CHARS = 24
DIGEST_CHARS = 64
NAME_CHARS = 200


class Tables(DeclarativeBase):
    """The declarative registry; constraint names are fixed so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {
        str: Text,
        float: Double,
        datetime.datetime: UtcTime,
        JsonObject: JSON_VALUE,
        JsonList: JSON_VALUE,
        JobState: one_of(JobState),
        JobWish: one_of(JobWish),
        JobOutcome: one_of(JobOutcome),
        ScanState: one_of(ScanState),
        TrialState: one_of(TrialState),
        AttemptState: one_of(AttemptState),
        Fidelity: one_of(Fidelity),
    }


class Scanned:
    """Columns of what is uploaded, then opened by a worker."""

    id: Mapped[str] = mapped_column(String(ID_CHARS), primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME_CHARS))
    state: Mapped[ScanState] = mapped_column(index=True)
    artifact: Mapped[JsonObject]
    summary: Mapped[JsonObject | None]
    problem: Mapped[JsonObject | None]
    scan_owner: Mapped[str | None]
    scan_until: Mapped[Moment | None]
    scans: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[Moment]
    updated_at: Mapped[Moment]


class ModelRow(Scanned, Tables):
    """An uploaded network. `survey` can be large: listings leave it in the database."""

    __tablename__ = "models"
    survey: Mapped[JsonObject | None] = mapped_column(deferred=True)


class DatasetRow(Scanned, Tables):
    """An uploaded or named dataset."""

    __tablename__ = "datasets"


class DeviceRow(Tables):
    """A place where time is measured."""

    __tablename__ = "devices"
    name: Mapped[str] = mapped_column(String(NAME_CHARS), primary_key=True)
    spec: Mapped[JsonObject]
    fingerprint: Mapped[str] = mapped_column(String(DIGEST_CHARS))
    created_at: Mapped[Moment]
    seen_at: Mapped[Moment]


class BaselineRow(Tables):
    """Readings of a dense model on a dataset and a device, measured once for all jobs."""

    __tablename__ = "baselines"
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), primary_key=True)
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(DIGEST_CHARS), primary_key=True)
    readings: Mapped[JsonList]
    measured_at: Mapped[Moment]


class JobRow(Tables):
    """One search. The counters change in the transaction of what they count."""

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(String(ID_CHARS), primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME_CHARS))
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), index=True)
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), index=True)
    state: Mapped[JobState]
    wish: Mapped[JobWish]
    outcome: Mapped[JobOutcome | None]
    spec: Mapped[JsonObject]
    spec_digest: Mapped[str] = mapped_column(String(DIGEST_CHARS))
    request: Mapped[JsonObject]
    labels: Mapped[JsonObject]
    seed: Mapped[int] = mapped_column(BigInteger)
    problem: Mapped[JsonObject | None]
    next_number: Mapped[int] = mapped_column(default=0)
    next_recorded: Mapped[int] = mapped_column(default=0)
    next_event: Mapped[int] = mapped_column(default=1)
    spent_trials: Mapped[int] = mapped_column(default=0)
    spent_wall_s: Mapped[float] = mapped_column(default=0.0)
    spent_device_s: Mapped[float] = mapped_column(default=0.0)
    created_at: Mapped[Moment]
    updated_at: Mapped[Moment]
    started_at: Mapped[Moment | None]
    ended_at: Mapped[Moment | None]
    __table_args__ = (
        Index("ix_jobs_created_at_id", "created_at", "id"),
        Index("ix_jobs_state_created_at", "state", "created_at"),
    )


class LeaseRow(Tables):
    """Who drives a job; `epoch` grows with every claim and never shrinks."""

    __tablename__ = "leases"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    owner: Mapped[str | None]
    epoch: Mapped[int] = mapped_column(default=0)
    expires_at: Mapped[Moment | None]


class JobTransitionRow(Tables):
    """One move of a job, kept for ever."""

    __tablename__ = "job_transitions"
    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    before: Mapped[JobState | None] = mapped_column(one_of(JobState, "before"))
    after: Mapped[JobState] = mapped_column(one_of(JobState, "after"))
    reason: Mapped[str]
    at: Mapped[Moment]


class SnapshotRow(Tables):
    """The agent's snapshot of the last proposal; arrays as `.npz` bytes, never a pickle."""

    __tablename__ = "snapshots"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    data: Mapped[JsonObject]
    arrays: Mapped[bytes | None] = mapped_column(LargeBinary)
    at: Mapped[Moment]


class TrialRow(Tables):
    """One plan at one fidelity in one job. `failure` is the outcome where nothing was measured.

    `preparation` and its key are of trials that train for others; `found` is what they found out,
    and `resume` the newest checkpoint of any trial's training.
    """

    __tablename__ = "trials"
    id: Mapped[str] = mapped_column(String(ID_CHARS), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    number: Mapped[int]
    plan: Mapped[JsonObject]
    plan_digest: Mapped[str] = mapped_column(String(DIGEST_CHARS))
    fidelity: Mapped[Fidelity]
    base: Mapped[str] = mapped_column(String(DIGEST_CHARS), default="")
    preparation: Mapped[JsonObject | None]
    preparation_key: Mapped[str] = mapped_column(String(DIGEST_CHARS), default="")
    seed: Mapped[int] = mapped_column(BigInteger)
    agent: Mapped[str] = mapped_column(String(NAME_CHARS))
    state: Mapped[TrialState]
    failure: Mapped[JsonObject | None]
    found: Mapped[JsonObject | None]
    artifacts: Mapped[JsonObject]
    resume: Mapped[str] = mapped_column(String(DIGEST_CHARS), default="")
    recorded: Mapped[int | None]
    proposed_at: Mapped[Moment]
    finished_at: Mapped[Moment | None]
    attempts: Mapped[list[AttemptRow]] = relationship(order_by="AttemptRow.epoch")
    readings: Mapped[list[ReadingRow]] = relationship(order_by="ReadingRow.position")
    __table_args__ = (
        UniqueConstraint("job_id", "number"),
        UniqueConstraint(
            "job_id",
            "plan_digest",
            "fidelity",
            "base",
            "preparation_key",
            name="uq_trials_job_id_plan_digest_fidelity_base_preparation",
        ),
        UniqueConstraint("job_id", "recorded"),
        Index("ix_trials_job_id_state_number", "job_id", "state", "number"),
    )


class AttemptRow(Tables):
    """One execution of a trial; at most one of them is live."""

    __tablename__ = "attempts"
    id: Mapped[str] = mapped_column(String(ID_CHARS), primary_key=True)
    trial_id: Mapped[str] = mapped_column(ForeignKey("trials.id"))
    epoch: Mapped[int]
    state: Mapped[AttemptState]
    owner: Mapped[str]
    reason: Mapped[str | None]
    seconds: Mapped[JsonObject | None]
    started_at: Mapped[Moment]
    ended_at: Mapped[Moment | None]
    __table_args__ = (
        UniqueConstraint("trial_id", "epoch"),
        Index(
            "uq_attempts_live",
            "trial_id",
            unique=True,
            sqlite_where=text("state = 'RUNNING'"),
            postgresql_where=text("state = 'RUNNING'"),
        ),
    )


class ReadingRow(Tables):
    """A measured value of a trial, in the metric's unit."""

    __tablename__ = "readings"
    id: Mapped[int] = mapped_column(primary_key=True)
    trial_id: Mapped[str] = mapped_column(ForeignKey("trials.id"))
    position: Mapped[int]
    metric: Mapped[str] = mapped_column(String(NAME_CHARS))
    device: Mapped[str] = mapped_column(String(NAME_CHARS), default="")
    statistic: Mapped[str] = mapped_column(String(16), default="")
    value: Mapped[float]
    low: Mapped[float]
    high: Mapped[float]
    n: Mapped[int] = mapped_column(BigInteger)
    split: Mapped[str | None] = mapped_column(String(16))
    ratio_value: Mapped[float | None]
    ratio_low: Mapped[float | None]
    ratio_high: Mapped[float | None]
    estimated: Mapped[bool]
    warning: Mapped[str | None]
    __table_args__ = (
        UniqueConstraint("trial_id", "metric", "device", "statistic"),
        Index("ix_readings_metric_trial_id", "metric", "trial_id"),
    )


class ArtifactRow(Tables):
    """A blob of the artifact store in the role it plays for users."""

    __tablename__ = "artifacts"
    id: Mapped[str] = mapped_column(String(ID_CHARS), primary_key=True)
    digest: Mapped[str] = mapped_column(String(DIGEST_CHARS))
    role: Mapped[str] = mapped_column(String(NAME_CHARS))
    media_type: Mapped[str] = mapped_column(String(NAME_CHARS))
    file_name: Mapped[str] = mapped_column(String(NAME_CHARS))
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[Moment]
    __table_args__ = (UniqueConstraint("digest", "role"),)


class FrontRow(Tables):
    """One revision of a job's front; the newest is the front."""

    __tablename__ = "fronts"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    revision: Mapped[int] = mapped_column(primary_key=True)
    outcome: Mapped[JobOutcome | None]
    hypervolume: Mapped[float | None]
    baseline: Mapped[JsonList]
    nearest: Mapped[JsonList]
    binding: Mapped[JsonList]
    published_at: Mapped[Moment]


class FrontMemberRow(Tables):
    """A member of one revision of a front; `artifacts` is role to artifact id."""

    __tablename__ = "front_members"
    job_id: Mapped[str] = mapped_column(String(ID_CHARS), primary_key=True)
    revision: Mapped[int] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    trial_id: Mapped[str] = mapped_column(ForeignKey("trials.id"), index=True)
    plan_digest: Mapped[str] = mapped_column(String(DIGEST_CHARS))
    readings: Mapped[JsonList]
    artifacts: Mapped[JsonObject]
    __table_args__ = (
        ForeignKeyConstraint(
            ["job_id", "revision"],
            ["fronts.job_id", "fronts.revision"],
            name="fk_front_members_revision_fronts",
        ),
    )


class EventRow(Tables):
    """An entry of a job's append-only log; `seq` has no gaps."""

    __tablename__ = "events"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(NAME_CHARS))
    payload: Mapped[JsonObject]
    at: Mapped[Moment]


class ApiKeyRow(Tables):
    """A key to the API; of its secret only the SHA-256 is kept."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(String(ID_CHARS), primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME_CHARS))
    prefix: Mapped[str] = mapped_column(String(16), unique=True)
    secret_sha256: Mapped[str] = mapped_column(String(DIGEST_CHARS))
    scopes: Mapped[JsonList]
    created_at: Mapped[Moment]
    expires_at: Mapped[Moment | None]
    revoked_at: Mapped[Moment | None]


class IdempotencyKeyRow(Tables):
    """What was answered to a request with an `Idempotency-Key`; `status` None is in flight."""

    __tablename__ = "idempotency_keys"
    principal: Mapped[str] = mapped_column(String(NAME_CHARS), primary_key=True)
    key: Mapped[str] = mapped_column(String(NAME_CHARS), primary_key=True)
    request_digest: Mapped[str] = mapped_column(String(DIGEST_CHARS))
    status: Mapped[int | None]
    headers: Mapped[JsonObject | None]
    body: Mapped[JsonObject | None]
    created_at: Mapped[Moment]
    expires_at: Mapped[Moment] = mapped_column(index=True)


class SensitivityRow(Tables):
    """What single decisions do to a model, computed once for all jobs.

    While `profile` and `problem` are both none, `owner` computes it until `until`.
    """

    __tablename__ = "sensitivity_profiles"
    model_digest: Mapped[str] = mapped_column(String(DIGEST_CHARS), primary_key=True)
    dataset_digest: Mapped[str] = mapped_column(String(DIGEST_CHARS), primary_key=True)
    code_version: Mapped[str] = mapped_column(String(NAME_CHARS), primary_key=True)
    owner: Mapped[str | None]
    until: Mapped[Moment | None]
    tries: Mapped[int]
    profile: Mapped[JsonObject | None]
    problem: Mapped[str | None]
    created_at: Mapped[Moment]
    updated_at: Mapped[Moment]


class EvaluationRow(Tables):
    """What came of a plan in circumstances that jobs share; see `workers.memory`."""

    __tablename__ = "evaluations"
    circumstances: Mapped[str] = mapped_column(String(DIGEST_CHARS), primary_key=True)
    plan_digest: Mapped[str] = mapped_column(String(DIGEST_CHARS), primary_key=True)
    plan: Mapped[JsonObject]
    outcome: Mapped[JsonObject]
    artifacts: Mapped[JsonObject]
    devices: Mapped[JsonObject]
    trial_id: Mapped[str] = mapped_column(String(ID_CHARS))
    known_at: Mapped[Moment]
    __table_args__ = (Index("ix_evaluations_circumstances_known_at", "circumstances", "known_at"),)
