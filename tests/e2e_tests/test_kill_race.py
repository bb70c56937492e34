"""kill -9 of the conductor, then of Ray's `gcs_server`, in mid-race: it goes on where it was."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.e2e_tests.server import serving, wait_for
from tests.e2e_tests.test_kill import register

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FINALISTS = 2


def job(model_id: str, dataset_id: str) -> dict[str, Any]:
    return {
        "name": "race",
        "model_id": model_id,
        "dataset_id": dataset_id,
        "objectives": [{"metric": "top1", "direction": "maximize"}],
        "constraints": [{"metric": "macs", "at_most": 0.9, "relative_to": "baseline"}],
        "methods": {"allow": ["prune_channels"]},
        "agent": {"name": "random", "options": {}},
        "recovery": {"epochs": 12, "finalists": FINALISTS, "race": "asha", "augment": False},
        "budget": {"trials": 3},
        "parallelism": 1,
        "seed": 3,
    }


class Book:
    """What the server's database says of a job."""

    def __init__(self, folder: Path, job_id: str) -> None:
        self._database, self._job_id = folder / "paretopress.db", job_id

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query about `:job`."""
        database = sqlite3.connect(self._database)
        try:
            return database.execute(query, {"job": self._job_id}).fetchall()
        finally:
            database.close()

    def finalists(self, fidelity: str) -> dict[str, str]:
        """Return the states of finalists by id, in the order of proposal."""
        return dict(
            self.rows(
                "SELECT id, state FROM trials WHERE job_id = :job AND agent = 'finalist'"
                f" AND fidelity = '{fidelity}' ORDER BY number"
            )
        )

    def attempts(self, trial_id: str) -> list[str]:
        """Return how a trial's attempts ended, in order."""
        query = f"SELECT state FROM attempts WHERE trial_id = '{trial_id}' ORDER BY epoch"
        return [state for (state,) in self.rows(query)]

    def rungs(self) -> dict[str, list[int]]:
        """Return which rungs each trial told of, in order."""
        found: dict[str, list[int]] = {}
        for (payload,) in self.rows(
            "SELECT payload FROM events WHERE job_id = :job AND kind = 'trial.progress'"
            " ORDER BY seq"
        ):
            told = json.loads(payload)
            if "rung" in told:
                found.setdefault(told["trial_id"], []).append(told["rung"])
        return found


def test_what_is_killed_in_mid_race_loses_and_doubles_nothing(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as (server, client):
        running = client.submit(job(*register(client)))
        book = Book(tmp_path / "data", running.id)
        wait_for(lambda: len(told(book)) >= 1, 900, "no finalist came to a rung before the kill")
        assert server.kill("-m service.conductor") == 1
        wait_for(lambda: len(told(book)) >= 2, 900, "no rung was told after the conductor died")
        assert server.kill("gcs_server") == 1
        info = running.wait(progress=False, timeout_s=900)
        assert (info.state, info.outcome) == ("SUCCEEDED", "front_found")

        finalists = book.finalists("full")
        assert len(finalists) == FINALISTS
        assert set(finalists.values()) <= {"MEASURED", "INFEASIBLE"}
        # Whoever raced lost an attempt, not a rung: that is neither run nor told again.
        attempts = {finalist: book.attempts(finalist) for finalist in finalists}
        assert all(states[-1] == "SUCCEEDED" for states in attempts.values())
        assert all(set(states[:-1]) <= {"LOST"} for states in attempts.values())
        assert attempts[next(iter(finalists))][0] == "LOST"
        assert all(rungs in ([1], [1, 2]) for rungs in book.rungs().values())
        # Who won is confirmed, once; who is on the front was confirmed.
        confirmed = book.finalists("confirmed")
        assert 1 <= len(confirmed) <= list(finalists.values()).count("MEASURED")
        assert {member.trial_id for member in running.front().members} <= set(confirmed)
        assert book.rows("SELECT 1 FROM attempts WHERE state = 'RUNNING'") == []


def told(book: Book) -> list[int]:
    """Return all rungs that were told of."""
    return [rung for rungs in book.rungs().values() for rung in rungs]
