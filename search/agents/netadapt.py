"""Greedy rounds: narrow what costs least accuracy, a step of the bounded quantities at a time.

A round starts from one plan. Its candidates each narrow another knob and are then brought to one
and the same load, so that their accuracies can be compared; the best starts the next round, whose
load is smaller. When the bounds hold, rounds go on at their load and exchange width between knobs.

Reference:
    T.-J. Yang et al.: NetAdapt: Platform-Aware Neural Network Adaptation for Mobile Applications,
    ECCV 2018 (a proposal per layer and round, each meeting the round's reduction, the most
    accurate survives). Greedy slimming by accuracy per cost also in J. Yu, T. Huang: AutoSlim,
    2019.

Deviations:
    * A round proposes a few knobs, not all: those that earlier rounds found cheap, and those not
      tried for longest. Budgets here are some ten trials, the paper's are hundreds.
    * One layer alone cannot meet the large steps of so few rounds. Each candidate narrows its own
      knob and then all channels by a common factor, less at knobs that proved costly, until the
      round's load is met; knobs other than channels are candidates likewise.
    * Loads that are not arithmetic are predicted from costs and corrected by readings, in place of
      a table of layers. A plan that met the load and misses the bound makes the next step smaller.
    * No fine-tuning between rounds; every trial starts from the dense model.
    * At the bounds, rounds exchange at equal load, narrowing or widening one knob in turn; the
      paper stops there.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from compression.space import Point
from search.agent import Snapshot
from search.arithmetic import Floats, Points, as_points
from search.errors import ProblemInvalid
from search.history import History, canonical, generator
from search.point_agent import PointAgent
from search.problem import Problem
from search.repair import as_point
from search.sampling import new_point
from search.surrogate.additive import Additive, Damages, damage_of

NO_BUDGET = 60
"""Trials the rounds are laid out for when none are given."""

SHRINK = 0.5
"""Share of its channels that a candidate's own knob keeps on the way down."""

EXCHANGE = 0.7
"""The same at equal load, where rounds narrow and widen (by the inverse) in turn."""

FACTORS = np.linspace(0.0, 3.0, 121)
"""Exponents by which the other knobs are narrowed (`exp(-f * weight)`) to meet the load."""

WIDEN = 0.7
"""Widest exponent below 0: in exchanges at equal load others grow by up to `exp(0.7)`."""


LEAST_SAVING = 1e-3
"""Load added to every saving, so that knobs that save nothing have a rate, too."""

MOST_STEPS = 40
"""Single choices by which a candidate is widened at most, once its load is met."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of NetAdapt.

    Attributes:
        candidates: Knobs proposed in a round, at least 2; None takes one for every twelve trials
            of the budget, within 3..8.
        descent_share: Share of the budget in which the load comes down to the bounds, in (0, 1).
    """

    candidates: int | None = None
    descent_share: float = 0.35

    def __post_init__(self) -> None:
        if self.candidates is not None and self.candidates < 2:
            raise ProblemInvalid(f"netadapt: candidates is {self.candidates}; at least 2")
        if not 0.0 < self.descent_share < 1.0:
            raise ProblemInvalid(
                f"netadapt: descent_share is {self.descent_share}; it must be in (0, 1)"
            )


@dataclasses.dataclass(slots=True)
class Round:
    """Where the search stands between two rounds.

    Attributes:
        number: 0, 1, 2, ...
        centre: The plan it starts from.
        candidates: Its proposals.
        moved: The knob that each narrows.
        tried: Per knob the number of the round that last proposed it, -1 for never.
    """

    number: int
    centre: Point
    candidates: list[Point]
    moved: list[int]
    tried: list[int]


class Netadapt(PointAgent):
    """Goes down to the bounds in rounds, each time along the knob that costs least accuracy."""

    options_type = Options

    def __init__(self, problem: Problem, options: Options) -> None:
        super().__init__(problem)
        budget = problem.budget_trials or NO_BUDGET
        self._per_round = options.candidates or min(8, max(3, budget // 12))
        self._rounds = max(1, round(budget * options.descent_share / self._per_round))
        self._additive = Additive(problem)
        knobs = problem.space.knobs
        self._channels = [i for i, knob in enumerate(knobs) if knob.field == "keep_channels"]
        self._kept = [
            np.array([float(c) for c in knob.choices]) if i in self._channels else np.zeros(1)
            for i, knob in enumerate(knobs)
        ]
        self._movable = [
            i for i, knob in enumerate(knobs) if knob.field != "selector" and len(knob.choices) > 1
        ]
        dense = canonical(problem.space, problem.space.dense())
        d = len(knobs)
        self._round = Round(-1, dense, [], [], [-1] * d)

    def snapshot(self) -> Snapshot:
        """Return count, pending points and the round."""
        known = self._history.snapshot()
        state: dict[str, Any] = dataclasses.asdict(self._round)
        return Snapshot({**known.data, "round": state}, known.arrays)

    def restore(self, snapshot: Snapshot) -> None:
        """Take up where `snapshot` was made."""
        self._history.restore(snapshot)
        state = dict(snapshot.data["round"])
        state["centre"] = tuple(state["centre"])
        state["candidates"] = [tuple(point) for point in state["candidates"]]
        self._round = Round(**state)

    def _suggest(self) -> Point | None:
        history = self._history
        waiting = set(history.pending)
        if not any(point in waiting or history.is_new(point) for point in self._round.candidates):
            self._next_round(history)
        for point in self._round.candidates:
            if history.is_new(point):
                return point
        if any(point in waiting for point in self._round.candidates):
            return None
        rng = generator(self._problem, history.asked)
        return new_point(self._repair, history, rng, near=[self._round.centre])

    def _next_round(self, history: History) -> None:
        """Judge the last round and propose the next; without a new proposal it stays empty."""
        last = self._round
        self._additive.learn(history)
        outcomes = {t.point: t for t in history.told}
        losses = []
        for point in last.candidates:
            told = outcomes.get(point)
            known = told.measurement if told is not None else None
            damage = damage_of(self._problem, known) if known is not None else None
            losses.append(np.inf if damage is None else damage)
        best = sorted(history.told, key=lambda t: self._problem.rank_key(t.trial))
        number = last.number + 1
        centre = last.centre
        descending = number < self._rounds
        if descending and losses and np.isfinite(min(losses)):
            centre = last.candidates[int(np.argmin(losses))]
        elif not descending and best:
            centre = best[0].point
        share = (number + 1) / self._rounds
        start = self._load(as_points([canonical_dense(self._problem)], len(centre)))[0]
        target = float(max(start, 1.0) ** (1 - share)) if descending else 1.0
        scale = SHRINK if descending else EXCHANGE ** (1.0 if number % 2 else -1.0)
        damages = self._additive.damages()
        rates = self._rates(centre, scale, damages)
        candidates: dict[Point, int] = {}
        for knob in self._chosen(last, number, rates):
            proposal = self._candidate(centre, knob, scale, target, damages)
            if proposal is not None and history.is_new(proposal) and proposal not in candidates:
                candidates[proposal] = knob
            if len(candidates) >= self._per_round:
                break
        for knob in candidates.values():
            last.tried[knob] = number
        self._round = Round(number, centre, list(candidates), list(candidates.values()), last.tried)

    def _rates(self, centre: Point, scale: float, damages: Damages) -> Floats:
        """Return per knob the damage of its move over the load that it saves; least is best.

        A move that widens has a negative damage over a negative saving: what it wins, negated.
        """
        rows = [list(centre) for _ in centre]
        for knob in self._movable:
            rows[knob][knob] = self._moved(centre, knob, scale)
        points = as_points(rows, len(centre))
        here = as_points([centre], len(centre))
        change = damages.of(points) - damages.of(here)
        load = np.abs(self._load(points) - self._load(here)) + LEAST_SAVING
        return np.asarray(change / load)

    def _moved(self, centre: Point, knob: int, scale: float) -> int:
        """Return the choice of a knob that keeps `scale` times the channels, or the next one."""
        if knob not in self._channels:
            return (centre[knob] + 1) % len(self._problem.space.knobs[knob].choices)
        kept = self._kept[knob]
        fits = int(np.searchsorted(kept, scale * kept[centre[knob]] + 1e-9, "right")) - 1
        # At least one choice in the direction wanted.
        nearest = centre[knob] + (1 if scale > 1 else -1)
        fits = max(fits, nearest) if scale > 1 else min(fits, nearest)
        return min(max(0, fits), len(kept) - 1)

    def _chosen(self, last: Round, number: int, rates: Floats) -> list[int]:
        """Return knobs in the order of proposal: cheapest and longest untried by turns."""
        luck = generator(self._problem, number, 1).random(len(last.tried))
        oldest = sorted(self._movable, key=lambda i: (last.tried[i], luck[i]))
        cheapest = sorted(self._movable, key=lambda i: (rates[i], luck[i]))
        order: dict[int, None] = {}
        for cheap, old in zip(cheapest, oldest, strict=True):
            order[cheap] = None
            order[old] = None
        return list(order)

    def _load(self, points: Points) -> Floats:
        loads = self._additive.loads(points, caution=0.5)
        return np.asarray(loads.max(axis=1)) if loads.shape[1] else np.zeros(len(points))

    def _candidate(
        self, centre: Point, knob: int, scale: float, target: float, damages: Damages
    ) -> Point | None:
        """Return the centre with one knob moved and the others brought to the load."""
        space = self._problem.space
        own = list(centre)
        own[knob] = self._moved(centre, knob, scale)
        if own[knob] == centre[knob]:
            return None
        slopes = np.maximum(self._rates(centre, SHRINK, damages), 0.0)
        usual = float(np.median(slopes[self._channels])) if self._channels else 0.0
        weight = 1.0 / (1.0 + slopes / (usual or 1.0))
        rows = []
        for factor in [*(-WIDEN * FACTORS[::-1] / FACTORS[-1])[:-1], *FACTORS]:
            row = list(own)
            for other in self._channels:
                if other != knob:
                    pace = weight[other] if factor > 0 else 1.0 - weight[other]
                    kept = self._kept[other]
                    wanted = kept[own[other]] * np.exp(-factor * pace) + 1e-9
                    row[other] = max(0, int(np.searchsorted(kept, wanted, "right")) - 1)
            rows.append(row)
        points = as_points(rows, len(centre))
        fits = np.flatnonzero(self._load(points) <= target)
        widest = points[fits[0]] if len(fits) else points[-1]
        return canonical(space, self._topped_up(as_point(widest), knob, target, damages))

    def _topped_up(self, point: Point, knob: int, target: float, damages: Damages) -> Point:
        """Return the point widened choice by choice, where it wins most, as the load allows."""
        others = [i for i in self._channels if i != knob]
        for _ in range(MOST_STEPS):
            wider = [i for i in others if point[i] + 1 < len(self._kept[i])]
            if not wider:
                break
            rows = [[v + (j == i) for j, v in enumerate(point)] for i in wider]
            points = as_points(rows, len(point))
            load, here = self._load(points), self._load(as_points([point], len(point)))
            gain = damages.of(as_points([point], len(point))) - damages.of(points)
            rate = np.where(load <= target, gain / (load - here + LEAST_SAVING), -np.inf)
            best = int(np.argmax(rate))
            if not np.isfinite(rate[best]):
                break
            point = as_point(points[best])
        return point


def canonical_dense(problem: Problem) -> Point:
    """Return the point of the untouched model."""
    return canonical(problem.space, problem.space.dense())
