"""ADMM as a preparation: widths, purification, bases of bases, interruptions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from compression.backend import Backend
from compression.decisions import PruneChannels, Sparsify
from compression.errors import PlanInvalid
from compression.plan import Plan
from compression.recover.purification import Purified
from search.trial import Fidelity, Preparation
from tests.workers_tests.small_job import context_in, widths, work
from workers import kept_recovery
from workers.context import JobContext
from workers.errors import WorkerError
from workers.preparations.admm import AdmmOptions, load, narrowed, prepare
from workers.preparations.preparation import Order, Prepared
from workers.steps import Steps
from workers.thin_base import ThinBase

OPTIONS = {"steps": 30, "rounds": 2, "rho": [1e-2, 1.0], "retrain_steps": 40, "purify": True}
PLAN = widths(5, 6, "block2")


class Interrupted(Exception):
    """The attempt's end."""


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobContext:
    monkeypatch.setattr(kept_recovery, "CHECKPOINT_S", 0.0)
    context = context_in(tmp_path)
    vars(context)["backend"] = Backend()
    return context


def order(
    context: JobContext,
    kept: list[bytes],
    *,
    resume: bytes | None = None,
    most: int = 99,
    plan: Plan = PLAN,
    **changes: Any,
) -> Order:
    """Return an attempt that ends when it has kept `most` checkpoints."""
    preparation = Preparation(kind="admm", options={**OPTIONS, **changes})
    trial = work(plan, Fidelity.PREPARED, preparation=preparation).trial

    def keep(data: bytes) -> None:
        kept.append(data)
        if len(kept) == most:
            raise Interrupted

    return Order(
        trial=trial, context=context, steps=Steps(), report=lambda _: None, resume=resume, keep=keep
    )


def state_of(prepared: Prepared, context: JobContext) -> Mapping[str, torch.Tensor]:
    return load(prepared.parts, context).apply_context.model.state_dict()


def test_the_network_has_the_widths_that_it_says(context: JobContext) -> None:
    prepared = prepare(order(context, []))
    realised = Plan.from_json(dict(prepared.found["plan"]))
    assert realised.dropped() == {"block2"}
    ordered = PLAN.prune_channels()
    for site, decision in realised.prune_channels().items():
        most = ordered[site].keep_channels if site in ordered else 99
        assert decision.keep_channels <= most
    base = load(prepared.parts, context)
    assert isinstance(base, ThinBase)
    start = base.start(realised)
    assert start.rest == Plan()
    params = sum(p.numel() for p in start.context.model.parameters())
    assert params == context.survey.costs.cost(realised).params
    removed = context.survey.costs.cost(PLAN).params - params
    assert (removed > 0) is (prepared.found["purified"] > 0)
    assert 0.2 < prepared.found["top1"] <= 1.0
    readings = {reading.metric: reading.value for reading in prepared.readings}
    assert readings["top1"] == prepared.found["top1"]
    assert readings["params"] == params


@pytest.mark.slow
def test_an_interrupted_preparation_ends_with_the_same_bits(context: JobContext) -> None:
    kept: list[bytes] = []
    whole = prepare(order(context, kept))
    # States in both trainings, and the weights after each.
    assert len(kept) == 3 + 1 + 2 + 1
    expected = state_of(whole, context)
    for most in (2, 4, 5, 7):
        first: list[bytes] = []
        with pytest.raises(Interrupted):
            prepare(order(context, first, most=most))
        again = prepare(order(context, [], resume=first[-1]))
        assert again.found == whole.found
        found = state_of(again, context)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), most


def test_it_goes_on_from_a_network_of_its_own(context: JobContext) -> None:
    first = prepare(order(context, [], retrain_steps=0))
    base = load(first.parts, context)
    context.bases["known"] = base  # type: ignore[index]
    reached = Plan.from_json(dict(first.found["plan"])).prune_channels()
    narrower = widths(
        min(3, reached["block1.conv1"].keep_channels),
        min(4, reached["stem"].keep_channels),
        "block2",
    )
    preparation = Preparation(kind="admm", options={**OPTIONS, "purify": False})
    given = order(context, [])
    trial = work(narrower, Fidelity.PREPARED, preparation=preparation).trial
    object.__setattr__(trial, "base", "known")
    object.__setattr__(given, "trial", trial)
    second = prepare(given)
    assert Plan.from_json(dict(second.found["plan"])) == narrower
    assert second.found["purified"] == 0
    assert load(second.parts, context).start(narrower).rest == Plan()


def test_purified_plans_are_like_the_ones_they_came_from() -> None:
    none = torch.nn.Identity()
    found = Purified(
        model=none, kept={"a": (0, 2), "c": (1,)}, threshold=0.01, removed=3, before=1, after=1
    )
    plan = Plan.of(
        {
            "a": [PruneChannels(keep_channels=4, selector="l1")],
            "b": [PruneChannels(keep_channels=3, selector="l1")],
        }
    )
    assert narrowed(plan, found, ("l2",)) == Plan.of(
        {
            "a": [PruneChannels(keep_channels=2, selector="l1")],
            "b": [PruneChannels(keep_channels=3, selector="l1")],
            "c": [PruneChannels(keep_channels=1, selector="l1")],
        }
    )
    alone = narrowed(Plan(), found, ("fpgm",)).prune_channels()
    assert {d.selector for d in alone.values()} == {"fpgm"}


def test_rho_rises_geometrically() -> None:
    assert AdmmOptions(rounds=3).stages == pytest.approx((1e-3, 1e-2, 1e-1))
    assert AdmmOptions(rounds=1).stages == (1e-1,)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"steps": 0}, "'steps' of preparation 'admm' is 0"),
        ({"rounds": True}, "'rounds' of preparation 'admm' is True"),
        ({"retrain_steps": -1}, "'retrain_steps' of preparation 'admm' is -1"),
        ({"rho": [0.0, 1.0]}, "'rho' of preparation 'admm'"),
        ({"epochs": 3}, r"no options \['epochs'\]"),
    ],
)
def test_refuses_options(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(WorkerError, match=reason):
        AdmmOptions.of(options)


def test_refuses_plans_that_no_base_can_carry(context: JobContext) -> None:
    plan = Plan.of({"model": [Sparsify(sparsity=0.5)]})
    with pytest.raises(PlanInvalid, match="sparsify"):
        prepare(order(context, [], plan=plan))
