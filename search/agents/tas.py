"""TAS: widths and depths found by gradients in one training, then varied.

A training of the user's own model with a probability for every width and depth is ordered, for a
target of multiply-adds that follows from the bounds. The plans that it finds, of the most probable
widths and depths and of the mean ones, are measured; bounds that only a measurement decides move
the target of the next training. What is left of the budget goes to the surroundings of the plans
that were found.

Reference:
    X. Dong, Y. Yang: Network Pruning via Transformable Architecture Search, NeurIPS 2019,
    https://arxiv.org/abs/1905.09717: differentiable widths and depths under a cost loss. The
    training is the preparation `tas`.

Deviations:
    * The search starts from trained weights and takes hundreds of steps, not 600 epochs from
      scratch; its plan is scored and recovered like everyone's, from the dense model's weights.
    * A measured bound (time, size) is translated into a target by bisection over up to `orders`
      trainings: first its share of the baseline, then up or down as the found plan holds it. A
      bound on params is the MACs of the uniform network that keeps it. Where such exact bounds
      stand beside measured ones that a precision alone may hold, their target is tried before.
    * With one objective, and exact bounds alone or a plan of their target that holds the measured
      ones, later trainings have the same target: widths alone, since a short search drops blocks
      that its plan misses, and without slack above the target, as in the paper's code; then, with
      exact bounds alone, both again with half the paper's weight of the cost. With several
      objectives they have smaller targets.
    * Decisions that have no gradient (precision, sparsity, codebooks) are tried one by one on
      every found plan, and belong to the surroundings afterwards.
    * The paper ends with one network, of the most probable choices, which hundreds of epochs have
      told apart. Hundreds of steps on a deep network have not: the mean choices are a second plan
      of every training. The rest of the budget goes to neighbours of the best.
    * When a training fails, the next one is ordered; when all have failed, uniform plans are the
      ones whose surroundings are searched.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compression.errors import PlanInvalid
from compression.plan import Plan
from compression.site import MODEL_SITE
from compression.space import PlanSpace, Point
from search.agent import Prepare, Request, Snapshot
from search.arithmetic import as_points
from search.errors import ProblemInvalid
from search.history import History, canonical, generator
from search.measurement import Measured
from search.metric import METRICS
from search.objective import Constraint
from search.problem import Problem
from search.repair import Repair, as_point
from search.sampling import design, new_point
from search.trial import Trial

UNBOUNDED_SHARE = 0.6
"""Target as a share of the dense MACs where no bound says otherwise."""

SMALLER = 0.75
"""Factor between targets where several objectives want a range of sizes."""

NEAREST = 1.03
"""Two targets closer than this factor are the same to a search whose tolerance is 5 %."""

ROOM = 1.05
"""Least target, as a multiple of the narrowest network's MACs."""

VARIATIONS: tuple[Mapping[str, Any], ...] = (
    {},
    {"tolerance": "below", "depth": False},
    {"cost_weight": 1.0},
)
"""What differs between trainings of one target."""

FOUND = ("plan", "expected_plan")
"""Plans that a training leaves, the paper's first."""

STARTS = 8
"""Uniform and drawn plans that stand in for found ones."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of TAS.

    Attributes:
        steps: Of one training, at least 1.
        orders: Trainings, at least 1; None takes three where a bound must be measured, else one
            for every 30 trials of the budget, at most three.
        width: Search widths.
        depth: Search depths, where the space can drop blocks.
        batch_size: Of the training, at least 2; None takes the job's.
    """

    steps: int = 400
    orders: int | None = None
    width: bool = True
    depth: bool = True
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ProblemInvalid(f"tas: steps is {self.steps}; at least 1")
        if self.orders is not None and self.orders < 1:
            raise ProblemInvalid(f"tas: orders is {self.orders}; at least 1")
        if not (self.width or self.depth):
            raise ProblemInvalid("tas: width and depth are both off; nothing is left to search")
        if self.batch_size is not None and self.batch_size < 2:
            raise ProblemInvalid(f"tas: batch_size is {self.batch_size}; at least 2")


class Tas:
    """Orders differentiable searches of widths and depths and measures what they find."""

    options_type = Options

    def __init__(self, problem: Problem, options: Options) -> None:
        self._problem = problem
        self._options = options
        self._history = History(problem)
        self._repair = Repair(problem)
        self._measured_bounds = tuple(c for c in problem.constraints if _is_measured(c))
        self._targets = _Targets(problem, self._repair, self._measured_bounds)
        self._orders: list[Prepare] = []
        self._results: dict[str, Trial] = {}

    def ask(self, n: int) -> Sequence[Request]:
        """Return up to `n` new requests; none while a training is under way that all wait for."""
        requests: list[Request] = []
        while len(requests) < n and not self._history.exhausted:
            order = self._due()
            if order is not None:
                self._orders.append(order)
                # Told before, as an order of somebody else: its result serves.
                if order.preparation.key not in self._results:
                    requests.append(order)
                continue
            point = self._suggest()
            if point is None:
                break
            requests.append(self._history.order(point))
        return requests

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn from finished trials and trainings."""
        self._history.tell(trials)
        for trial in trials:
            if _is_search(trial) and trial.preparation is not None:
                self._results[trial.preparation.key] = trial

    def snapshot(self) -> Snapshot:
        """Return the count, the pending points and the options of every order."""
        known = self._history.snapshot()
        orders = [dict(order.options) for order in self._orders]
        return Snapshot({**known.data, "orders": orders}, known.arrays)

    def restore(self, snapshot: Snapshot) -> None:
        """Take up where `snapshot` was made."""
        self._history.restore(snapshot)
        self._orders = [Prepare(kind="tas", options=o) for o in snapshot.data["orders"]]

    def _most_orders(self) -> int:
        if not self._targets.searchable(width=self._options.width, depth=self._options.depth):
            return 0
        if self._options.orders is not None:
            return self._options.orders
        if self._measured_bounds:
            return 3
        return max(1, min(3, (self._problem.budget_trials or 60) // 30))

    def _due(self) -> Prepare | None:
        """Return the next training, once everything that the last ones found is measured."""
        number = len(self._orders)
        if number >= self._most_orders():
            return None
        verdicts: list[tuple[float, bool | None]] = []
        for order in self._orders:
            if order.preparation.key not in self._results:
                return None
            points = self._points_of(order)
            told = {t.point: t.trial for t in self._history.told}
            if any(point not in told for point in points):
                return None
            held = [self._holds(told[point]) for point in points]
            verdict = None if all(h is None for h in held) else any(held)
            verdicts.append((float(order.options["macs"]), verdict))
        target = self._targets.next(verdicts)
        if target is None:
            return None
        # Only a target that was tried before needs another way of getting there.
        before = sum(1 for order in self._orders if order.options["macs"] == target)
        varied = dict(VARIATIONS[before % len(VARIATIONS)])
        if not self._targets.searchable(width=self._options.width, depth=False):
            varied.pop("depth", None)
        options: dict[str, Any] = {
            "steps": self._options.steps,
            "macs": target,
            "width": self._options.width,
            "depth": self._options.depth,
            **varied,
        }
        if self._options.batch_size is not None:
            options["batch_size"] = self._options.batch_size
        order = Prepare(kind="tas", options=options)
        keys = {known.preparation.key for known in self._orders}
        return None if order.preparation.key in keys else order

    def _holds(self, trial: Trial) -> bool | None:
        """Whether a trial holds the measured bounds; None where nothing was measured."""
        if not isinstance(trial.outcome, Measured):
            return None
        found, baseline = trial.outcome.measurement, self._problem.baseline
        return all(c.violation(found, baseline) <= 0 for c in self._measured_bounds)

    def _points_of(self, order: Prepare) -> list[Point]:
        """Return what is measured of a training: its plans, each with each other decision."""
        trial = self._results.get(order.preparation.key)
        if trial is None or not isinstance(trial.outcome, Measured):
            return []
        space = self._problem.space
        points: list[Point] = []
        for name in FOUND:
            try:
                point = nearest(space, Plan.from_json(trial.outcome.found[name]))
            except (KeyError, TypeError, PlanInvalid):
                continue
            points += [point, *_variants(space, point)]
        shrunk = self._repair.shrink(as_points(points, len(space.knobs)))
        return list(dict.fromkeys(canonical(space, as_point(row)) for row in shrunk))

    def _suggest(self) -> Point | None:
        history = self._history
        for order in self._orders:
            for point in self._points_of(order):
                if history.is_new(point):
                    return point
        pending = [o for o in self._orders if o.preparation.key not in self._results]
        if pending and len(pending) == len(self._orders):
            return None
        told = sorted(history.told, key=lambda t: self._problem.rank_key(t.trial))
        near = [t.point for t in told if isinstance(t.trial.outcome, Measured)][:20]
        if not any(self._points_of(order) for order in self._orders):
            for point in design(self._repair, self._problem.seed, STARTS):
                if history.is_new(point):
                    return point
        rng = generator(self._problem, history.asked)
        return new_point(self._repair, history, rng, near=near)


class _Targets:
    """From bounds and verdicts to the multiply-adds that the next training aims at."""

    def __init__(self, problem: Problem, repair: Repair, measured: Sequence[Constraint]) -> None:
        space, costs = problem.space, problem.costs
        self._space = space
        self._dense = costs.cost(Plan()).macs
        self._floor = ROOM * costs.cost(space.decode(_narrowest(space))).macs
        self._cap = float(self._dense)
        upper = [c for c in repair.arithmetic.constraints if c.at_most is not None]
        for constraint in upper:
            limit = constraint.limit(problem.baseline)
            if constraint.metric != "params":
                self._cap = min(self._cap, limit if constraint.metric == "macs" else limit / 2)
        if any(constraint.metric == "params" for constraint in upper):
            shrunk = repair.shrink(as_points([space.dense()], len(space.knobs)))[0]
            self._cap = min(self._cap, float(costs.cost(space.decode(as_point(shrunk))).macs))
        self._measured = bool(measured)
        self._bounded = self._cap < self._dense
        self._several = len(problem.objectives) > 1
        shares = [_share(c, problem) for c in measured]
        self._guess = min([self._cap, *(share * self._dense for share in shares)])
        if not self._bounded and not measured:
            self._guess = UNBOUNDED_SHARE * self._dense
        relieved = any(k.site == MODEL_SITE and len(k.choices) > 1 for k in space.knobs)
        self._first = self._cap if self._bounded and relieved else self._guess

    def searchable(self, *, width: bool, depth: bool) -> bool:
        """Whether there are widths or depths to search, and a target that they can meet."""
        knobs = self._space.knobs
        fields = {k.field for k in knobs if len(k.choices) > 1}
        free = (width and "keep_channels" in fields) or (depth and "drop_block" in fields)
        return free and self._floor < self._cap

    def next(self, verdicts: Sequence[tuple[float, bool | None]]) -> int | None:
        """Return the next target; None where another training would tell nothing new.

        Args:
            verdicts: Of each training so far, its target and whether what it found holds the
                measured bounds; None where that is not known.
        """
        if not verdicts:
            return self._within(self._first)
        last = verdicts[-1][0]
        if not self._measured:
            return self._within(last * SMALLER if self._several or not self._bounded else last)
        known = [(target, verdict) for target, verdict in verdicts if verdict is not None]
        if not known:
            return self._within(last * SMALLER)
        low = max((target for target, verdict in known if verdict), default=self._floor)
        high = min((target for target, verdict in known if not verdict), default=self._cap)
        if self._bounded and self._cap <= low * NEAREST:
            if self._several:
                return self._within(last * SMALLER)
            return self._within(low) if len(known) == 1 else None
        if high <= low * NEAREST:
            return None
        if self._guess < high and not any(verdict for _, verdict in known):
            return self._within(self._guess)
        return self._within(math.sqrt(low * high))

    def _within(self, target: float) -> int:
        return int(min(self._cap, max(self._floor, target)))


def nearest(space: PlanSpace, plan: Plan) -> Point:
    """Return the point of a plan's widths and depths; what the space lacks is rounded or left."""
    try:
        return canonical(space, space.encode(plan))
    except PlanInvalid:
        pass
    kept, dropped = plan.prune_channels(), plan.dropped()
    point = list(space.dense())
    for number, knob in enumerate(space.knobs):
        if knob.field == "keep_channels" and knob.site in kept:
            point[number] = knob.nearest(kept[knob.site].keep_channels)
        elif knob.field == "drop_block" and knob.site in dropped:
            point[number] = len(knob.choices) - 1
    return canonical(space, point)


def _variants(space: PlanSpace, point: Point) -> Iterator[Point]:
    """Yield the point with each other choice of each knob of the whole model."""
    for number, knob in enumerate(space.knobs):
        if knob.site == MODEL_SITE:
            for index in range(len(knob.choices)):
                if index != point[number]:
                    yield canonical(space, [*point[:number], index, *point[number + 1 :]])


def _narrowest(space: PlanSpace) -> Point:
    """Return the least widths and depths, everything else untouched."""
    dense, smallest = space.dense(), space.smallest()
    point = list(dense)
    for number, knob in enumerate(space.knobs):
        if knob.field in ("keep_channels", "drop_block"):
            point[number] = smallest[number]
    return canonical(space, point)


def _is_search(trial: Trial) -> bool:
    """Whether a trial is a TAS training of the job's own model."""
    own = trial.base is None and not trial.plan.decisions
    return own and trial.preparation is not None and trial.preparation.kind == "tas"


def _is_measured(constraint: Constraint) -> bool:
    """Whether a bound is on a cost that must be measured: time, size or memory."""
    metric = METRICS[constraint.metric]
    accuracy = metric.direction == "maximize" and not metric.timed
    return not metric.by_cost_table and not accuracy


def _share(constraint: Constraint, problem: Problem) -> float:
    """Return a measured bound as a share of the baseline's cost, in (0, 1]."""
    reading = constraint.reading(problem.baseline)
    limit = constraint.limit(problem.baseline) if reading or not constraint.relative_to else 0.0
    if reading is None or reading.value <= 0 or limit <= 0:
        return 1.0
    share = limit / reading.value
    return min(1.0, share if constraint.at_most is not None else 1 / share)
