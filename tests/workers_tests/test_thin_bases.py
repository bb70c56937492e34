"""Trials that start from what a preparation left: widths, patches, refusals, the whole ladder."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from compression.apply import replay
from compression.artifact import Digest
from compression.backend import Backend
from compression.decisions import PruneChannels, Sparsify
from compression.errors import PlanInvalid
from compression.patch import Patch
from compression.plan import Plan
from compression.site import MODEL_SITE
from search.measurement import Failed, Infeasible, Measured
from search.trial import PREPARED_ROLE, Fidelity, Preparation
from tests.workers_tests.small_job import context_in, finetune, widths, work
from workers.bases import load_base, read_manifest, resolve, start_of
from workers.context import JobContext
from workers.edge import guarded
from workers.errors import BlobMissing, WorkerError
from workers.evaluate import evaluate
from workers.executor import Finished, Work
from workers.preparations import PREPARATIONS
from workers.recovered import load_recovered
from workers.thin_base import ThinBase, remaining

REACHED = widths(5, 6, "block2")


def run(context: JobContext, given: Work) -> Finished:
    return guarded(lambda: lambda w, report: evaluate(w, context, report))(given, lambda _: None)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> JobContext:
    context = context_in(tmp_path_factory.mktemp("job"))
    vars(context)["backend"] = Backend()
    return context


@pytest.fixture(scope="module")
def prepared(context: JobContext) -> Finished:
    return run(context, finetune(REACHED, steps=30))


@pytest.fixture(scope="module")
def base(prepared: Finished) -> Digest:
    return prepared.artifacts[PREPARED_ROLE]


def value(finished: Finished, metric: str) -> float:
    assert isinstance(finished.outcome, Measured), finished.outcome
    reading = finished.outcome.measurement.get(metric)
    assert reading is not None
    return reading.value


def test_what_is_left_of_a_plan_names_final_widths() -> None:
    assert remaining(REACHED, REACHED) == Plan()
    assert remaining(widths(3, 6, "block2"), REACHED) == widths(3)
    assert remaining(widths(5, 4, "block2", "block3"), REACHED) == widths(None, 4, "block3")
    # A dropped block takes the widths inside it along.
    assert remaining(widths(None, 6, "block1", "block2"), REACHED) == widths(None, None, "block1")
    other = Plan.of(
        {MODEL_SITE: [Sparsify(sparsity=0.5)], "block3.conv1": [PruneChannels(keep_channels=4)]}
    )
    assert remaining(_joined(REACHED, other), REACHED) == other
    # Another criterion that keeps as many channels has nothing to do.
    taylor = Plan.of({"block1.conv1": [PruneChannels(keep_channels=5, selector="l1")]})
    assert remaining(taylor, widths(5)) == Plan()


def _joined(*plans: Plan) -> Plan:
    table: dict[str, list[Any]] = {}
    for plan in plans:
        for site, decision in plan:
            table.setdefault(site, []).append(decision)
    return Plan.of(table)


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (widths(6, 6, "block2"), "'block1.conv1' has 5 channels in the base; the plan keeps 6"),
        (widths(5, None, "block2"), "'stem' has 6 channels in the base; the plan keeps all"),
        (widths(5, 6), "Block 'block2' was dropped from the base"),
    ],
)
def test_nothing_can_grow_again(plan: Plan, reason: str, context: JobContext, base: Digest) -> None:
    with pytest.raises(PlanInvalid, match=reason):
        remaining(plan, REACHED)
    finished = run(context, work(plan, Fidelity.PROXY, base=base))
    assert isinstance(finished.outcome, Infeasible)
    assert reason in finished.outcome.reason


def test_a_preparation_says_what_it_reached(context: JobContext, prepared: Finished) -> None:
    assert isinstance(prepared.outcome, Measured)
    assert Plan.from_json(prepared.outcome.found["plan"]) == REACHED
    assert prepared.outcome.found["top1"] == value(prepared, "top1")
    assert value(prepared, "macs") == context.survey.costs.cost(REACHED).macs
    manifest = read_manifest(prepared.artifacts[PREPARED_ROLE], context.store)
    assert manifest.preparation == Preparation(kind="finetune", options={"steps": 30})
    assert (manifest.plan, manifest.base) == (REACHED, None)


def test_a_base_scored_as_it_is_is_what_training_made(
    context: JobContext, prepared: Finished, base: Digest
) -> None:
    again = run(context, work(REACHED, Fidelity.PROXY, base=base))
    assert value(again, "top1") == value(prepared, "top1")
    assert value(again, "top1") > value(run(context, work(REACHED, Fidelity.PROXY)), "top1")


def test_plans_on_a_base_cost_what_they_cost_in_the_jobs_model(
    context: JobContext, base: Digest
) -> None:
    for plan in (widths(3, 4, "block2", "block3"), widths(None, 5, "block1", "block2")):
        finished = run(context, work(plan, Fidelity.PROXY, base=base))
        cost = context.survey.costs.cost(plan)
        assert (value(finished, "macs"), value(finished, "params")) == (cost.macs, cost.params)


def test_a_base_of_a_base_is_counted_in_the_jobs_model(context: JobContext, base: Digest) -> None:
    plan = widths(3, 4, "block2", "block3")
    second = run(context, finetune(plan, steps=5, base=base)).artifacts[PREPARED_ROLE]
    loaded, first = load_base(second, context), load_base(base, context)
    assert isinstance(loaded, ThinBase)
    assert isinstance(first, ThinBase)
    stages = dict(loaded.patch.stages)
    assert stages["drop_block"] == {"blocks": ["block2", "block3"]}
    before = dict(first.patch.stages)["prune_channels"]["kept"]
    for site, count in (("stem", 4), ("block1.conv1", 3)):
        kept = stages["prune_channels"]["kept"][site]
        assert len(kept) == count
        assert set(kept) < set(before[site])
    shapes = {k: v.shape for k, v in loaded.apply_context.model.state_dict().items()}
    replayed = replay(Patch(loaded.patch.stages), context.apply_context).state_dict()
    assert shapes == {k: v.shape for k, v in replayed.items()}
    proxy = run(context, work(widths(2, 4, "block2", "block3"), Fidelity.PROXY, base=second))
    assert isinstance(proxy.outcome, Measured)


def test_two_bases_are_kept_loaded(context: JobContext, base: Digest) -> None:
    trial = work(REACHED, Fidelity.PROXY, base=base).trial
    assert start_of(trial, context).context is start_of(trial, context).context
    assert base in context.bases
    assert len(context.bases) <= 2


def test_plans_that_leave_more_than_thinner_layers_are_no_bases(context: JobContext) -> None:
    plan = _joined(widths(5), Plan.of({MODEL_SITE: [Sparsify(sparsity=0.5)]}))
    finished = run(context, finetune(plan, steps=1))
    assert isinstance(finished.outcome, Infeasible)
    assert "sparsify" in finished.outcome.reason


@pytest.mark.parametrize("steps", [0, -1, 1.5, "many", None, True])
def test_steps_must_be_a_number(context: JobContext, steps: Any) -> None:
    finished = run(context, finetune(widths(5), steps=steps))
    assert isinstance(finished.outcome, Failed)
    assert "'steps' of preparation 'finetune'" in finished.outcome.error
    assert not finished.outcome.retryable


def test_what_is_no_base_is_refused(context: JobContext) -> None:
    gone = Digest("ab" * 32)
    with pytest.raises(BlobMissing):
        load_base(gone, context)
    with pytest.raises(WorkerError, match="not what a preparation left"):
        load_base(context.store.put(b"[]"), context)
    document = {"preparation": "dream", "options": {}, "plan": Plan().to_json(), "base": None}
    dream = context.store.put(json.dumps({**document, "parts": {}}).encode())
    with pytest.raises(WorkerError, match="start a trial from a preparation of kind 'dream'"):
        load_base(dream, context)
    finished = run(context, work(REACHED, Fidelity.PROXY, base=gone))
    assert isinstance(finished.outcome, Failed)


def test_a_kind_whose_module_is_missing_says_so() -> None:
    with pytest.raises(WorkerError, match=r"module workers\.nowhere is not installed"):
        resolve({"tas": "workers.nowhere:prepare"}, "tas", "carry out")
    with pytest.raises(WorkerError, match="kind 'dream'"):
        resolve(PREPARATIONS, "dream", "carry out")
    assert callable(resolve(PREPARATIONS, "finetune", "carry out"))


def test_a_prepared_trial_without_a_preparation_fails(context: JobContext) -> None:
    finished = run(context, work(Plan(), Fidelity.PREPARED))
    assert isinstance(finished.outcome, Failed)
    assert "names no preparation" in finished.outcome.error


@pytest.mark.slow
def test_a_trial_on_a_base_is_recovered_and_confirmed_from_the_jobs_model(
    context: JobContext, base: Digest
) -> None:
    plan = _joined(
        widths(3, 4, "block2", "block3"), Plan.of({MODEL_SITE: [Sparsify(sparsity=0.25)]})
    )
    full = run(context, work(plan, Fidelity.FULL, base=base))
    assert value(full, "macs") == context.survey.costs.cost(plan).macs
    manifest = full.artifacts["recovered"]
    recovered = load_recovered(manifest, context.store)
    assert recovered.plan == plan
    assert [line["step"] for line in recovered.story] == [
        "original",
        "finetune",
        "drop_block",
        "prune_channels",
        "sparsify",
        "recover",
    ]
    # The base's training is in it: the job's model alone, cut the same way, is other weights.
    model = replay(recovered.patch, context.apply_context)
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in recovered.state.items()
    }
    assert not torch.equal(model.state_dict()["fc.weight"], recovered.state["fc.weight"])
    confirmed = run(context, work(plan, Fidelity.CONFIRMED, base=manifest))
    assert value(confirmed, "params") == context.survey.costs.cost(plan).params
    archive = zipfile.ZipFile(io.BytesIO(context.store.get(confirmed.artifacts["checkpoint"])))
    record: Mapping[str, Any] = json.loads(archive.read("plan.json"))
    assert Plan.from_json(record["plan"]) == plan
    report = json.loads(archive.read("report.json"))
    assert report["data"]["starts from"] == (
        f"preparation finetune (steps 30), artifact {base[:12]}"
    )
