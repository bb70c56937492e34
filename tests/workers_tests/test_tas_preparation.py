"""The preparation `tas` end to end: ordered, interrupted, refused, and started from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from compression.artifact import Digest
from compression.methods import resolve_space
from compression.plan import Plan
from search.measurement import Measured
from search.trial import PREPARED_ROLE, Fidelity, Preparation
from tests.workers_tests.small_job import context_in, widths, work
from workers.bases import read_manifest
from workers.context import JobContext
from workers.errors import WorkerError
from workers.evaluate import evaluate
from workers.executor import CHECKPOINT, Finished
from workers.preparations import tas


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> JobContext:
    return context_in(tmp_path_factory.mktemp("job"))


@pytest.fixture(autouse=True)
def _frequent_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tas, "CHECKPOINT_STEPS", 4)


def options(context: JobContext, **changes: Any) -> dict[str, Any]:
    dense = context.survey.costs.cost(Plan()).macs
    return {"steps": 6, "macs": 0.6 * dense, "batch_size": 16, "choice_rate": 0.2, **changes}


def ordered(
    context: JobContext, given: Mapping[str, Any], resume: Digest | None = None
) -> tuple[Finished, list[Mapping[str, Any]]]:
    reports: list[Mapping[str, Any]] = []
    preparation = Preparation(kind="tas", options=given)
    order = work(Plan(), Fidelity.PREPARED, preparation=preparation, epoch=1, resume=resume)
    return evaluate(order, context, reports.append), reports


def test_an_order_leaves_a_plan_within_the_target(context: JobContext) -> None:
    given = options(context)
    finished, reports = ordered(context, given)
    outcome = finished.outcome
    assert isinstance(outcome, Measured)
    plan = Plan.from_json(outcome.found["plan"])
    macs = context.survey.costs.cost(plan).macs
    assert macs == outcome.found["macs"] <= given["macs"]
    expected = Plan.from_json(outcome.found["expected_plan"])
    assert context.survey.costs.cost(expected).macs <= given["macs"]
    assert 0 <= outcome.found["discrepancy"] <= 1
    for pairs in outcome.found["widths"].values():
        assert sum(probability for _, probability in pairs) == pytest.approx(1, abs=1e-3)
    assert reports[-1]["of"] == 6
    trial = evaluate(work(plan, Fidelity.PROXY), context, lambda _: None)
    assert isinstance(trial.outcome, Measured)


def test_an_interrupted_order_leaves_the_same(context: JobContext) -> None:
    given = options(context)
    whole, reports = ordered(context, given)
    (kept,) = [Digest(r[CHECKPOINT]) for r in reports if CHECKPOINT in r]
    assert ordered(context, given, resume=kept)[0].artifacts == whole.artifacts
    damaged = context.store.put(b"not a checkpoint")
    assert ordered(context, given, resume=damaged)[0].artifacts == whole.artifacts


def test_the_shared_weights_are_a_network_to_start_from(context: JobContext) -> None:
    finished, _ = ordered(context, options(context))
    manifest = read_manifest(finished.artifacts[PREPARED_ROLE], context.store)
    parts = {name: context.store.get(digest) for name, digest in manifest.parts.items()}
    plan = widths(3, 6)
    start = tas.load(parts, context).start(plan)
    assert (start.rest, start.stages) == (plan, ())
    dense, trained = context.dense.state_dict(), start.context.model.state_dict()
    assert any((dense[name] != trained[name]).any() for name in dense)
    known = context.apply_context.module.rankings.order(context.dense, "l2")
    order = start.context.module.rankings.order(start.context.model, "l2")
    assert {s: o.tolist() for s, o in order.items()} == {s: o.tolist() for s, o in known.items()}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"macs": None}, "macs"),
        ({"speed": 3}, "speed"),
        ({"tolerance": "above"}, "tolerance"),
        ({"width": False, "depth": False}, "Nothing to search"),
    ],
)
def test_wrong_options_are_refused(
    context: JobContext, changes: dict[str, Any], words: str
) -> None:
    given = {k: v for k, v in options(context, **changes).items() if v is not None}
    trial = work(
        Plan(), Fidelity.PREPARED, preparation=Preparation(kind="tas", options=given), epoch=1
    )
    with pytest.raises(WorkerError, match=words):
        evaluate(trial, context, lambda _: None)


def test_it_searches_the_jobs_own_model_only(context: JobContext) -> None:
    preparation = Preparation(kind="tas", options=options(context))
    order = work(widths(3, 6), Fidelity.PREPARED, preparation=preparation, epoch=1)
    with pytest.raises(WorkerError, match="own model"):
        evaluate(order, context, lambda _: None)


def test_what_is_repaired_spends_what_one_more_step_would_not_fit(context: JobContext) -> None:
    costs, space = context.survey.costs, resolve_space(context.survey.sites, context.spec.methods)
    dense = costs.cost(Plan()).macs
    for share in (0.4, 0.55, 0.7):
        plan = tas.repaired(space.decode(space.smallest()), space, share * dense, context)
        point = space.encode(plan)
        assert costs.cost(plan).macs <= share * dense
        for number, knob in enumerate(space.knobs):
            if knob.field == "keep_channels" and point[number] + 1 < len(knob.choices):
                wider = space.decode([*point[:number], point[number] + 1, *point[number + 1 :]])
                assert costs.cost(wider).macs > share * dense
