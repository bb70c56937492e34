"""Answers are read tolerantly, and the front answers questions."""

from __future__ import annotations

import pytest

from paretopress.types import Event, JobInfo, Readings, TrialInfo
from tests.client_tests.examples import front, member, reading, timed


def test_fields_and_states_of_a_newer_server_are_kept() -> None:
    info = JobInfo.model_validate({"id": "job_1", "state": "PAUSED", "novelty": {"a": 1}})
    assert info.state == "PAUSED"
    assert not info.finished
    assert info.model_extra == {"novelty": {"a": 1}}


def test_readings_are_found_by_metric_device_and_statistic() -> None:
    slow = {**timed(3.0), "statistic": "p95"}
    readings = Readings.of(
        {"latency_ms": timed(1.0), "latency_ms@local/onnxruntime:p95": slow, "macs": {"value": 7}}
    )
    first, p95 = readings.get("latency_ms"), readings.get("latency_ms", statistic="p95")
    assert first is not None
    assert first.value == 1.0
    assert p95 is not None
    assert p95.value == 3.0
    assert readings.get("latency_ms", device="moon") is None
    assert readings.value("macs") == 7


def test_a_list_of_readings_is_read_too() -> None:
    trial = TrialInfo.model_validate({"id": "trl_1", "readings": [reading("top1", 0.5)]})
    assert trial.readings.value("top1") == 0.5


def test_a_metric_that_was_not_measured_is_named() -> None:
    with pytest.raises(KeyError, match="macs"):
        front().members[0].readings.value("macs")


def test_the_best_member_follows_the_metrics_direction() -> None:
    assert front().best("top1").trial_id == "trl_1"
    assert front().best("latency_ms").trial_id == "trl_2"


def test_the_best_member_within_further_bounds() -> None:
    assert front().best("top1", at_most={"latency_ms": 0.6}).trial_id == "trl_2"
    assert front().best("latency_ms", at_least={"top1": 0.965}).trial_id == "trl_1"
    with pytest.raises(LookupError, match="None of the 2 members"):
        front().best("top1", at_most={"latency_ms": 0.1})


@pytest.mark.parametrize(
    ("kind", "payload", "ends"),
    [
        ("job.succeeded", {"state": "SUCCEEDED"}, True),
        ("job.cancelled", {"state": "CANCELLED"}, True),
        ("job.running", {"state": "RUNNING"}, False),
        ("trial.finished", {"state": "FAILED"}, False),
    ],
)
def test_only_a_job_in_a_finished_state_ends_the_watching(
    kind: str, payload: dict[str, str], ends: bool
) -> None:
    assert Event(seq=1, kind=kind, payload=payload).ends_job is ends


def test_members_keep_their_artifacts() -> None:
    assert front(members=[member(4, 0.9, 1.0)]).members[0].artifacts == {"checkpoint": "art_4"}
