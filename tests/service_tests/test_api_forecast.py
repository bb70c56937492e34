"""A forecast is made of what earlier trials of the model took, as far as they are alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from compression.decisions import PruneChannels
from compression.plan import Plan
from search.agent import Evaluate
from search.measurement import Infeasible
from search.trial import Fidelity
from tests.service_tests.api_world import World, world
from workers.executor import Finished, Work
from workers.memory import REMEMBERED

MACS = [{"metric": "macs", "at_most": 0.5, "relative_to": "baseline"}]


@pytest.fixture
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("api")) as made:
        yield made


class Jobs:
    """Jobs on one model and dataset."""

    def __init__(self, api: World) -> None:
        self.api = api
        self.names = {"model_id": api.store_model(), "dataset_id": api.store_dataset()}

    def run(self, fidelity: Fidelity, *seconds: dict[str, float], **changes: Any) -> None:
        """Post a job and record one trial per entry."""
        self.api.post_job(constraints=MACS, **self.names, **changes)
        ledger = self.api.ledger()
        for number, spent in enumerate(seconds):
            plan = Plan.of({"first": (PruneChannels(keep_channels=8 + number, selector="l1"),)})
            requests = [Evaluate(plan=plan, fidelity=fidelity)]
            (trial,) = ledger.propose(requests, agent="random", snapshot=None)
            work = Work(trial=trial, attempt=ledger.start(trial))
            ledger.record(Finished(work=work, outcome=Infeasible("made up"), seconds=spent))

    def forecast(self, **changes: Any) -> dict[str, Any]:
        """Return the forecast of a like job."""
        body = self.api.job_body(constraints=MACS, **self.names, **changes)
        answer = self.api.client.post("/api/v1/jobs?dry_run=true", json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()["forecast"]
        return found


def test_earlier_trials_replace_arithmetic(api: World) -> None:
    jobs = Jobs(api)
    assert jobs.forecast()["source"] == "arithmetic"
    jobs.run(Fidelity.PROXY, *[{"score": 2.0, "time": 1.0}] * 3, {"score": 6.0, "time": 1.0})
    found = jobs.forecast()
    assert (found["source"], found["earlier_trials"]) == ("arithmetic", 0)
    # What was remembered, or spared, took nothing and tells nothing.
    jobs.run(Fidelity.PROXY, {"score": 3.0, "time": 1.0}, {REMEMBERED: 0.0}, {})
    found = jobs.forecast(parallelism=2)
    assert (found["source"], found["earlier_trials"]) == ("earlier_trials", 5)
    # Scoring takes (3 x 2 + 6 + 3) / 5 = 3 s and is shared by two; timing is alone on its node.
    assert found["per_trial_s"] == pytest.approx(4.0)
    assert found["search_s"] == pytest.approx(8 * (3.0 / 2 + 1.0))
    assert "mean of 5 earlier trials" in found["arithmetic"][0]


def test_trials_that_read_other_data_or_devices_do_not_count(api: World) -> None:
    jobs = Jobs(api)
    jobs.run(Fidelity.PROXY, *[{"score": 9.0}] * 5, scoring={"proxy_images": 77})
    assert jobs.forecast()["source"] == "arithmetic"
    assert jobs.forecast(scoring={"proxy_images": 77})["source"] == "earlier_trials"
    virtual = {"metric": "latency_ms", "device": "virtual/phone-core", "at_most": 5.0}
    body = api.job_body(constraints=[virtual], scoring={"proxy_images": 77}, **jobs.names)
    answer = api.client.post("/api/v1/jobs?dry_run=true", json=body)
    assert answer.json()["forecast"]["source"] == "arithmetic"
    assert Jobs(api).forecast(scoring={"proxy_images": 77})["source"] == "arithmetic"


def test_finalists_are_forecast_from_finalists(api: World) -> None:
    jobs = Jobs(api)
    recovery = {"epochs": 2, "finalists": 3}
    assert jobs.forecast(recovery=recovery)["finalists_s"] is None
    jobs.run(Fidelity.FULL, {"recover": 50.0}, {"recover": 70.0}, recovery=recovery)
    assert jobs.forecast(recovery={"epochs": 2, "finalists": 2})["finalists_s"] == 120.0
    assert jobs.forecast(recovery={"epochs": 1, "finalists": 2})["finalists_s"] is None
