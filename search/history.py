"""What an agent has asked for and what it was told: the memory every agent shares."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from compression.artifact import Digest
from compression.decisions import DropBlock
from compression.errors import PlanInvalid
from compression.site import MODEL_SITE
from compression.space import DENSE, Knob, PlanSpace, Point
from search.agent import Evaluate, Snapshot
from search.errors import ProblemInvalid
from search.measurement import Infeasible, Measured, Measurement
from search.problem import Problem
from search.trial import Fidelity, Trial

VERSION = 1


def canonical(space: PlanSpace, point: Sequence[int]) -> Point:
    """Return the one point that stands for all points of the same plan."""
    return space.canonical(point)


def plan_count(space: PlanSpace) -> int:
    """Return how many different plans a space holds; at most its number of points."""
    blocks = [k.site for k in space.knobs if k.field == DropBlock.kind and len(k.choices) > 1]
    pruned = unpruned = 1
    selectors = 1
    for block in ["", *blocks]:
        inside = [
            knob
            for knob in space.knobs
            if knob.field != DropBlock.kind
            and next((b for b in blocks if knob.site.startswith(f"{b}.")), "") == block
        ]
        widths = math.prod(len(k.choices) for k in inside if k.field == "keep_channels")
        others = _others([k for k in inside if k.field not in ("keep_channels", "selector")])
        selectors *= math.prod(len(k.choices) for k in inside if k.field == "selector")
        dropped = 1 if block else 0
        pruned *= widths * others + dropped
        unpruned *= others + dropped
    return selectors * (pruned - unpruned) + unpruned


def _others(knobs: Sequence[Knob]) -> int:
    """Count the settings of knobs that neither prune nor rank: at one site some displace others."""
    count = 1
    for site in dict.fromkeys(knob.site for knob in knobs):
        here = PlanSpace(tuple(knob for knob in knobs if knob.site == site))
        every = itertools.product(*(range(len(knob.choices)) for knob in here.knobs))
        count *= len({here.canonical(point) for point in every})
    return count


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """A finished trial and where it stands in the space."""

    point: Point
    trial: Trial

    @property
    def measurement(self) -> Measurement | None:
        """What was measured; None where nothing was."""
        outcome = self.trial.outcome
        return outcome.measurement if isinstance(outcome, Measured) else None

    @property
    def impossible(self) -> bool:
        """Whether the plan cannot be evaluated by nature. A failure says nothing of the plan.

        Neither does one that was foretold to miss a bound: agents hold impossible plans for the
        least accurate ones, and slow plans are among the most accurate.
        """
        outcome = self.trial.outcome
        return isinstance(outcome, Infeasible) and not outcome.foretold


class History:
    """Points asked for and trials told, free of the order of telling.

    Trials of other fidelities or bases than the agent orders are not comparable and are ignored;
    so are plans outside the space. Trials that another agent proposed are welcome.
    """

    def __init__(
        self, problem: Problem, fidelity: Fidelity = Fidelity.PROXY, base: Digest | None = None
    ) -> None:
        """Start empty.

        Args:
            problem: Its space names the points.
            fidelity: Of every request.
            base: Of every request; None for the job's model.
        """
        self.space = problem.space
        self._fidelity = fidelity
        self._base = base
        self._pending: dict[Point, None] = {}
        self._told: dict[str, Told] = {}
        self._points: set[Point] = set()
        self._requests = 0
        self._dense = canonical(problem.space, problem.space.dense())

    @property
    def asked(self) -> int:
        """Number of requests so far: own ones, or all plans known where others ask, too.

        An agent among others is as far into its search as the trials it knows of, not as the few
        that were its own. The dense plan is not counted: it is told before any search.
        """
        known = self._points | self._pending.keys()
        return max(self._requests, len(known) - (self._dense in known))

    def is_new(self, point: Sequence[int]) -> bool:
        """Whether the plan at `point` was neither asked for nor told."""
        key = canonical(self.space, point)
        return key not in self._pending and key not in self._points

    @property
    def exhausted(self) -> bool:
        """Whether no plan is left."""
        return len(self._pending) + len(self._points) >= plan_count(self.space)

    @property
    def pending(self) -> list[Point]:
        """Points asked for and not yet told, in the order of asking."""
        return list(self._pending)

    @property
    def told(self) -> list[Told]:
        """Told trials in the order in which they were proposed."""
        return sorted(self._told.values(), key=lambda t: (t.trial.number, t.trial.id))

    @property
    def measured(self) -> list[tuple[Point, Measurement]]:
        """Point and measurement of every measured trial, in the order of proposal."""
        return [(t.point, t.measurement) for t in self.told if t.measurement is not None]

    def order(self, point: Sequence[int]) -> Evaluate:
        """Return the request for `point` and remember it as pending.

        Raises:
            ProblemInvalid: The plan was ordered or told before.
        """
        key = canonical(self.space, point)
        if not self.is_new(key):
            raise ProblemInvalid(f"Point {key} was asked for before")
        self._pending[key] = None
        self._requests += 1
        return Evaluate(plan=self.space.decode(key), fidelity=self._fidelity, base=self._base)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Take in finished trials; one told twice counts once."""
        for trial in trials:
            if trial.fidelity is not self._fidelity or trial.base != self._base:
                continue
            try:
                point = self.space.encode(trial.plan)
            except PlanInvalid:
                continue
            self._told[trial.id] = Told(point, trial)
            self._points.add(point)
            self._pending.pop(point, None)

    def snapshot(self) -> Snapshot:
        """Return what the told trials do not tell: the count and the pending points."""
        pending = np.array(self.pending, dtype=np.float64).reshape(-1, len(self.space.knobs))
        return Snapshot({"version": VERSION, "asked": self._requests}, {"pending": pending})

    def restore(self, snapshot: Snapshot) -> None:
        """Take up a snapshot, before any trial is told.

        Raises:
            ProblemInvalid: It is of another version or of another space.
        """
        version = snapshot.data.get("version")
        pending = np.asarray(snapshot.arrays["pending"])
        if version != VERSION:
            raise ProblemInvalid(f"Agent snapshot has version {version!r}; {VERSION} is known")
        if pending.shape[1:] != (len(self.space.knobs),):
            raise ProblemInvalid(
                f"Agent snapshot has points of shape {pending.shape[1:]}; "
                f"the space has {len(self.space.knobs)} knobs"
            )
        self._requests = int(snapshot.data["asked"])
        self._pending = {tuple(int(i) for i in row): None for row in pending}


def fill(history: History, n: int, suggest: Callable[[], Point | None]) -> list[Evaluate]:
    """Return up to `n` requests, each suggested with the earlier ones pending.

    Asking for n at once and n times for one are therefore the same.
    """
    requests: list[Evaluate] = []
    while len(requests) < n and not history.exhausted:
        point = suggest()
        if point is None:
            break
        requests.append(history.order(point))
    return requests


def generator(problem: Problem, asked: int, purpose: int = 0) -> np.random.Generator:
    """Return the randomness of one request: a function of seed, count and purpose alone."""
    return np.random.default_rng([problem.seed % 2**32, asked, purpose])


def settings(space: PlanSpace) -> list[dict[int, int]]:
    """Return every combination of the knobs of the whole model, as knob index to choice index.

    The untouched ones come first.
    """
    combinations: list[dict[int, int]] = [{}]
    for number, knob in enumerate(space.knobs):
        if knob.site == MODEL_SITE:
            order = sorted(range(len(knob.choices)), key=lambda i: (knob.choices[i] != DENSE, i))
            combinations = [{**c, number: i} for c in combinations for i in order]
    return combinations
