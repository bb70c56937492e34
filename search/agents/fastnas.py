"""Sensitivity of one knob at a time, then the largest degradation that still meets the bounds.

First every knob is narrowed alone, which gives a curve of damage over choices. A threshold on the
damage then names one plan: every knob at its strongest choice whose damage stays below. Plans at
rising thresholds form a ladder from wide to narrow, on which the widest that holds the bounds is
found by bisection. What is left of the budget refines around the best.

Reference:
    FastNAS as documented for NVIDIA's Model Optimizer (sensitivity map per hyperparameter, made
    monotone, then binary search on the maximal degradation until the constraint holds). Layer-wise
    sensitivity goes back to H. Li et al.: Pruning Filters for Efficient ConvNets, ICLR 2017.

Deviations:
    * Damage is a drop of log-odds, not of accuracy: comparable near chance, too.
    * Not every choice of every knob is tried: the sensitivity takes `sensitivity_share` of the
      budget, knobs that save most come first, and curves are interpolated between what was tried.
    * Bounds on macs, flops and params need no trial; bounds that are measured are bisected by
      trials, and several bounds may be given (the original takes one).
    * Every setting of the knobs of the whole model has a ladder of its own.
    * The refinement is ours: variations of the best plans, ranked by curves fitted to all trials.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from compression.space import DENSE, Knob, Point
from search.arithmetic import Floats, Points, as_points
from search.errors import ProblemInvalid
from search.history import canonical, generator, settings
from search.metric import ACCURACIES
from search.point_agent import PointAgent
from search.problem import Problem
from search.repair import as_point
from search.sampling import neighbours, new_point
from search.surrogate.additive import Additive, allowed, damage_of
from search.trial import Trial

LEVELS = (0.7, 0.4, 0.85, 0.55, 0.25)
"""Shares taken away in the sensitivity, in the order in which they are tried."""

BISECTIONS = 5
"""Trials per ladder, the first and widest one apart."""

CENTRES = 4
"""Best plans around which the refinement looks."""

VARIATIONS = 120
"""Variations of each."""

LADDERS = 4
"""Settings of the knobs of the whole model that get a ladder."""

NO_BUDGET = 60
"""Trials the search is laid out for when none are given."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of FastNAS.

    Attributes:
        sensitivity_share: Share of the budget that goes to knobs narrowed alone, in (0, 1).
        levels: Most shares taken away per knob, 1 to 5.
    """

    sensitivity_share: float = 0.5
    levels: int = 3

    def __post_init__(self) -> None:
        if not 0.0 < self.sensitivity_share < 1.0:
            raise ProblemInvalid(
                f"fastnas: sensitivity_share is {self.sensitivity_share}; it must be in (0, 1)"
            )
        if not 1 <= self.levels <= len(LEVELS):
            raise ProblemInvalid(f"fastnas: levels is {self.levels}; 1..{len(LEVELS)} is allowed")


def taken(knob: Knob) -> Floats:
    """Return the share that each choice of a knob takes away, 0 (untouched) to 1."""
    if knob.field == "keep_channels":
        kept = np.array([float(choice) for choice in knob.choices])
        return np.asarray(1 - kept / kept[-1])
    if knob.field == "selector":
        return np.zeros(len(knob.choices))
    rank = np.arange(1.0, len(knob.choices) + 1)
    if DENSE in knob.choices:
        rank[knob.choices.index(DENSE)] = 0.0
    return np.asarray(rank / max(1.0, rank.max()))


def monotone_curve(x: Floats, tried: dict[int, float], usual: float) -> Floats:
    """Return the damage of every choice: monotone, through the damages that were measured.

    Between measured shares a straight line, below the first and above the last the parabola
    through 0; a knob never tried has the `usual` coefficient of its parabola.

    Args:
        x: Share taken away per choice.
        tried: Choice index to measured damage.
        usual: Damage at a share of 1.
    """
    order = sorted((float(x[index]), damage) for index, damage in tried.items() if x[index] > 0)
    if not order:
        return np.asarray(usual * x**2)
    at = np.array([share for share, _ in order])
    envelope = np.maximum.accumulate(np.maximum([damage for _, damage in order], 0.0))
    inside = np.interp(x, at, envelope)
    below = envelope[0] * (x / at[0]) ** 2
    beyond = envelope[-1] * (x / at[-1]) ** 2
    return np.asarray(np.where(x < at[0], below, np.where(x > at[-1], beyond, inside)))


class Fastnas(PointAgent):
    """Measures each knob alone, then takes the mildest common degradation that fits the bounds."""

    options_type = Options

    def __init__(self, problem: Problem, options: Options) -> None:
        super().__init__(problem)
        self._options = options
        self._additive = Additive(problem)
        self._taken = [taken(knob) for knob in problem.space.knobs]
        dense = problem.space.dense()
        # Few departures from the untouched model first.
        self._settings = sorted(
            settings(problem.space), key=lambda s: sum(s[i] != dense[i] for i in s)
        )[:LADDERS]
        self._singles = self._single_knobs()
        self._known: tuple[object, list[list[Point]]] | None = None
        self._measured_bounds = [
            number
            for number, constraint in enumerate(problem.constraints)
            if constraint.metric not in ACCURACIES
        ]

    def _single_knobs(self) -> list[Point]:
        """Return the dense plan with one knob narrowed, as many as the budget has room for."""
        space = self._problem.space
        dense = space.dense()
        room = int((self._problem.budget_trials or NO_BUDGET) * self._options.sensitivity_share)
        points: dict[Point, None] = {}
        for level in LEVELS[: self._options.levels]:
            rows = []
            for number, x in enumerate(self._taken):
                if x.max() > 0:
                    row = list(dense)
                    row[number] = int(np.argmin(np.where(x > 0, np.abs(x - level), np.inf)))
                    rows.append(row)
            if not rows:
                break
            if len(rows) > room - len(points):
                costs = self._repair.arithmetic.costs(as_points(rows, len(dense)))
                saving = costs.macs / max(1, costs.macs.max())
                saving += costs.weight_bytes / max(1, costs.weight_bytes.max())
                rows = [rows[i] for i in np.argsort(saving, kind="stable")]
            for row in rows:
                if len(points) < room:
                    points[canonical(space, row)] = None
        points.pop(canonical(space, dense), None)
        return list(points)

    def _curves(self) -> list[Floats]:
        space = self._problem.space
        dense = canonical(space, space.dense())
        tried: list[dict[int, float]] = [{} for _ in space.knobs]
        for told in self._history.told:
            moved = [i for i, index in enumerate(told.point) if index != dense[i]]
            changed = [i for i in moved if space.knobs[i].field != "selector"]
            if len(changed) != 1:
                continue
            (number,) = changed
            if told.impossible:
                tried[number][told.point[number]] = np.inf
            elif told.measurement is not None:
                damage = damage_of(self._problem, told.measurement)
                if damage is not None:
                    tried[number][told.point[number]] = damage
        finite = [
            max(damage, 0.0) / self._taken[i][index] ** 2
            for i, table in enumerate(tried)
            for index, damage in table.items()
            if np.isfinite(damage)
        ]
        usual = float(np.median(finite)) if finite else 1.0
        out = []
        for x, table in zip(self._taken, tried, strict=True):
            out.append(monotone_curve(x, {i: min(d, 1e6) for i, d in table.items()}, usual))
        return out

    def _ladders(self) -> list[list[Point]]:
        """Return per setting the plans at rising thresholds that arithmetic allows."""
        key = tuple(told.trial.id for told in self._history.told)
        if self._known is not None and self._known[0] == key:
            return self._known[1]
        space = self._problem.space
        curves = self._curves()
        thresholds = np.unique(np.concatenate(curves))
        ladders = []
        for setting in self._settings:
            rungs: dict[Point, None] = {}
            for threshold in thresholds:
                row = [
                    setting[i] if i in setting else _strongest(x, curve, float(threshold))
                    for i, (x, curve) in enumerate(zip(self._taken, curves, strict=True))
                ]
                rungs[canonical(space, row)] = None
            rungs.pop(canonical(space, space.dense()), None)
            ladder = list(rungs)
            keeps = self._repair.keeps_bounds(as_points(ladder, len(space.knobs)))
            ladders.append([point for point, kept in zip(ladder, keeps, strict=True) if kept])
        self._known = (key, ladders)
        return ladders

    def _suggest(self) -> Point | None:
        history = self._history
        for point in self._singles:
            if history.is_new(point):
                return point
        verdicts = {told.point: self._holds(told.trial) for told in history.told}
        singles = set(self._singles)
        if not any(point in singles for point in history.pending):
            for ladder in self._ladders():
                rung = _next_rung(ladder, verdicts, set(history.pending))
                if rung is not None and history.is_new(rung):
                    return rung
        return self._refined()

    def _holds(self, trial: Trial) -> bool:
        """Whether all bounds hold but those on accuracies, which rise on the way down."""
        measurement = getattr(trial.outcome, "measurement", None)
        if measurement is None:
            return False
        violations = self._problem.violations(measurement)
        return all(violations[number] <= 0 for number in self._measured_bounds)

    def _refined(self) -> Point | None:
        """Return the variation of one of the best plans that the fitted curves like most."""
        history, space = self._history, self._problem.space
        rng = generator(self._problem, history.asked)
        told = sorted(history.told, key=lambda t: self._problem.rank_key(t.trial))
        centres = [t.point for t in told[:CENTRES]]
        if not centres:
            return new_point(self._repair, history, rng)
        self._additive.learn(history)
        varied = np.vstack([_variations(space.knobs, centre, rng) for centre in centres])
        around = np.vstack([neighbours(space, centre) for centre in centres])
        pool = np.vstack([self._repair.fill(varied), self._repair.shrink(varied), around])
        pool = pool[self._repair.keeps_bounds(pool)]
        caution = float(abs(rng.normal()))
        if len(pool):
            loads = self._additive.loads(pool, caution=caution)
            damages = self._additive.damages(rng).of(pool)
            excess = np.maximum(loads - 1, 0.0).sum(axis=1)
            fits = allowed(loads)
            for index in np.lexsort((damages, np.where(fits, 0.0, excess))):
                if history.is_new(pool[index]):
                    return canonical(space, as_point(pool[index]))
        return new_point(self._repair, history, rng, near=centres)


def _strongest(x: Floats, curve: Floats, threshold: float) -> int:
    fits = np.flatnonzero(curve <= threshold)
    return int(fits[np.argmax(x[fits])]) if len(fits) else int(np.argmin(x))


def _next_rung(
    ladder: list[Point], verdicts: dict[Point, bool], pending: set[Point]
) -> Point | None:
    """Return the rung that halves what is open between too wide and narrow enough."""
    tried = [i for i, point in enumerate(ladder) if point in verdicts]
    if not ladder or len(tried) > BISECTIONS or any(point in pending for point in ladder):
        return None
    if not tried:
        return ladder[0]
    low = max((i for i in tried if not verdicts[ladder[i]]), default=-1)
    high = min((i for i in tried if verdicts[ladder[i]] and i > low), default=len(ladder))
    return ladder[(low + high) // 2] if high - low > 1 else None


def _variations(knobs: tuple[Knob, ...], centre: Point, rng: np.random.Generator) -> Points:
    """Return copies of a point with a few knobs moved by a few choices each."""
    counts = np.array([len(knob.choices) for knob in knobs])
    ordered = np.array([knob.ordered for knob in knobs])
    d = len(counts)
    moved = rng.random((VARIATIONS, d)) < rng.uniform(1.0 / d, min(1.0, 8.0 / d), (VARIATIONS, 1))
    reach = np.maximum(1, counts // 4)
    steps = rng.integers(-reach, reach + 1, size=(VARIATIONS, d))
    near = np.clip(np.array(centre) + steps, 0, counts - 1)
    anew = (rng.random((VARIATIONS, d)) * counts).astype(np.int64)
    return np.where(moved, np.where(ordered, near, anew), np.array(centre))
