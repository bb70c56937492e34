from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from compression.backend import Backend
from compression.decisions import DropBlock, PruneChannels, Refit
from compression.plan import Plan
from tests.workers_tests.small_job import SMALL_JOB, context_in
from workers.context import JobContext
from workers.recovery import pressed
from workers.steps import Steps


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobContext:
    methods = dataclasses.replace(SMALL_JOB.methods, refit="least_squares")
    spec = dataclasses.replace(SMALL_JOB, methods=methods)
    monkeypatch.setattr("tests.workers_tests.small_job.SMALL_JOB", spec)
    context = context_in(tmp_path)
    vars(context)["backend"] = Backend()
    return context


def statistics_move(context: JobContext, plan: Plan) -> bool:
    made = pressed(plan, context, Steps(), thorough=True).model
    dense = context.dense.get_buffer("block1.bn2.running_mean")
    return not torch.equal(made.get_buffer("block1.bn2.running_mean"), dense)


@pytest.mark.parametrize(("refit", "moves"), [("none", True), ("least_squares", False)])
def test_consumers_that_were_fitted_keep_the_statistics_they_were_fitted_to(
    refit: Refit, moves: bool, context: JobContext
) -> None:
    thin = PruneChannels(keep_channels=4, refit=refit)
    assert statistics_move(context, Plan.of({"block1.conv1": [thin]})) is moves


def test_a_block_that_is_gone_changes_them_in_any_case(context: JobContext) -> None:
    thin = PruneChannels(keep_channels=4, refit="least_squares")
    plan = Plan.of({"block1.conv1": [thin], "block3": [DropBlock()]})
    assert statistics_move(context, plan)
