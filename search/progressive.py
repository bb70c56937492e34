"""Bounds that tighten from round to round, and what plans are worth under them."""

from __future__ import annotations

import dataclasses
import statistics

import numpy as np

from compression.artifact import Digest
from compression.space import Point
from search.measurement import Measurement
from search.metric import METRICS
from search.problem import Problem
from search.reduction import Reduction, Target

NEAREST = 3
"""Trials nearest to a measured bound that say which MACs go with it."""

LEAST_SHARE = 0.01
"""Of the dense model's MACs: the least that a target asks for."""

Visits = list[tuple[Point, Measurement]]
"""Plans that were measured, in the order of proposal."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One network and what its plans are annealed towards.

    Attributes:
        number: 1, 2, ...; 0 at most for none.
        base: The network; None for the job's model.
        reached: Widths it has; the dense point for the job's model.
        slack: Violation still allowed, one per constraint of the problem.
        share: MACs allowed where no arithmetic bound says so, as a share of the dense model's.
        fill: Whether plans grow to the target.
        known: Plans of earlier rounds: not proposed again.
    """

    number: int
    base: Digest | None
    reached: Point
    slack: tuple[float, ...]
    share: float
    fill: bool
    known: frozenset[Point]


class Rounds:
    """Divides the way from the dense model to the bounds into rounds of equal factors."""

    def __init__(
        self, problem: Problem, reduction: Reduction, *, count: int, unbounded: float
    ) -> None:
        """Measure the way.

        Args:
            problem: Its bounds are the end.
            reduction: Of the same problem.
            count: Rounds, at least 1.
            unbounded: Share of the MACs that a round removes where the dense model keeps all
                bounds.
        """
        self._problem = problem
        self._reduction = reduction
        self._count = count
        self._unbounded = unbounded
        self._heat = tuple(
            max(0.0, c.violation(problem.baseline, problem.baseline))
            if c.at_most is not None
            else 0.0
            for c in problem.constraints
        )
        self._arithmetic = [METRICS[c.metric].by_cost_table for c in problem.constraints]

    def round(
        self, number: int, base: Digest | None, reached: Point, known: frozenset[Point]
    ) -> Round:
        """Return a round whose bounds are `number / rounds` of the way from dense to target."""
        left = 1.0 - number / self._count
        slack = tuple((1.0 + heat) ** left - 1.0 for heat in self._heat)
        shares = [
            (1.0 + allowed) / (1.0 + heat)
            for allowed, heat, exact in zip(slack, self._heat, self._arithmetic, strict=True)
            if heat > 0 and not exact
        ]
        if not any(self._heat):
            shares = [(1.0 - self._unbounded) ** number]
        return Round(
            number=number,
            base=base,
            reached=reached,
            slack=slack,
            share=min(shares, default=1.0),
            fill=True,
            known=known,
        )

    def fitted(self, point: Point, here: Round, found: Visits) -> Point:
        """Return the point fitted to the round's target; `found` says what MACs go with it."""
        slack = [s for s, exact in zip(here.slack, self._arithmetic, strict=True) if exact]
        target = Target(slack=np.array(slack), share=self._share(point, here, found))
        return self._reduction.fitted(point, here.reached, target, fill=here.fill)

    def _share(self, point: Point, here: Round, found: Visits) -> float:
        """Return the share of MACs at which measured bounds should just hold.

        A metric is taken as proportional to MACs near the bound: the trials nearest to it tell the
        factor, those with the same other decisions where there are any.
        """
        settings = self._reduction.settings(point)
        alike = [v for v in found if self._reduction.settings(v[0]) == settings] or found
        share = here.share
        for number, heat in enumerate(self._heat):
            if not heat or self._arithmetic[number] or not alike:
                continue
            allowed = here.slack[number]
            told = [(self._problem.violations(m)[number], p) for p, m in alike]
            near = sorted(told, key=lambda t: abs(t[0] - allowed))[:NEAREST]
            guesses = [
                self._reduction.macs_share(p) * (1 + allowed) / max(LEAST_SHARE, 1 + v)
                for v, p in near
            ]
            share = min(1.0, statistics.median(guesses))
        return max(LEAST_SHARE, share)

    def energy(self, measurement: Measurement, here: Round) -> float:
        """Return the loss in percentage points, and what the bounds of the round are missed by."""
        terms = []
        for objective in self._problem.objectives:
            loss = objective.loss(measurement)
            reference = objective.reading(self._problem.baseline)
            relative = METRICS[objective.metric].unit != "1" and reference is not None
            terms.append(loss / (abs(reference.value) or 1.0) if relative and reference else loss)
        return 100.0 * (sum(terms) / len(terms) + self.excess(measurement, here))

    def excess(self, measurement: Measurement, here: Round) -> float:
        """Return by how much the bounds of the round are missed, in sum, relative to them."""
        violations = self._problem.violations(measurement)
        return sum(max(0.0, v - s) for v, s in zip(violations, here.slack, strict=True))

    def merit(self, visit: tuple[Point, Measurement], here: Round) -> tuple[float, float, Point]:
        """Return the order of a round's plans, smaller is better: feasible ones by energy."""
        point, measurement = visit
        return (self.excess(measurement, here), self.energy(measurement, here), point)
