"""The feasible, non-dominated trials, and how good they are together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from search.measurement import Measured, Measurement
from search.problem import Problem
from search.trial import Trial

Losses = tuple[float, ...]


def dominates(a: Losses, b: Losses) -> bool:
    """Whether `a` is nowhere worse and somewhere better than `b`; smaller is better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def _measurement(trial: Trial) -> Measurement:
    assert isinstance(trial.outcome, Measured)
    return trial.outcome.measurement


def _estimated(problem: Problem, measurement: Measurement) -> bool:
    readings = (objective.reading(measurement) for objective in problem.objectives)
    return any(reading is not None and reading.estimated for reading in readings)


@dataclasses.dataclass(frozen=True, slots=True)
class ParetoFront:
    """Feasible, non-dominated trials in a deterministic order.

    Laws: building it from its own members gives it back; the order of the input does not matter;
    no member dominates another; of trials with equal losses and equal plans one stays.

    Attributes:
        members: Ordered by losses, then by plan digest.
    """

    members: tuple[Trial, ...]

    @staticmethod
    def of(problem: Problem, trials: Iterable[Trial]) -> ParetoFront:
        """Return the front of the measured, feasible trials.

        A trial whose objective was estimated is not measured; a bound may be held by estimates.
        """
        candidates = [
            (problem.losses(_measurement(trial)), trial)
            for trial in trials
            if isinstance(trial.outcome, Measured)
            and problem.feasible(_measurement(trial))
            and not _estimated(problem, _measurement(trial))
        ]
        candidates.sort(key=lambda pair: (pair[0], pair[1].plan.digest, pair[1].number))
        members: list[Trial] = []
        seen: set[str] = set()
        for losses, trial in candidates:
            dominated = any(dominates(other, losses) for other, _ in candidates)
            if not dominated and trial.plan.digest not in seen:
                seen.add(trial.plan.digest)
                members.append(trial)
        return ParetoFront(tuple(members))


def nearest(problem: Problem, trials: Iterable[Trial], count: int = 3) -> list[Trial]:
    """Return the measured trials that miss the bounds least, best first."""
    measured = [trial for trial in trials if isinstance(trial.outcome, Measured)]
    return sorted(measured, key=problem.rank_key)[:count]


def hypervolume(points: Sequence[Losses], reference: Losses) -> float:
    """Return the volume that `points` dominate below `reference`; smaller losses are better.

    Exact, by slicing along the last objective; meant for up to some hundred points and four
    objectives. Points beyond the reference in any objective add nothing.
    """
    inside = [p for p in set(points) if all(x < r for x, r in zip(p, reference, strict=True))]
    if not inside:
        return 0.0
    if len(reference) == 1:
        return reference[0] - min(p[0] for p in inside)
    inside.sort(key=lambda p: p[-1])
    volume = 0.0
    for index, point in enumerate(inside):
        upper = inside[index + 1][-1] if index + 1 < len(inside) else reference[-1]
        if upper > point[-1]:
            slab = hypervolume([p[:-1] for p in inside[: index + 1]], reference[:-1])
            volume += slab * (upper - point[-1])
    return volume
