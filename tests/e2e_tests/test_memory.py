"""Two jobs on one model, with every process real: the second starts from what the first knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e_tests.server import serving
from tests.e2e_tests.test_kill import job, register


@pytest.mark.ray
@pytest.mark.slow
def test_a_second_job_starts_warm_and_pays_for_nothing_again(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as (_, client):
        model_id, dataset_id = register(client)
        body = {
            **job(model_id, dataset_id),
            "agent": {"name": "random", "options": {}},
            "recovery": {"epochs": 0, "finalists": 1},
            "budget": {"trials": 4},
            "memory": True,
        }
        first = client.submit(body)
        assert first.wait(progress=False, timeout_s=240).warm_trials == 0
        assert not any(trial.remembered for trial in first.trials())

        second = client.submit(body)
        info = second.wait(progress=False, timeout_s=240)
        assert info.state == "SUCCEEDED"
        assert info.warm_trials == 4
        started = [event.payload for event in second.watch() if event.kind == "job.warm_start"]
        assert started == [{"trials": 4}]
        known = {(t.plan_digest, t.fidelity): t for t in first.trials()}
        for trial in second.trials():
            before = known.get((trial.plan_digest, trial.fidelity))
            again = before is not None and trial.fidelity != "confirmed"
            assert trial.remembered is again
            if before is not None and again:
                assert trial.readings == before.readings
