"""What a job will take: arithmetic on stored timings, stated so that it can be checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from workers.job import JobSpec

# A backward pass costs about twice the forward pass (one product for the inputs, one for the
# weights), so a training step costs three; distillation adds the teacher's forward pass.
TRAINING_PASSES = 3
TEACHER_PASSES = 1
# Building, exporting and timing one candidate, beside the forward passes: an allowance, because
# it depends on the machine more than on the model. Timing is alone on its node, so it does not
# shrink with parallelism.
ALONE_S = 3.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Seconds a job is expected to take; None where nothing is stored to reckon with.

    Attributes:
        per_trial_s: One search trial.
        search_s: The search phase, within the budget.
        finalists_s: Recovery of the finalists, at most.
        total_s: Both.
        trials: Search trials that fit.
        arithmetic: How the figures came about, line by line.
    """

    per_trial_s: float | None
    search_s: float | None
    finalists_s: float | None
    total_s: float | None
    trials: int | None
    arithmetic: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {**dataclasses.asdict(self), "arithmetic": list(self.arithmetic)}


def forecast(
    spec: JobSpec, forward_ms_per_image: float | None, split_images: Mapping[str, int]
) -> Forecast:
    """Return what the job is expected to take.

    Args:
        spec: The job.
        forward_ms_per_image: Of the dense model in a worker, from its scan.
        split_images: Images of the splits `train`, `calibration` and `search` where known.
    """
    budget, recovery = spec.budget, spec.recovery
    if forward_ms_per_image is None:
        lines = ["Nothing is stored about the speed of this model: only the budget bounds the job"]
        return Forecast(
            per_trial_s=None,
            search_s=budget.wall_s,
            finalists_s=None,
            total_s=None,
            trials=budget.trials,
            arithmetic=tuple(lines),
        )
    forward_s = forward_ms_per_image / 1000
    recalibrated = _at_most(spec.scoring.recalibration_images, split_images.get("calibration"))
    scored = _at_most(spec.scoring.proxy_images, split_images.get("search"))
    passes_s = (recalibrated + scored) * forward_s
    per_trial_s = passes_s + ALONE_S
    spaced_s = passes_s / spec.parallelism + ALONE_S
    lines = [
        f"trial = ({recalibrated} + {scored} images) x {forward_ms_per_image:.3g} ms "
        f"+ {ALONE_S:g} s to build, export and time = {per_trial_s:.3g} s",
        f"a trial ends every {passes_s:.3g} s / parallelism {spec.parallelism} + {ALONE_S:g} s "
        f"(timing is alone on its node) = {spaced_s:.3g} s",
    ]
    trials = budget.trials
    for limit_s in (budget.wall_s, budget.device_s and budget.device_s * spaced_s / ALONE_S):
        if limit_s is not None:
            fitting = max(1, int(limit_s / spaced_s))
            trials = fitting if trials is None else min(trials, fitting)
    search_s = None if trials is None else trials * spaced_s
    if search_s is not None:
        lines.append(f"search = {trials} trials x {spaced_s:.3g} s = {search_s:.4g} s")
    finalists_s = None
    if "train" in split_images:
        passes = TRAINING_PASSES + (TEACHER_PASSES if recovery.distill else 0)
        images = split_images["train"]
        finalists_s = recovery.finalists * recovery.epochs * images * passes * forward_s
        lines.append(
            f"finalists <= {recovery.finalists} x {recovery.epochs:g} epochs x {images} images x "
            f"{passes} passes x {forward_ms_per_image:.3g} ms = {finalists_s:.4g} s"
        )
    known = search_s is not None and finalists_s is not None
    return Forecast(
        per_trial_s=per_trial_s,
        search_s=search_s,
        finalists_s=finalists_s,
        total_s=(search_s or 0.0) + (finalists_s or 0.0) if known else None,
        trials=trials,
        arithmetic=tuple(lines),
    )


def _at_most(wanted: int, there: int | None) -> int:
    return wanted if there is None else min(wanted, there)
