"""Evaluations of all jobs: what came of a plan in given circumstances, for whoever asks again."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Sequence

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from compression.artifact import Digest
from compression.plan import Plan
from search.measurement import Failed, outcome_from_json, outcome_to_json
from service.db.columns import utc_now
from service.db.session import Database
from service.db.tables import EvaluationRow
from workers.memory import MemoryKey, Remembered


class SqlMemory:
    """Implements `workers.memory.Memory`: every method is one transaction.

    No job's lease fences it: an evaluation is true whoever drives the job now.
    """

    def __init__(
        self, database: Database, clock: Callable[[], datetime.datetime] = utc_now
    ) -> None:
        """Open the memory.

        Args:
            database: Where it is.
            clock: The present moment, aware.
        """
        self._database = database
        self._clock = clock

    def find(self, key: MemoryKey) -> Remembered | None:
        """See `Memory`."""
        with self._database.read() as session:
            row = session.get(EvaluationRow, (key.circumstances, key.plan_digest))
            return None if row is None else _remembered(row)

    def put(self, key: MemoryKey, known: Remembered) -> None:
        """See `Memory`."""
        name = (key.circumstances, key.plan_digest)
        with self._database.write() as session:
            row = session.get(EvaluationRow, name, with_for_update=True)
            if row is not None:
                _write(row, known, self._clock())
                return
            row = EvaluationRow(circumstances=key.circumstances, plan_digest=key.plan_digest)
            _write(row, known, self._clock())
            # Another conductor may have been first by a moment: what it wrote is as true.
            with contextlib.suppress(IntegrityError), session.begin_nested():
                session.add(row)

    def relevant(self, circumstances: Sequence[str], limit: int) -> Sequence[Remembered]:
        """See `Memory`."""
        query = (
            select(EvaluationRow)
            .where(EvaluationRow.circumstances.in_(list(circumstances)))
            .order_by(EvaluationRow.known_at.desc(), EvaluationRow.plan_digest)
            .limit(limit)
        )
        with self._database.read() as session:
            return [_remembered(row) for row in session.scalars(query)]


def _write(row: EvaluationRow, known: Remembered, now: datetime.datetime) -> None:
    row.plan, row.outcome = known.plan.to_json(), outcome_to_json(known.outcome)
    row.artifacts, row.devices = dict(known.artifacts), dict(known.devices)
    row.trial_id, row.known_at = known.trial_id, now


def _remembered(row: EvaluationRow) -> Remembered:
    outcome = outcome_from_json(row.outcome)
    assert not isinstance(outcome, Failed), f"a failure of trial {row.trial_id} is remembered"
    return Remembered(
        plan=Plan.from_json(row.plan),
        outcome=outcome,
        artifacts={role: Digest(digest) for role, digest in row.artifacts.items()},
        devices=dict(row.devices),
        trial_id=row.trial_id,
    )
