"""A job over `small_net` and the digits, whose context costs next to nothing."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compression.artifact import Digest, ModelArtifact
from compression.decisions import DropBlock, PruneChannels
from compression.models.digits_training import DIGITS_PREPROCESSING
from compression.plan import Plan
from search.trial import Attempt, Fidelity, Preparation, Trial
from tests.workers_tests.works import JOB
from workers import evaluate, kept_recovery
from workers.context import JobContext
from workers.executor import Finished, Runner, Work
from workers.job import DatasetArtifact, JobSpec, Recovery, Scoring
from workers.quiet import QuietNode
from workers.store import FolderStore

FACTORY = "tests.workers_tests.small_job:eager_runner"

SMALL_JOB: JobSpec = dataclasses.replace(
    JOB,
    model=ModelArtifact(
        weights=None,
        format="python",
        architecture="small_net:build",
        input_shape=(1, 8, 8),
        preprocessing=DIGITS_PREPROCESSING,
        num_classes=10,
    ),
    dataset=DatasetArtifact(data=None, format="builtin", name="digits"),
    recovery=Recovery(
        epochs=1.0, batch_size=16, augment=False, short_steps=10, learning_rate=0.1, distill=False
    ),
    scoring=Scoring(recalibration_images=50, proxy_images=60),
    code_dir=str(Path(__file__).parent),
)


def context_in(folder: Path) -> JobContext:
    """Return the job's context with a store in the folder."""
    quiet = folder / "quiet"
    quiet.mkdir(exist_ok=True)
    return JobContext.build(SMALL_JOB, FolderStore(folder / "blobs"), QuietNode(quiet))


def eager_runner(spec: JobSpec, store_url: str, quiet_folder: str) -> Runner:
    """Return the worker's runner, in a process of its own that keeps a checkpoint every 20 steps.

    Each attempt says first which process runs it.
    """
    kept_recovery.CHECKPOINT_S = 0.0
    run = evaluate.runner(spec, store_url, quiet_folder)

    def run_here(given: Work, report: Callable[[Mapping[str, Any]], None]) -> Finished:
        report({"step": "start", "pid": os.getpid()})
        return run(given, report)

    return run_here


def widths(inner: int | None = None, outer: int | None = None, *dropped: str) -> Plan:
    """Return a plan: channels inside of block 1 and between the blocks, and dropped blocks."""
    table: dict[str, list[Any]] = {name: [DropBlock()] for name in dropped}
    if inner is not None:
        table["block1.conv1"] = [PruneChannels(keep_channels=inner)]
    if outer is not None:
        table["stem"] = [PruneChannels(keep_channels=outer)]
    return Plan.of(table)


def work(
    plan: Plan,
    fidelity: Fidelity,
    *,
    base: Digest | None = None,
    preparation: Preparation | None = None,
    epoch: int = 1,
    resume: Digest | None = None,
) -> Work:
    """Return an attempt at a trial."""
    trial = Trial(
        id="trl_0",
        number=0,
        plan=plan,
        fidelity=fidelity,
        seed=3,
        agent="x",
        base=base,
        preparation=preparation,
    )
    attempt = Attempt(id=f"att_{epoch}", trial_id=trial.id, epoch=epoch, resume=resume)
    return Work(trial=trial, attempt=attempt)


def finetune(plan: Plan, steps: int = 30, base: Digest | None = None) -> Work:
    """Return an attempt at a preparation."""
    preparation = Preparation(kind="finetune", options={"steps": steps})
    return work(plan, Fidelity.PREPARED, base=base, preparation=preparation)
