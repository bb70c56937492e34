"""What a job takes from the memory of all jobs, and what it leaves there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from compression.artifact import Digest
from compression.catalogue import SELECTORS
from compression.decisions import (
    DropBlock,
    MergePool,
    PruneChannels,
    Quantize,
    Share,
    Sparsify,
)
from compression.graph import trace
from compression.plan import Plan
from compression.selectors.selector import Evidence
from compression.site import MODEL_SITE
from search.measurement import Failed, Infeasible, Measured, Measurement, Outcome, Reading
from search.objective import Constraint
from search.trial import Attempt, Fidelity, Preparation, Trial
from tests.builders import SHAPE, ConcatNet, seeded
from tests.contracts.memory import MemoryContract
from tests.memory_of_evaluations import MemoryOfEvaluations
from tests.workers_tests.works import JOB, plan_of
from workers.executor import Finished, Work
from workers.job import JobSpec, Recovery, Scoring
from workers.memory import SEEDLESS_SELECTORS, JobMemory, draws_nothing
from workers.store import FolderStore

DEVICE = "local/onnxruntime"
LATENCY = Constraint(metric="latency_ms", at_most=5.0, device=DEVICE, statistic="p50")


class TestMemoryOfEvaluations(MemoryContract):
    @pytest.fixture
    def memory(self) -> MemoryOfEvaluations:
        return MemoryOfEvaluations()


@pytest.fixture
def shared() -> MemoryOfEvaluations:
    return MemoryOfEvaluations()


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


def seen_by(
    shared: MemoryOfEvaluations, store: FolderStore, spec: JobSpec = JOB, **changes: Any
) -> JobMemory:
    known = {"devices": {DEVICE: "this node"}, "model_id": "mdl_1", "dataset_id": "dst_1"}
    return JobMemory(memory=shared, spec=spec, store=store, **{**known, **changes})


def trial_of(plan: Plan, fidelity: Fidelity = Fidelity.PROXY, **changes: Any) -> Trial:
    return Trial(id="trl_1", number=1, plan=plan, fidelity=fidelity, seed=1, agent="toy", **changes)


def readings(*more: Reading, top1: float = 0.9) -> Outcome:
    reading = Reading(metric="top1", value=top1, low=top1, high=top1, n=100, split="search")
    return Measured(Measurement((reading, *more)))


def timed(value: float) -> Reading:
    return Reading(
        metric="latency_ms", value=value, low=value, high=value, device=DEVICE, statistic="p50"
    )


def finished(
    trial: Trial, outcome: Outcome | None = None, artifacts: dict[str, Digest] | None = None
) -> Finished:
    work = Work(trial=trial, attempt=Attempt(id="att_1", trial_id=trial.id, epoch=1))
    return Finished(work=work, outcome=outcome or readings(), artifacts=artifacts or {})


PLAN = plan_of(8)
RANDOM = Plan.of({"conv1": [PruneChannels(keep_channels=8, selector="random")]})


def test_what_one_job_evaluated_answers_another(
    shared: MemoryOfEvaluations, store: FolderStore
) -> None:
    first = seen_by(shared, store)
    assert first.recall(trial_of(PLAN)) is None
    first.keep(finished(trial_of(PLAN)))
    other = dataclasses.replace(JOB, job_id="job_2", name="other", agent="cbo", parallelism=4)
    known = seen_by(shared, store, other).recall(trial_of(PLAN))
    assert known is not None
    assert (known.outcome, known.trial_id) == (readings(), "trl_1")
    assert seen_by(shared, store, other).recall(trial_of(plan_of(9))) is None


def test_a_refused_plan_is_remembered_and_a_failure_is_not(
    shared: MemoryOfEvaluations, store: FolderStore
) -> None:
    memory = seen_by(shared, store)
    memory.keep(finished(trial_of(PLAN), Failed("out of memory", retryable=True)))
    assert memory.recall(trial_of(PLAN)) is None
    memory.keep(finished(trial_of(PLAN), Infeasible("certificate refused")))
    known = memory.recall(trial_of(PLAN))
    assert known is not None
    assert known.outcome == Infeasible("certificate refused")


def test_nothing_of_held_out_data_is_remembered(
    shared: MemoryOfEvaluations, store: FolderStore
) -> None:
    memory = seen_by(shared, store)
    memory.keep(finished(trial_of(PLAN, Fidelity.CONFIRMED)))
    assert not shared.entries
    memory.keep(finished(trial_of(PLAN)))
    assert memory.recall(trial_of(PLAN, Fidelity.CONFIRMED)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"model": dataclasses.replace(JOB.model, input_shape=(3, 16, 16))},
        {"model": dataclasses.replace(JOB.model, weights=Digest("1" * 64))},
        {"dataset": dataclasses.replace(JOB.dataset, name="cifar10")},
        {"scoring": Scoring(proxy_images=77)},
        {"methods": dataclasses.replace(JOB.methods, refit="least_squares")},
    ],
)
def test_other_circumstances_are_another_evaluation(
    shared: MemoryOfEvaluations, store: FolderStore, change: dict[str, Any]
) -> None:
    seen_by(shared, store).keep(finished(trial_of(PLAN)))
    other = dataclasses.replace(JOB, **change)
    assert seen_by(shared, store, other).recall(trial_of(PLAN)) is None


def test_what_a_proxy_does_not_depend_on_does_not_matter(
    shared: MemoryOfEvaluations, store: FolderStore
) -> None:
    seen_by(shared, store).keep(finished(trial_of(PLAN)))
    other = dataclasses.replace(
        JOB,
        seed=99,
        recovery=Recovery(epochs=7.0),
        methods=dataclasses.replace(JOB.methods, channel_multiple=1, allow=("prune_channels",)),
    )
    assert seen_by(shared, store, other).recall(trial_of(PLAN)) is not None


@pytest.mark.parametrize(
    ("trial", "change"),
    [
        (trial_of(RANDOM), {"seed": 9}),
        (trial_of(PLAN, base=Digest("b" * 64)), {"seed": 9}),
        (trial_of(PLAN, Fidelity.SHORT), {"seed": 9}),
        (trial_of(PLAN, Fidelity.SHORT), {"recovery": Recovery(short_steps=7)}),
        (trial_of(PLAN, Fidelity.FULL), {"recovery": Recovery(epochs=7.0)}),
        (
            trial_of(Plan(), Fidelity.PREPARED, preparation=Preparation(kind="supernet")),
            {"methods": dataclasses.replace(JOB.methods, channel_multiple=1)},
        ),
    ],
)
def test_what_is_drawn_or_trained_depends_on_seed_recipe_and_space(
    shared: MemoryOfEvaluations, store: FolderStore, trial: Trial, change: dict[str, Any]
) -> None:
    memory = seen_by(shared, store)
    memory.keep(finished(trial))
    assert memory.recall(dataclasses.replace(trial, id="trl_2", number=7, seed=70)) is not None
    assert seen_by(shared, store, dataclasses.replace(JOB, **change)).recall(trial) is None
    fewer = dataclasses.replace(JOB, recovery=Recovery(finalists=1, race="none"))
    assert seen_by(shared, store, fewer).recall(trial) is not None


def test_base_and_preparation_name_an_evaluation(
    shared: MemoryOfEvaluations, store: FolderStore
) -> None:
    def prepared(steps: int) -> Trial:
        preparation = Preparation(kind="finetune", options={"steps": steps})
        return trial_of(PLAN, Fidelity.PREPARED, preparation=preparation)

    memory = seen_by(shared, store)
    memory.keep(finished(prepared(10), Measured(Measurement(()), {"top1": 0.5})))
    known = memory.recall(prepared(10))
    assert known is not None
    assert known.outcome == Measured(Measurement(()), {"top1": 0.5})
    assert memory.recall(prepared(20)) is None
    memory.keep(finished(trial_of(PLAN, base=Digest("b" * 64))))
    assert memory.recall(trial_of(PLAN, base=Digest("c" * 64))) is None
    assert memory.recall(trial_of(PLAN)) is None


def test_own_code_is_known_by_its_model(shared: MemoryOfEvaluations, store: FolderStore) -> None:
    seen_by(shared, store).keep(finished(trial_of(PLAN)))
    assert seen_by(shared, store, dataset_id="dst_2").recall(trial_of(PLAN)) is not None
    assert seen_by(shared, store, model_id="mdl_2").recall(trial_of(PLAN)) is None


def test_another_version_of_the_code_evaluates_anew(
    shared: MemoryOfEvaluations, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = seen_by(shared, store)
    memory.keep(finished(trial_of(PLAN)))
    monkeypatch.setattr("workers.memory.EVALUATION_VERSION", 2)
    assert memory.recall(trial_of(PLAN)) is None


def test_an_answer_has_every_reading_that_the_job_names(
    shared: MemoryOfEvaluations, store: FolderStore
) -> None:
    wants_time = seen_by(shared, store, dataclasses.replace(JOB, constraints=(LATENCY,)))
    seen_by(shared, store).keep(finished(trial_of(PLAN)))
    assert wants_time.recall(trial_of(PLAN)) is None
    wants_time.keep(finished(trial_of(PLAN), readings(timed(2.0))))
    # What a later job did not need is not forgotten.
    seen_by(shared, store).keep(finished(trial_of(PLAN)))
    known = wants_time.recall(trial_of(PLAN))
    assert known is not None
    assert known.outcome == readings(timed(2.0))


def test_times_are_of_the_machine_that_they_were_taken_on(
    shared: MemoryOfEvaluations, store: FolderStore
) -> None:
    timing = dataclasses.replace(JOB, constraints=(LATENCY,))
    seen_by(shared, store, timing).keep(finished(trial_of(PLAN), readings(timed(2.0))))
    moved = seen_by(shared, store, timing, devices={DEVICE: "another node"})
    assert moved.recall(trial_of(PLAN)) is None
    untimed = seen_by(shared, store, devices={DEVICE: "another node"}).recall(trial_of(PLAN))
    assert untimed is not None
    assert untimed.outcome == readings()
    moved.keep(finished(trial_of(PLAN), readings(timed(3.0))))
    known = moved.recall(trial_of(PLAN))
    assert known is not None
    assert known.outcome == readings(timed(3.0))


def test_an_evaluation_whose_files_are_gone_is_not_known(
    shared: MemoryOfEvaluations, store: FolderStore
) -> None:
    memory = seen_by(shared, store)
    part, gone = store.put(b"weights"), Digest("d" * 64)

    def manifest(named: Digest) -> dict[str, Digest]:
        return {"recovered": store.put(json.dumps({"parts": {"weights": named}}).encode())}

    full = trial_of(PLAN, Fidelity.FULL)
    for artifacts, is_known in (
        ({"onnx": part}, True),
        ({"onnx": gone}, False),
        (manifest(part), True),
        (manifest(gone), False),
    ):
        memory.keep(finished(full, artifacts=artifacts))
        assert (memory.recall(full) is not None) is is_known


def test_two_trainings_do_not_mix_their_readings(
    shared: MemoryOfEvaluations, store: FolderStore
) -> None:
    memory = seen_by(shared, store)
    full = trial_of(PLAN, Fidelity.FULL)
    memory.keep(finished(full, readings(timed(2.0)), {"onnx": store.put(b"one")}))
    memory.keep(finished(full, readings(top1=0.8), {"onnx": store.put(b"two")}))
    known = memory.recall(full)
    assert known is not None
    assert known.outcome == readings(top1=0.8)


@pytest.mark.parametrize(
    ("decision", "expected"),
    [
        (DropBlock(), True),
        (PruneChannels(keep_channels=4), True),
        (PruneChannels(keep_channels=4, selector="random"), False),
        (PruneChannels(keep_channels=4, refit="least_squares"), False),
        (MergePool(refit="none"), True),
        (MergePool(), False),
        (Quantize(), True),
        (Quantize(rounding="adaround"), False),
        (Sparsify(), False),
        (Share(entries=16), False),
    ],
)
def test_which_decisions_draw_nothing(decision: Any, expected: bool) -> None:
    assert draws_nothing(Plan.of({MODEL_SITE: [decision]})) is expected
    assert draws_nothing(Plan())


@pytest.mark.parametrize("name", sorted(SEEDLESS_SELECTORS))
def test_selectors_said_to_draw_nothing_draw_nothing(name: str) -> None:
    model = seeded(ConcatNet)
    groups = [group for group in trace(model, SHAPE) if not group.is_output]
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(8, *SHAPE, generator=generator)
    y = torch.randint(0, 10, (8,), generator=generator)
    one, other = (
        SELECTORS[name].scores(
            model, groups, Evidence(batches=[(x, y)], calibration=[x], seed=seed)
        )
        for seed in (0, 1)
    )
    assert one.keys() == other.keys() != set()
    assert all((one[key] == other[key]).all() for key in one)
