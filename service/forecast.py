"""What a job will take: means of earlier trials or arithmetic, stated so that it can be checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from search.trial import Fidelity
from service.db.durations import EarlierTrial
from workers.job import JobSpec
from workers.memory import WHO

# A backward pass costs about twice the forward pass (one product for the inputs, one for the
# weights), so a training step costs three; distillation adds the teacher's forward pass.
TRAINING_PASSES = 3
TEACHER_PASSES = 1
# Building, exporting and timing one candidate, beside the forward passes: an allowance, because
# it depends on the machine more than on the model. Timing is alone on its node, so it does not
# shrink with parallelism.
ALONE_S = 3.0

ALONE_STEPS = frozenset({"time", "energy"})
"""Steps of a trial that have their node for themselves."""

LEAST_EARLIER = 5
"""Search trials below which arithmetic says more than their mean."""

Source = Literal["earlier_trials", "arithmetic", "budget"]
"""Where the seconds of a trial come from; `budget`: they are not known, the budget is the end."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Seconds a job is expected to take; None where nothing is stored to reckon with.

    Attributes:
        per_trial_s: One search trial that is carried out: remembered and spared ones take no time.
        search_s: The search phase, within the budget.
        finalists_s: Recovery of the finalists, at most.
        total_s: Both.
        trials: Search trials that fit.
        source: Where the seconds of a search trial come from.
        earlier_trials: Search trials of this model, on the same data and devices, that they are
            the mean of; 0 where they are not.
        arithmetic: How the figures came about, line by line.
    """

    per_trial_s: float | None
    search_s: float | None
    finalists_s: float | None
    total_s: float | None
    trials: int | None
    source: Source
    earlier_trials: int
    arithmetic: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {**dataclasses.asdict(self), "arithmetic": list(self.arithmetic)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _PerTrial:
    """Seconds of one search trial: what trials do at once, and what each does alone on its node."""

    shared_s: float
    alone_s: float
    line: str


def forecast(
    spec: JobSpec,
    forward_ms_per_image: float | None,
    split_images: Mapping[str, int],
    earlier: Sequence[EarlierTrial] = (),
) -> Forecast:
    """Return what the job is expected to take.

    Args:
        spec: The job.
        forward_ms_per_image: Of the dense model in a worker, from its scan.
        split_images: Images of the splits `train`, `calibration` and `search` where known.
        earlier: Trials of the same model and data in other jobs.
    """
    budget = spec.budget
    proxies = [t.seconds for t in earlier if t.fidelity is Fidelity.PROXY and _alike(t, spec)]
    source: Source
    if len(proxies) >= LEAST_EARLIER:
        source, per_trial = "earlier_trials", _mean(proxies)
    elif forward_ms_per_image is not None:
        source, per_trial = "arithmetic", _reckoned(spec, forward_ms_per_image, split_images)
    else:
        lines = ["Nothing is stored about the speed of this model: only the budget bounds the job"]
        return Forecast(
            per_trial_s=None,
            search_s=budget.wall_s,
            finalists_s=None,
            total_s=None,
            trials=budget.trials,
            source="budget",
            earlier_trials=0,
            arithmetic=tuple(lines),
        )
    shared_s, alone_s = per_trial.shared_s, per_trial.alone_s
    spaced_s = shared_s / spec.parallelism + alone_s
    lines = [
        per_trial.line,
        f"a trial ends every {shared_s:.3g} s / parallelism {spec.parallelism} + {alone_s:.3g} s "
        f"(timing is alone on its node) = {spaced_s:.3g} s",
    ]
    trials = budget.trials
    device_limit_s = budget.device_s and alone_s and budget.device_s * spaced_s / alone_s
    for limit_s in (budget.wall_s, device_limit_s):
        if limit_s:
            fitting = max(1, int(limit_s / spaced_s))
            trials = fitting if trials is None else min(trials, fitting)
    search_s = None if trials is None else trials * spaced_s
    if search_s is not None:
        lines.append(f"search = {trials} trials x {spaced_s:.3g} s = {search_s:.4g} s")
    finalists_s, line = _finalists(spec, forward_ms_per_image, split_images, earlier)
    known = search_s is not None and finalists_s is not None
    return Forecast(
        per_trial_s=shared_s + alone_s,
        search_s=search_s,
        finalists_s=finalists_s,
        total_s=(search_s or 0.0) + (finalists_s or 0.0) if known else None,
        trials=trials,
        source=source,
        earlier_trials=len(proxies) if source == "earlier_trials" else 0,
        arithmetic=(*lines, *([line] if line else [])),
    )


def _mean(proxies: Sequence[Mapping[str, float]]) -> _PerTrial:
    """Return the mean of earlier trials: of a sum, the mean is what is expected."""
    alone_s, all_s = (
        sum(s for seconds in proxies for step, s in seconds.items() if step in steps) / len(proxies)
        for steps in (ALONE_STEPS, {step for seconds in proxies for step in seconds})
    )
    line = (
        f"trial = {all_s:.3g} s: mean of {len(proxies)} earlier trials of this model on the same "
        "data and devices"
    )
    return _PerTrial(shared_s=all_s - alone_s, alone_s=alone_s, line=line)


def _reckoned(spec: JobSpec, forward_ms: float, split_images: Mapping[str, int]) -> _PerTrial:
    recalibrated = _at_most(spec.scoring.recalibration_images, split_images.get("calibration"))
    scored = _at_most(spec.scoring.proxy_images, split_images.get("search"))
    passes_s = (recalibrated + scored) * forward_ms / 1000
    line = (
        f"trial = ({recalibrated} + {scored} images) x {forward_ms:.3g} ms "
        f"+ {ALONE_S:g} s to build, export and time = {passes_s + ALONE_S:.3g} s"
    )
    return _PerTrial(shared_s=passes_s, alone_s=ALONE_S, line=line)


def _finalists(
    spec: JobSpec,
    forward_ms: float | None,
    split_images: Mapping[str, int],
    earlier: Sequence[EarlierTrial],
) -> tuple[float | None, str | None]:
    """Return seconds of the finalists' recovery and how they came about."""
    recovery = spec.recovery
    full = [
        sum(t.seconds.values())
        for t in earlier
        if t.fidelity is Fidelity.FULL and _alike(t, spec) and _recovers_alike(t, spec)
    ]
    if full:
        mean_s = sum(full) / len(full)
        finalists_s = recovery.finalists * mean_s
        return finalists_s, (
            f"finalists <= {recovery.finalists} x {mean_s:.3g} s, mean of {len(full)} earlier "
            f"finalists = {finalists_s:.4g} s"
        )
    if forward_ms is None or "train" not in split_images:
        return None, None
    passes = TRAINING_PASSES + (TEACHER_PASSES if recovery.distill else 0)
    images = split_images["train"]
    finalists_s = recovery.finalists * recovery.epochs * images * passes * forward_ms / 1000
    return finalists_s, (
        f"finalists <= {recovery.finalists} x {recovery.epochs:g} epochs x {images} images x "
        f"{passes} passes x {forward_ms:.3g} ms = {finalists_s:.4g} s"
    )


def _alike(trial: EarlierTrial, spec: JobSpec) -> bool:
    """Whether a trial read as many images and was timed on the same devices."""
    there, here = trial.spec["scoring"], spec.scoring
    return (
        {device["name"] for device in trial.spec["devices"]} == {d.name for d in spec.devices}
        and there["proxy_images"] == here.proxy_images
        and there["recalibration_images"] == here.recalibration_images
    )


def _recovers_alike(trial: EarlierTrial, spec: JobSpec) -> bool:
    there, here = trial.spec["recovery"], dataclasses.asdict(spec.recovery)
    return all(there.get(field) == value for field, value in here.items() if field not in WHO)


def _at_most(wanted: int, there: int | None) -> int:
    return wanted if there is None else min(wanted, there)
