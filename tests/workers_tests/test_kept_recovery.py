"""Recoveries that are cut off go on where they were, to the bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from compression.artifact import Digest
from compression.backend import Backend
from compression.decisions import Share
from compression.errors import CheckpointInvalid
from compression.plan import Plan
from compression.site import MODEL_SITE
from search.measurement import Measured
from search.trial import PREPARED_ROLE, Fidelity
from tests.workers_tests.small_job import context_in, finetune, widths, work
from workers import kept_recovery
from workers.context import JobContext
from workers.evaluate import evaluate
from workers.executor import CHECKPOINT, Finished, Work
from workers.kept_recovery import Kept, KeptRecovery


class PowerCut(BaseException):
    """Stands for kill -9."""


class Attempts:
    """Runs a trial in attempts, each cut off right after so many checkpoints."""

    def __init__(self, context: JobContext) -> None:
        self.context = context
        self.checkpoints: list[Digest] = []
        self.steps: list[int] = []

    def run(self, given: Work, cut_after: int | None = None) -> Finished:
        end = None if cut_after is None else len(self.checkpoints) + cut_after

        def report(data: Mapping[str, Any]) -> None:
            if data.get("step") == "recover":
                self.steps.append(data["done"])
            if CHECKPOINT in data:
                self.checkpoints.append(data[CHECKPOINT])
                if len(self.checkpoints) == end:
                    raise PowerCut

        return evaluate(given, self.context, report)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> JobContext:
    return context_in(tmp_path_factory.mktemp("job"))


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_recovery, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(kept_recovery, "CHECKPOINT_STEPS", 5)


def test_a_cut_preparation_leaves_the_artifact_of_an_undisturbed_one(context: JobContext) -> None:
    vars(context)["backend"] = Backend()
    undisturbed, cut = Attempts(context), Attempts(context)
    expected = undisturbed.run(finetune(widths(5, 6, "block2"), steps=22))
    for _ in range(2):
        resume = cut.checkpoints[-1] if cut.checkpoints else None
        given = finetune(widths(5, 6, "block2"), steps=22)
        attempt = work(given.trial.plan, Fidelity.PREPARED, resume=resume).attempt
        with pytest.raises(PowerCut):
            cut.run(Work(trial=given.trial, attempt=attempt), cut_after=2)
    attempt = work(Plan(), Fidelity.PREPARED, resume=cut.checkpoints[-1]).attempt
    finished = cut.run(Work(trial=given.trial, attempt=attempt))
    assert finished.artifacts[PREPARED_ROLE] == expected.artifacts[PREPARED_ROLE]
    assert finished.outcome == expected.outcome
    # Every checkpoint once: no step was done again.
    assert cut.checkpoints == undisturbed.checkpoints
    assert len(cut.checkpoints) == 5


def test_a_recovery_in_two_parts_goes_on_in_either(context: JobContext) -> None:
    # The layout that is fast on some machines decides how sums round.
    vars(context)["backend"] = Backend(channels_last=True)
    plan = Plan.of({**dict(widths(5, 6).decisions), MODEL_SITE: [Share(entries=8)]})
    undisturbed, cut = Attempts(context), Attempts(context)
    expected = undisturbed.run(work(plan, Fidelity.FULL))
    for cut_after in (4, 8):
        resume = cut.checkpoints[-1] if cut.checkpoints else None
        with pytest.raises(PowerCut):
            cut.run(work(plan, Fidelity.FULL, resume=resume), cut_after=cut_after)
    where = Kept.from_bytes(context.store.get(cut.checkpoints[-1]))
    assert len(where.weights) == 1
    assert where.state is not None
    finished = cut.run(work(plan, Fidelity.FULL, resume=cut.checkpoints[-1]))
    manifests = [
        json.loads(context.store.get(f.artifacts["recovered"])) for f in (expected, finished)
    ]
    assert manifests[0]["parts"] == manifests[1]["parts"]
    assert manifests[0]["story"] == manifests[1]["story"]
    assert finished.outcome == expected.outcome
    assert cut.checkpoints == undisturbed.checkpoints
    # 50 steps and 17, every fifth, and the end of either part.
    assert len(cut.checkpoints) == 15


def test_an_attempt_after_the_last_step_trains_no_more(context: JobContext) -> None:
    vars(context)["backend"] = Backend()
    first, second = Attempts(context), Attempts(context)
    given = finetune(widths(4), steps=6)
    expected = first.run(given)
    attempt = work(Plan(), Fidelity.PREPARED, resume=first.checkpoints[-1]).attempt
    again = second.run(Work(trial=given.trial, attempt=attempt))
    assert again.artifacts == expected.artifacts
    assert not second.checkpoints
    assert not second.steps


def test_checkpoints_come_no_oftener_than_the_clock_allows(
    context: JobContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    vars(context)["backend"] = Backend()
    monkeypatch.setattr(kept_recovery, "CHECKPOINT_S", 3600.0)
    attempts = Attempts(context)
    attempts.run(finetune(widths(4), steps=12))
    # Only the end.
    assert len(attempts.checkpoints) == 1


@pytest.mark.parametrize("what", ["gone", "damaged", "another version", "its blob is gone"])
def test_a_checkpoint_that_cannot_be_read_begins_anew(context: JobContext, what: str) -> None:
    vars(context)["backend"] = Backend()
    missing = Digest("cd" * 32)
    resume = {
        "gone": missing,
        "damaged": context.store.put(b"\x00"),
        "another version": context.store.put(b'{"version": 99}'),
        "its blob is gone": context.store.put(Kept((), missing).to_bytes()),
    }[what]
    given = finetune(widths(4), steps=2)
    attempt = work(Plan(), Fidelity.PREPARED, resume=resume).attempt
    finished = Attempts(context).run(Work(trial=given.trial, attempt=attempt))
    assert isinstance(finished.outcome, Measured)


def test_what_is_kept_comes_back() -> None:
    kept = Kept((Digest("a" * 64),), Digest("b" * 64))
    assert Kept.from_bytes(kept.to_bytes()) == kept
    with pytest.raises(CheckpointInvalid):
        Kept.from_bytes(b"{}")


def test_parts_whose_weights_are_gone_are_done_again(context: JobContext) -> None:
    kept = Kept((Digest("ef" * 32),))
    recovery = KeptRecovery(context.store, lambda _: None, kept.to_bytes())
    assert recovery.kept == Kept()
