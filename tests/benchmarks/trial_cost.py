"""What a warm proxy trial costs beside the forward passes that it cannot do without.

The denominator is bare: the same compressed net, the same recalibration and scoring batches, the
backend that is fastest here, nothing else. Target: ratio <= 1.25, and applying a plan to
ResNet-56 takes at most 100 ms. The extra cost of a trial that also deploys and times the file is
shown beside it.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compression.apply import apply
from compression.methods import Methods, resolve_space
from compression.plan import Plan
from search.objective import Constraint
from search.trial import Attempt, Fidelity, Trial
from tests.benchmarks.cifar_job import cifar_job
from tests.benchmarks.record import record
from tests.conftest import real_data_folder
from workers.context import JobContext
from workers.evaluate import evaluate
from workers.executor import Finished, Work
from workers.quiet import QuietNode
from workers.store import FolderStore

ROUNDS = 7
SEED = 0
TARGET_RATIO = 1.25
TARGET_APPLY_MS = 100.0


def context(name: str, root: Path, folder: Path, constraints: tuple[Constraint, ...]) -> JobContext:
    """Return the warm context of a job on a trained ResNet."""
    store = FolderStore(root / "blobs")
    spec = cifar_job(name, store, folder, constraints, Methods())
    return JobContext.build(spec, store, QuietNode(root / "quiet"))


def work(plan: Plan, number: int) -> Work:
    """Return an attempt at a proxy trial."""
    trial = Trial(
        id=f"trl_{number}", number=number, plan=plan, fidelity=Fidelity.PROXY, seed=SEED, agent="x"
    )
    return Work(trial=trial, attempt=Attempt(id=f"att_{number}", trial_id=trial.id, epoch=1))


def bare_forwards_s(plan: Plan, job: JobContext) -> float:
    """Return the seconds of the passes alone: recalibration in train mode, scoring in eval."""
    model = job.backend.prepare(apply(plan, job.apply_context).model)
    images, _ = job.part(Fidelity.PROXY)
    recalibration = list(job.batches(job.calibration_images))
    scoring = list(job.batches(images))
    start = time.perf_counter()
    with torch.inference_mode():
        model.train()
        for batch in recalibration:
            job.backend.forward(model, batch)
        model.eval()
        for batch in scoring:
            job.backend.forward(model, batch)
    return time.perf_counter() - start


def trial_s(plan: Plan, job: JobContext, number: int) -> tuple[float, Finished]:
    """Return the wall seconds of a proxy trial and what it produced."""
    with job.quiet.busy():
        start = time.perf_counter()
        finished = evaluate(work(plan, number), job, lambda _: None)
        return time.perf_counter() - start, finished


def measure(name: str, root: Path, folder: Path) -> dict[str, Any]:
    """Return the figures of one model."""
    job = context(
        name, root, folder, (Constraint(metric="macs", at_most=0.6, relative_to="baseline"),)
    )
    space = resolve_space(job.survey.sites, Methods(allow=("prune_channels",)))
    plans = [space.decode(space.sample(np.random.default_rng(SEED + i))) for i in range(ROUNDS + 1)]
    trial_s(plans[-1], job, 0)
    bare_forwards_s(plans[-1], job)
    ratios, trials, bares, applies = [], [], [], []
    for number, plan in enumerate(plans[:-1]):
        start = time.perf_counter()
        apply(plan, job.apply_context)
        applies.append(1000 * (time.perf_counter() - start))
        # Each pair back to back, its order alternating, so that drift cancels.
        if number % 2:
            bare, (whole, _) = bare_forwards_s(plan, job), trial_s(plan, job, number)
        else:
            (whole, _), bare = trial_s(plan, job, number), bare_forwards_s(plan, job)
        ratios.append(whole / bare)
        trials.append(whole)
        bares.append(bare)
    timed_job = context(
        name,
        root,
        folder,
        (
            Constraint(
                metric="latency_ms",
                at_most=0.7,
                relative_to="baseline",
                device="local/onnxruntime",
                statistic="p50",
            ),
        ),
    )
    int8 = dataclasses.replace(Methods(), allow=("prune_channels", "quantize"))
    timed_space = resolve_space(timed_job.survey.sites, int8)
    point = timed_space.uniform(0.5, precision="int8")
    trial_s(timed_space.decode(point), timed_job, 0)
    timed_wall, timed = trial_s(timed_space.decode(point), timed_job, 1)
    return {
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "trial_s_median": statistics.median(trials),
        "forwards_s_median": statistics.median(bares),
        "apply_ms_median": statistics.median(applies),
        "apply_ms_max": max(applies),
        "backend": dataclasses.asdict(job.backend),
        "with_int8_and_timing_s": timed_wall,
        "with_int8_and_timing_steps_s": dict(timed.seconds),
    }


def main() -> None:
    """Measure ResNet-20 and ResNet-56 on one thread."""
    folder = real_data_folder()
    if folder is None:
        raise SystemExit("CIFAR-10 and its checkpoints are absent; set PARETOPRESS_TEST_DATA")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        figures = {
            name: measure(name, Path(root), folder) for name in ("cifar_resnet20", "cifar_resnet56")
        }
    passed = all(f["ratio_median"] <= TARGET_RATIO for f in figures.values())
    passed = passed and figures["cifar_resnet56"]["apply_ms_median"] <= TARGET_APPLY_MS
    record("trial_cost", passed=passed, seed=SEED, target_ratio=TARGET_RATIO, **figures)


if __name__ == "__main__":
    main()
