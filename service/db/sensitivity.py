"""Sensitivity profiles: computed once per model, data and version of the code, for all jobs."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
from collections.abc import Mapping
from typing import Any, Literal

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from compression.artifact import ModelArtifact
from compression.plan import canonical_json
from service.db.columns import utc_now
from service.db.tables import SensitivityRow
from workers.job import DatasetArtifact
from workers.sensitivity_options import VERSION

MAX_TRIES = 2
"""Computations that may die before the model is taken to be what kills them."""

ProfileState = Literal["waiting", "computing", "ready", "failed"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProfileKey:
    """What a profile is of.

    Attributes:
        model_digest: SHA-256 of the model artifact: weights, architecture and preprocessing.
        dataset_digest: SHA-256 of the dataset artifact: data and splits.
        code_version: Of this program and of the profile's options.
    """

    model_digest: str
    dataset_digest: str
    code_version: str

    @staticmethod
    def of(model: ModelArtifact, dataset: DatasetArtifact, model_id: str) -> ProfileKey:
        """Return the key of a model on a dataset.

        Args:
            model: The dense model.
            dataset: Its data.
            model_id: Names the model where its builder brings the weights, so that the artifact
                does not say which they are.
        """
        named = {**model.to_json(), **({} if model.weights else {"model_id": model_id})}
        return ProfileKey(
            model_digest=_digest(named),
            dataset_digest=_digest(dataset.to_json()),
            code_version=f"{importlib.metadata.version('paretopress')}-{VERSION}",
        )

    def row(self) -> tuple[str, str, str]:
        """Return the primary key."""
        return self.model_digest, self.dataset_digest, self.code_version


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredProfile:
    """A profile as the database has it.

    Attributes:
        state: `waiting` until someone computes it.
        profile: As `workers.sensitivity_profile` makes it; None until `ready`.
        problem: Why there is none, when `failed`.
        updated_at: Moment of the last change; None while `waiting`.
    """

    state: ProfileState
    profile: Mapping[str, Any] | None = None
    problem: str | None = None
    updated_at: datetime.datetime | None = None


def get(session: Session, key: ProfileKey) -> StoredProfile:
    """Return what is known of a profile."""
    row = session.get(SensitivityRow, key.row())
    if row is None:
        return StoredProfile(state="waiting")
    state: ProfileState = "computing"
    if row.profile is not None:
        state = "ready"
    elif row.problem is not None:
        state = "failed"
    elif row.until is None:
        state = "waiting"
    return StoredProfile(
        state=state, profile=row.profile, problem=row.problem, updated_at=row.updated_at
    )


def claim(
    session: Session,
    key: ProfileKey,
    owner: str,
    lease_s: float,
    *,
    now: datetime.datetime | None = None,
) -> Literal["mine", "taken", "done"]:
    """Take a profile that nobody computes; `done` when it is there, or will never be.

    A computation that was released, or whose owner died and whose lease has run out, is tried
    again, `MAX_TRIES` times in all.
    """
    now = now or utc_now()
    until = now + datetime.timedelta(seconds=lease_s)
    row = session.get(SensitivityRow, key.row(), with_for_update=True)
    if row is None:
        row = SensitivityRow(
            model_digest=key.model_digest,
            dataset_digest=key.dataset_digest,
            code_version=key.code_version,
            owner=owner,
            until=until,
            tries=1,
            created_at=now,
            updated_at=now,
        )
        try:
            with session.begin_nested():
                session.add(row)
        except IntegrityError:
            return "taken"
        return "mine"
    if row.profile is not None or row.problem is not None:
        return "done"
    if row.until is not None and row.until > now:
        return "taken"
    if row.tries >= MAX_TRIES:
        _close(row, now)
        row.problem = f"Its computations died {row.tries} times; {MAX_TRIES} is the limit"
        session.flush()
        return "done"
    row.tries += 1
    row.owner, row.until, row.updated_at = owner, until, now
    session.flush()
    return "mine"


def put(session: Session, key: ProfileKey, profile: Mapping[str, Any]) -> None:
    """Store a profile that was claimed; one that is stored stays as it is."""
    row = session.get_one(SensitivityRow, key.row(), with_for_update=True)
    if row.profile is None:
        _close(row, utc_now())
        row.profile, row.problem = dict(profile), None
        session.flush()


def refuse(session: Session, key: ProfileKey, problem: str) -> None:
    """Store why there is no profile; one that is stored stays as it is."""
    row = session.get_one(SensitivityRow, key.row(), with_for_update=True)
    if row.profile is None:
        _close(row, utc_now())
        row.problem = problem
        session.flush()


def release(session: Session, key: ProfileKey) -> None:
    """Let go of a claim whose computation died; the next claim tries again."""
    row = session.get_one(SensitivityRow, key.row(), with_for_update=True)
    _close(row, utc_now())
    session.flush()


def _close(row: SensitivityRow, now: datetime.datetime) -> None:
    row.owner, row.until, row.updated_at = None, None, now


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()
