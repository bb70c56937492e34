"""What surrogates learn from: points, losses and violations of told trials."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compression.space import Point
from search.arithmetic import Floats, Points, as_points
from search.history import Told, canonical
from search.problem import Problem

WORST_VIOLATION = 1.0
"""Least violation of a plan that cannot be evaluated: the bound missed by its whole size."""


@dataclasses.dataclass(frozen=True, slots=True)
class Observations:
    """Rows in the order of proposal; the dense baseline is the first.

    Attributes:
        points: `t x d`.
        losses: `t x m`, one column per objective, smaller is better.
        violations: `t x k`, one column per constraint of the problem.
        possible: `t` booleans, False for plans that cannot be evaluated: they count as the worst
            loss and violation seen. Failed trials say nothing of their plan and are left out.
    """

    points: Points
    losses: Floats
    violations: Floats
    possible: NDArray[np.bool_]


def observe(problem: Problem, told: Sequence[Told], *, baseline: bool = True) -> Observations:
    """Collect what is known.

    Args:
        problem: The problem.
        told: Finished trials in the order of proposal.
        baseline: Whether the dense model's measurement is an observation.
    """
    m, k, d = len(problem.objectives), len(problem.constraints), len(problem.space.knobs)
    rows: list[Point] = []
    losses: list[tuple[float, ...]] = []
    violations: list[tuple[float, ...]] = []
    possible: list[bool] = []
    if baseline and all(objective.reading(problem.baseline) for objective in problem.objectives):
        rows.append(canonical(problem.space, problem.space.dense()))
        losses.append(problem.losses(problem.baseline))
        violations.append(problem.violations(problem.baseline))
        possible.append(True)
    for trial in told:
        measurement = trial.measurement
        if measurement is None and not trial.impossible:
            continue
        rows.append(trial.point)
        possible.append(measurement is not None)
        losses.append(problem.losses(measurement) if measurement else (np.nan,) * m)
        violations.append(problem.violations(measurement) if measurement else (np.nan,) * k)
    t = len(rows)
    loss, violation = np.array(losses).reshape(t, m), np.array(violations).reshape(t, k)
    known = np.array(possible, dtype=bool)
    if not known.any():
        return Observations(as_points([], d), loss[:0], violation[:0], known[:0])
    loss[~known] = loss[known].max(axis=0)
    violation[~known] = np.maximum(violation[known].max(axis=0, initial=0.0), WORST_VIOLATION)
    return Observations(as_points(rows, d), loss, violation, known)
