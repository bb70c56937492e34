"""Jobs: posted once, listed, watched, cancelled; their trials, fronts and selections."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from compression.artifact import Digest
from compression.decisions import PruneChannels
from compression.plan import Plan
from search.agent import Evaluate, Prepare
from search.measurement import Failed, Infeasible, Measured, Measurement
from search.trial import PREPARED_ROLE, Fidelity
from service.db import artifacts, fronts, jobs
from service.job_state import JobOutcome, JobState
from tests.service_tests.api_world import (
    DENSE_MACS,
    DEVICE,
    World,
    assert_problem,
    dense,
    measured,
    world,
)
from workers.executor import Finished, Work
from workers.job import JobSpec
from workers.ledger import RUNGS
from workers.memory import REMEMBERED, Remembered


@pytest.fixture
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("api")) as made:
        yield made


def pruned(first: int, second: int = 64) -> Plan:
    decisions = {"first": [PruneChannels(keep_channels=first)]}
    if second < 64:
        decisions["second"] = [PruneChannels(keep_channels=second)]
    return Plan.of(decisions)


def test_a_job_is_queued_with_every_default_filled_in(api: World) -> None:
    answer = api.client.post("/api/v1/jobs", json=api.job_body(labels={"team": "vision"}))
    assert answer.status_code == 202, answer.text
    found = answer.json()
    assert answer.headers["location"] == f"/api/v1/jobs/{found['id']}"
    assert found["state"] == "QUEUED"
    assert found["outcome"] is None
    assert found["progress"] == {
        "trials": 0,
        "budget_trials": 8,
        "by_state": {},
        "wall_s": 0.0,
        "device_s": 0.0,
    }
    assert [phase["state"] for phase in found["phases"]] == ["QUEUED"]
    assert found["spec"]["constraints"][1]["statistic"] == "p50"
    assert found["spec"]["objectives"][0]["direction"] == "maximize"
    assert [device["name"] for device in found["spec"]["devices"]] == [DEVICE]
    assert api.client.get(answer.headers["location"]).json() == found
    with api.database.read() as session:
        spec = JobSpec.from_json(jobs.get(session, found["id"]).spec)
    assert spec.job_id == found["id"]
    assert spec.agent == "random"
    assert spec.budget.trials == 8


def test_a_repeated_key_starts_one_job(api: World) -> None:
    body = api.job_body()
    key = {"Idempotency-Key": "once"}
    first = api.client.post("/api/v1/jobs", json=body, headers=key)
    again = api.client.post("/api/v1/jobs", json=body, headers=key)
    assert again.status_code == 202
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotency-replayed"] == "true"
    assert len(api.client.get("/api/v1/jobs").json()["data"]) == 1
    other = api.client.post("/api/v1/jobs", json={**body, "seed": 7}, headers=key)
    assert_problem(other, 422, "idempotency-key-reused")
    refused = api.client.post("/api/v1/jobs", json={**body, "budget": {}}, headers={**key})
    assert_problem(refused, 422, "idempotency-key-reused")
    fresh = {"Idempotency-Key": "refused-first"}
    refused = api.client.post("/api/v1/jobs", json={**body, "budget": {}}, headers=fresh)
    assert_problem(refused, 422, "validation")
    assert api.client.post("/api/v1/jobs", json=body, headers=fresh).status_code == 202


def test_one_key_from_many_at_once_starts_one_job(api: World) -> None:
    body = api.job_body()
    ids: list[str] = []

    def post() -> None:
        key = {"Idempotency-Key": "together"}
        ids.append(api.client.post("/api/v1/jobs", json=body, headers=key).json()["id"])

    threads = [threading.Thread(target=post) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 4
    assert len(set(ids)) == 1


def test_lists_filter_by_state_and_label(api: World) -> None:
    model, data = api.store_model(), api.store_dataset()
    common = {"model_id": model, "dataset_id": data}
    made = [api.post_job(**common, labels={"team": team}) for team in ("a", "b", "a")]
    api.client.post(f"/api/v1/jobs/{made[0]}:cancel")
    listed = api.client.get("/api/v1/jobs").json()["data"]
    assert [job["id"] for job in listed] == made[::-1]
    found = api.client.get("/api/v1/jobs?label=team:a&state=QUEUED").json()["data"]
    assert [job["id"] for job in found] == [made[2]]
    page = api.client.get("/api/v1/jobs?limit=2").json()
    assert page["has_more"] is True
    rest = api.client.get(f"/api/v1/jobs?limit=2&cursor={page['next_cursor']}").json()
    assert [job["id"] for job in rest["data"]] == [made[0]]


def test_cancel_is_idempotent_and_refused_after_the_end(api: World) -> None:
    job_id = api.post_job()
    for _ in range(2):
        answer = api.client.post(f"/api/v1/jobs/{job_id}:cancel")
        assert answer.status_code == 200
        assert answer.json()["state"] == "CANCELLED"
        assert answer.json()["outcome"] == "cancelled"
    running = api.post_job()
    api.move(running, JobState.RUNNING)
    assert api.client.post(f"/api/v1/jobs/{running}:cancel").json()["state"] == "CANCELLING"
    ended = api.post_job()
    api.move(ended, JobState.RUNNING, JobState.FINALIZING, JobState.SUCCEEDED)
    document = assert_problem(api.client.post(f"/api/v1/jobs/{ended}:cancel"), 409, "illegal-state")
    assert document["state"] == "SUCCEEDED"
    assert_problem(api.client.post("/api/v1/jobs/job_no:cancel"), 404, "not-found")


def test_waiting_ends_with_the_job(api: World) -> None:
    job_id = api.post_job()
    api.move(job_id, JobState.RUNNING)

    def end() -> None:
        with api.database.write() as session:
            problem = {"title": "Failed", "detail": "no device"}
            jobs.transition(
                session,
                job_id,
                JobState.FAILED,
                "test",
                outcome=JobOutcome.FAILED,
                problem=problem,
            )

    timer = threading.Timer(0.3, end)
    timer.start()
    found = api.client.get(f"/api/v1/jobs/{job_id}", headers={"Prefer": "wait=20"}).json()
    timer.join()
    assert found["state"] == "FAILED"
    assert found["outcome"] == "failed"
    assert found["problem"]["detail"] == "no device"
    assert [phase["state"] for phase in found["phases"]] == ["QUEUED", "RUNNING", "FAILED"]
    assert found["phases"][1]["seconds"] > 0
    assert found["phases"][2]["seconds"] is None


def test_trials_tell_what_was_tried(api: World) -> None:
    job_id = api.post_job(
        recovery={"epochs": 1},
        constraints=[
            {"metric": "macs", "at_most": 0.5, "relative_to": "baseline"},
            {"metric": "top1", "at_least": 0.85},
        ],
    )
    ledger = api.ledger()
    dense(ledger)
    good = measured(ledger, pruned(8), top1=0.8, latency_ms=0.5)
    bad = measured(ledger, pruned(24), top1=0.89, latency_ms=0.9)
    api_path = f"/api/v1/jobs/{job_id}/trials"
    listed = api.client.get(api_path).json()["data"]
    assert [trial["number"] for trial in listed] == [0, 1, 2]
    assert listed[0]["feasible"] is None
    # Before recovery an accuracy floor is told, and does not count.
    assert listed[1]["feasible"] is True
    assert listed[1]["violations"]["top1"] > 0
    assert listed[2]["feasible"] is False
    found = api.client.get(f"/api/v1/trials/{good.id}").json()
    assert found == listed[1]
    assert found["readings"]["latency_ms"]["statistic"] == "p50"
    assert found["readings"][f"latency_ms@{DEVICE}:p95"]["value"] == 1.0
    assert found["readings"]["macs"]["ratio"]["value"] < 0.5
    assert found["plan"]["sites"]["first"][0]["keep_channels"] == 8
    assert [attempt["state"] for attempt in found["attempts"]] == ["SUCCEEDED"]
    assert found["attempts"][0]["seconds"] == {"apply": 0.1}
    page = api.client.get(f"{api_path}?limit=1&state=MEASURED&fidelity=proxy").json()
    assert page["has_more"] is True
    rest = api.client.get(f"{api_path}?limit=5&cursor={page['next_cursor']}").json()
    assert [trial["id"] for trial in rest["data"]] == [good.id, bad.id]
    assert api.client.get(f"/api/v1/jobs/{job_id}").json()["progress"]["by_state"] == {
        "MEASURED": 3
    }


def test_a_preparation_is_told_as_such(api: World) -> None:
    job_id = api.post_job()
    ledger = api.ledger()
    order = Prepare(kind="finetune", plan=pruned(8), options={"steps": 3})
    (trial,) = ledger.propose([order], agent="cooling", snapshot=None)
    outcome = Measured(Measurement(()), {"top1": 0.5})
    artifacts_of = {PREPARED_ROLE: Digest("c" * 64)}
    work = Work(trial=trial, attempt=ledger.start(trial))
    ledger.record(Finished(work=work, outcome=outcome, artifacts=artifacts_of))
    path = f"/api/v1/jobs/{job_id}/trials?fidelity=prepared"
    (found,) = api.client.get(path).json()["data"]
    assert found["preparation"] == {"kind": "finetune", "options": {"steps": 3}}
    assert found["found"] == {"top1": 0.5}
    assert found["feasible"] is None
    assert found["readings"] == {}
    assert set(found["artifacts"]) == {PREPARED_ROLE}
    assert api.client.get(f"/api/v1/jobs/{job_id}").json()["progress"]["trials"] == 0


def test_a_job_tells_what_it_knew_before(api: World) -> None:
    job_id = api.post_job()
    ledger = api.ledger()
    dense(ledger)
    known = Remembered(plan=pruned(8), outcome=Infeasible("refused"), trial_id="trl_other")
    ledger.warm_start([known])
    (trial,) = ledger.propose([Evaluate(plan=pruned(16))], agent="random", snapshot=None)
    work = Work(trial=trial, attempt=ledger.start(trial))
    ledger.record(Finished(work=work, outcome=Infeasible("refused"), seconds={REMEMBERED: 0.0}))
    found = api.client.get(f"/api/v1/jobs/{job_id}").json()
    assert found["warm_trials"] == 1
    assert found["progress"]["trials"] == 1
    listed = api.client.get(f"/api/v1/jobs/{job_id}/trials").json()["data"]
    assert [trial["remembered"] for trial in listed] == [False, True, True]
    assert [trial["agent"] for trial in listed] == ["baseline", "memory", "random"]
    assert [len(trial["attempts"]) for trial in listed] == [1, 0, 1]
    log = api.client.get(f"/api/v1/jobs/{job_id}/events").json()["data"]
    assert [e["payload"] for e in log if e["kind"] == "job.warm_start"] == [{"trials": 1}]


def test_memory_can_be_switched_off(api: World) -> None:
    for given, expected in (({}, True), ({"memory": True}, True), ({"memory": False}, False)):
        job_id = api.post_job(**given)
        found = api.client.get(f"/api/v1/jobs/{job_id}").json()
        assert found["spec"]["memory"] is expected
        assert found["warm_trials"] == 0


def test_a_failed_trial_says_why(api: World) -> None:
    job_id = api.post_job()
    ledger = api.ledger()
    dense(ledger)
    trial = measured(ledger, pruned(16), top1=0.8, latency_ms=0.5)
    assert isinstance(trial.outcome, Measured)
    from search.agent import Evaluate

    (other,) = ledger.propose([Evaluate(plan=pruned(8))], agent="random", snapshot=None)
    work = Work(trial=other, attempt=ledger.start(other))
    ledger.record(Finished(work=work, outcome=Failed("export broke")))
    listed = api.client.get(f"/api/v1/jobs/{job_id}/trials?state=FAILED").json()["data"]
    assert listed[0]["failure"] == {"kind": "failed", "error": "export broke", "retryable": False}
    assert listed[0]["feasible"] is None
    assert listed[0]["readings"] == {}


def test_the_front_is_provisional_until_one_is_published(api: World) -> None:
    job_id = api.post_job()
    path = f"/api/v1/jobs/{job_id}/front"
    empty = api.client.get(path).json()
    assert empty["provisional"] is True
    assert empty["baseline"] == {}
    assert empty["rank_correlation"] == {}
    ledger = api.ledger()
    baseline = dense(ledger)
    near = measured(ledger, pruned(16), top1=0.85, latency_ms=0.7)
    found = api.client.get(path).json()
    assert found["members"] == []
    assert [point["trial_id"] for point in found["nearest"]] == [near.id]
    best = measured(ledger, pruned(8), top1=0.8, latency_ms=0.5)
    measured(ledger, pruned(8, 32), top1=0.7, latency_ms=0.4)
    found = api.client.get(path).json()
    assert found["provisional"] is True
    assert found["revision"] is None
    assert found["baseline"]["top1"]["value"] == 0.9
    assert [member["trial_id"] for member in found["members"]] == [best.id]
    assert found["nearest"] == []
    assert isinstance(best.outcome, Measured)
    assert isinstance(baseline.outcome, Measured)
    with api.database.write() as session:
        file = artifacts.register(session, Digest("a" * 64), "checkpoint", size_bytes=3)
        member = fronts.Member(
            trial_id=best.id,
            plan_digest=best.plan.digest,
            readings=best.outcome.measurement,
            artifact_ids={"checkpoint": file.id},
        )
        fronts.publish(
            session,
            job_id,
            fronts.Front(
                members=(member,),
                baseline=baseline.outcome.measurement,
                outcome=JobOutcome.FRONT_FOUND,
                hypervolume=0.25,
                nearest=[
                    {
                        "trial_id": near.id,
                        "plan_digest": near.plan.digest,
                        "readings": near.outcome.measurement.to_json(),
                    }
                ]
                if isinstance(near.outcome, Measured)
                else [],
                binding=[{"constraint": "macs", "limit": 1.0}],
            ),
        )
    rungs = {"proxy_full": {"rho": 0.5, "n": 3}, "proxy_short": {"rho": None, "n": 2}}
    ledger.event(RUNGS, {"metric": "top1", "rank_correlation": {}})
    ledger.event(RUNGS, {"metric": "top1", "rank_correlation": rungs})
    answer = api.client.get(path)
    found = answer.json()
    assert found["provisional"] is False
    assert found["revision"] == 1
    assert found["outcome"] == "front_found"
    assert found["hypervolume"] == 0.25
    assert found["members"][0]["artifacts"] == {"checkpoint": file.id}
    assert found["members"][0]["readings"]["top1"]["low"] == pytest.approx(0.79)
    assert found["nearest"][0]["readings"]["top1"]["value"] == 0.85
    assert found["binding_constraints"] == [{"constraint": "macs", "limit": 1.0}]
    assert found["rank_correlation"] == rungs
    tag = {"if-none-match": answer.headers["etag"]}
    assert api.client.get(path, headers=tag).status_code == 304


def test_select_answers_other_bounds_from_what_is_measured(api: World) -> None:
    job_id = api.post_job()
    path = f"/api/v1/jobs/{job_id}:select"
    document = assert_problem(api.client.post(path, json={}), 409, "illegal-state")
    assert document["state"] == "QUEUED"
    ledger = api.ledger()
    dense(ledger)
    measured(ledger, pruned(8), top1=0.99, latency_ms=0.1)
    dense(ledger, Fidelity.CONFIRMED)
    confirmed = Fidelity.CONFIRMED
    slow = measured(ledger, pruned(16), top1=0.88, latency_ms=0.55, fidelity=confirmed)
    fast = measured(ledger, pruned(8), top1=0.86, latency_ms=0.4, fidelity=confirmed)
    found = api.client.post(path, json={}).json()
    assert found["selected"]["trial_id"] == slow.id
    assert found["considered"] == 2
    assert found["feasible"] == 2
    bound = {"metric": "latency_ms", "device": DEVICE, "at_most": 0.5}
    found = api.client.post(path, json={"constraints": [bound]}).json()
    assert found["selected"]["trial_id"] == fast.id
    assert found["feasible"] == 1
    smallest = {"objective": {"metric": "macs"}}
    assert api.client.post(path, json=smallest).json()["selected"]["trial_id"] == fast.id
    bound = {"metric": "macs", "at_most": 0.001, "relative_to": "baseline"}
    found = api.client.post(path, json={"constraints": [bound]}).json()
    assert found["selected"] is None
    assert found["nearest"][0]["trial_id"] == fast.id
    bound = {"metric": "resident_bytes", "at_most": 5}
    answer = api.client.post(path, json={"constraints": [bound]})
    assert_problem(answer, 422, "validation", "/constraints/0")
    both = [{"metric": "macs", "at_most": 1}, {"metric": "macs", "at_least": DENSE_MACS}]
    answer = api.client.post(path, json={"constraints": both})
    assert_problem(answer, 422, "validation", "/constraints/1")
    answer = api.client.post(path, json={"objective": {"metric": "speed"}})
    assert_problem(answer, 422, "validation", "/objective/metric")
