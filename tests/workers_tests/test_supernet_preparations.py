"""Supernets end to end: ordered, interrupted, and started from at every rung."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from compression.apply import apply
from compression.artifact import Digest
from compression.decisions import PruneChannels
from compression.errors import CompressionError, NotCertified
from compression.plan import Plan
from search.measurement import Infeasible, Measured
from search.trial import PREPARED_ROLE, Fidelity, Preparation, PrepareKind
from tests.workers_tests.small_job import context_in, widths, work
from workers import supernet_base
from workers.bases import load_base
from workers.context import JobContext
from workers.errors import WorkerError
from workers.evaluate import evaluate
from workers.executor import CHECKPOINT, Finished
from workers.supernet_base import SupernetBase, require_learnt

KINDS: tuple[PrepareKind, ...] = ("supernet", "pruning_net")
CHOICES = {"stem": [4, 6], "block1.conv1": [2, 4], "block2.conv1": [4], "block3.conv1": [4]}
Ordered = tuple[Finished, list[Mapping[str, Any]]]
OPTIONS: Mapping[str, Any] = {"steps": 24, "choices": CHOICES, "learning_rate": 0.1}


@pytest.fixture(scope="module", autouse=True)
def _frequent_checkpoints() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supernet_base, "LEAST_STEPS", 10)
        yield


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> JobContext:
    return context_in(tmp_path_factory.mktemp("job"))


def ordered(
    kind: PrepareKind,
    context: JobContext,
    options: Mapping[str, Any] = OPTIONS,
    resume: Digest | None = None,
    plan: Plan | None = None,
) -> Ordered:
    reports: list[Mapping[str, Any]] = []
    preparation = Preparation(kind=kind, options=options)
    order = work(plan or Plan(), Fidelity.PREPARED, preparation=preparation, epoch=1, resume=resume)
    return evaluate(order, context, reports.append), reports


@pytest.fixture(scope="module")
def trained(context: JobContext) -> Callable[[PrepareKind], Ordered]:
    """What an undisturbed order gives; made once of each kind."""
    return functools.cache(lambda kind: ordered(kind, context))


@pytest.mark.parametrize("kind", KINDS)
def test_an_order_leaves_a_base_that_every_rung_starts_from(
    kind: PrepareKind, context: JobContext, trained: Callable[[PrepareKind], Ordered]
) -> None:
    finished, reports = trained(kind)
    assert isinstance(finished.outcome, Measured)
    assert 0.0 <= finished.outcome.found["top1_dense"] <= 1.0
    assert [r["done"] for r in reports if "done" in r] == [20, 24]
    digest = finished.artifacts[PREPARED_ROLE]
    plan = widths(3, 6)
    base = load_base(digest, context)
    assert isinstance(base, SupernetBase)
    start = base.start(plan)
    assert (start.rest, start.stages) == (plan, ())
    applied = apply(start.rest, start.context)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    given = base.supernet.choices.of_plan(plan)
    with torch.no_grad():
        expected = base.supernet.outputs(given, x, supernet_base_backend())
        torch.testing.assert_close(applied.model(x), expected)
        dense = apply(plan, context.apply_context).model(x)
    assert not torch.allclose(expected, dense)
    for rung in (Fidelity.PROXY, Fidelity.FULL):
        outcome = evaluate(work(plan, rung, base=digest), context, lambda _: None).outcome
        assert isinstance(outcome, Measured)
        assert outcome.measurement.get("top1") is not None


def supernet_base_backend() -> Any:
    from compression.backend import FLOAT32

    return FLOAT32


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_order_leaves_the_same_base(
    kind: PrepareKind, context: JobContext, trained: Callable[[PrepareKind], Ordered]
) -> None:
    whole, reports = trained(kind)
    kept = [Digest(r[CHECKPOINT]) for r in reports if CHECKPOINT in r]
    assert len(kept) == 2
    resumed, later = ordered(kind, context, resume=kept[0])
    assert [r[CHECKPOINT] for r in later if CHECKPOINT in r] == [kept[1]]
    assert resumed.artifacts == whole.artifacts
    damaged = context.store.put(b"not a checkpoint")
    anew, _ = ordered(kind, context, resume=damaged)
    assert anew.artifacts == whole.artifacts


def test_a_plan_that_no_width_fits_is_infeasible(
    context: JobContext, trained: Callable[[PrepareKind], Ordered]
) -> None:
    digest = trained("supernet")[0].artifacts[PREPARED_ROLE]
    wide = Plan.of({"stem": [PruneChannels(keep_channels=99)]})
    outcome = evaluate(work(wide, Fidelity.PROXY, base=digest), context, lambda _: None).outcome
    assert isinstance(outcome, Infeasible)
    assert "99" in outcome.reason


def test_a_base_is_read_only_for_its_own_model(
    context: JobContext, trained: Callable[[PrepareKind], Ordered]
) -> None:
    digest = trained("supernet")[0].artifacts[PREPARED_ROLE]
    base = load_base(digest, context)
    assert isinstance(base, SupernetBase)
    with pytest.raises(WorkerError, match="no supernet"):
        supernet_base.load_supernet({"terms": b"{}"}, context, lambda *_: base.supernet)


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"residual": True}, WorkerError, "residual"),
        ({"steps": 0}, CompressionError, "steps"),
        ({"choices": {"nowhere": [1]}}, CompressionError, "nowhere"),
        ({"networks": 1}, CompressionError, "sandwich"),
    ],
)
def test_refuses_options_that_it_cannot_follow(
    options: dict[str, Any], error: type[Exception], word: str, context: JobContext
) -> None:
    with pytest.raises(error, match=word):
        ordered("supernet", context, {**OPTIONS, **options})


def test_refuses_to_start_from_a_plan(context: JobContext) -> None:
    with pytest.raises(WorkerError, match="plan"):
        ordered("pruning_net", context, plan=widths(4))


def test_a_supernet_that_has_learnt_nothing_is_refused() -> None:
    require_learnt(0.5, 0.9, 10)
    require_learnt(0.46, 0.9, 2)  # five times chance would be 2.5; half of the dense score is 0.45
    with pytest.raises(NotCertified, match=r"0\.490.*0\.500"):
        require_learnt(0.49, 1.0, 10)
    with pytest.raises(NotCertified, match=r"0\.440.*0\.450"):
        require_learnt(0.44, 0.9, 2)


def test_an_order_whose_net_has_learnt_nothing_is_infeasible(
    context: JobContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    del tmp_path
    monkeypatch.setattr(supernet_base, "DENSE_SHARE", 1e9)
    monkeypatch.setattr(supernet_base, "TIMES_CHANCE", 11.0)
    outcome = ordered("supernet", context)[0].outcome
    assert isinstance(outcome, Infeasible)
    assert "widest network" in outcome.reason
