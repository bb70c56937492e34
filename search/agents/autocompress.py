"""Simulated annealing in rounds; after each the network is pruned by ADMM and goes on from there.

A round takes its share of the reduction that is still missing. Within it, plans of that cost are
annealed on the network that the last round left; the best one is ordered as ADMM training, whose
purified network is the base of the next round. The last base is scored with the plan that it
reached, and what is left of the budget anneals around it.

Reference:
    N. Liu, X. Ma, Z. Xu, Y. Wang, J. Tang, J. Ye: AutoCompress, An Automatic DNN Structured Pruning
    Framework for Ultra-High Compression Rates, AAAI 2020, https://arxiv.org/abs/1907.03141
    (rounds, annealing of one-shot magnitude pruning, ADMM, purification, layers with more weights
    pruned no less).

Deviations:
    * The energy is in percentage points and the first temperature is that at which the median of
      some random moves is accepted with 0.8; the published implementation's temperatures, with
      accuracies in [0, 1], accept everything. Cooling is per proposal, not per acceptance.
    * The target of a round is the bounded resource itself (MACs, FLOPs, params, or whatever is
      measured), not the number of weights. Each round takes an equal share, geometrically, of the
      way from the dense model to the bound. Bounds that only measuring decides are approached by
      MACs, whose target follows the trials nearest to the bound, and by a penalty.
    * Without any bound that the dense model breaks, a round removes `reduction` of the MACs.
    * A proposal is repaired to the round's target by one factor for all layers, instead of being
      drawn until it fits. Its other decisions (precision, selector, blocks, ...) move as well;
      only channels and blocks are carried out by ADMM, the rest stays a decision of each plan.
    * Channels go with all layers that are coupled by them; the size by which rates are sorted is
      the number of weights of all these layers.
    * A round begins with the uniform plan, then the random moves that set the temperature, then
      several chains anneal from the best of these, in step, so that no two try the same plan.
    * Where the space has no more plans than the budget has trials, all are tried, without ADMM.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from compression.artifact import Digest
from compression.errors import PlanInvalid
from compression.plan import Plan
from compression.space import Point
from search.agent import Evaluate, Prepare, Request, Snapshot
from search.annealing import Chain, move_size, start_temperature
from search.errors import ProblemInvalid
from search.history import VERSION, History, generator, plan_count
from search.measurement import Measured
from search.problem import Problem
from search.progressive import Round, Rounds, Visits
from search.reduction import STRUCTURE, Reduction
from search.repair import Repair
from search.sampling import new_point
from search.trial import PREPARED_ROLE, Trial

USUAL_BUDGET = 60
"""Trials that schedules count with where only time is bounded."""

LEAST_ROUND = 12
"""Trials below which a round could not tell one plan from another: fewer rounds are made."""

OPEN_STEPS = 44
"""Moves over which the sizes of moves shrink where no number of them is planned: a temperature
that falls by a tenth per proposal is down to a hundredth then."""

REDRAWS = 32
"""Moves that are drawn in search of a plan that the chain does not know."""

STUCK = 3
"""Proposals in a row without such a plan after which a chain ends."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of AutoCompress.

    Attributes:
        rounds: At least 1; fewer are made where a round would have less than 12 trials.
        chains: That anneal side by side in a round, at least 1: as many requests are out at once.
        probes: Random moves at the beginning of a round that set the temperature, at least 1.
        accepted: Probability with which their median is accepted at first, in (0, 1).
        cooling: Factor of the temperature per proposal, in (0, 1].
        guided: Prune sites with more weights no less than others.
        reduction: Share of the MACs that a round removes where no bound is broken, in (0, 1).
        final_share: Share of the trials that is kept for the last network, in [0, 1).
        prepare: Order ADMM training after every round; otherwise all rounds are on the job's model.
        admm_rounds: Values of rho, at least 1.
        admm_steps: Training steps at each, at least 1.
        retrain_steps: After hard pruning, at least 0.
        purify: Drop the channels that are nearly zero afterwards.
    """

    rounds: int = 4
    chains: int = 2
    probes: int = 10
    accepted: float = 0.8
    cooling: float = 0.9
    guided: bool = True
    reduction: float = 0.2
    final_share: float = 0.1
    prepare: bool = True
    admm_rounds: int = 3
    admm_steps: int = 150
    retrain_steps: int = 300
    purify: bool = True

    def __post_init__(self) -> None:
        for name in ("rounds", "chains", "probes", "admm_rounds", "admm_steps"):
            value = getattr(self, name)
            if value < 1:
                raise ProblemInvalid(f"autocompress: {name} is {value}; at least 1")
        if self.retrain_steps < 0:
            raise ProblemInvalid(f"autocompress: retrain_steps is {self.retrain_steps}; at least 0")
        for name, low_allowed, high_allowed in (
            ("accepted", False, False),
            ("cooling", False, True),
            ("reduction", False, False),
            ("final_share", True, False),
        ):
            value = getattr(self, name)
            above = value >= 0 if low_allowed else value > 0
            below = value <= 1 if high_allowed else value < 1
            if not (above and below):
                raise ProblemInvalid(f"autocompress: {name} is {value}; it must be in (0, 1)")


Waiting = Iterator[list[Request]]
"""Yields what it waits for, whenever something of that was not told yet."""


class Autocompress:
    """Anneals plans in rounds, after each of which ADMM prunes the network they are applied to."""

    options_type = Options

    def __init__(self, problem: Problem, options: Options) -> None:
        self._problem = problem
        self._options = options
        self._reduction = Reduction(problem, guided=options.guided)
        self._repair = Repair(problem)
        self._everywhere = History(problem)
        budget = problem.budget_trials or USUAL_BUDGET
        self._rounds = max(1, min(options.rounds, budget // LEAST_ROUND))
        self._quota = max(3, int(budget * (1 - options.final_share)) // self._rounds)
        self._told: dict[str, Trial] = {}
        self._pending: dict[str, Point | None] = {}
        self._asked = 0
        self._base: Digest | None = None
        self._reached: Point = problem.space.canonical(problem.space.dense())
        self._temperature = 0.0
        self._stages = Rounds(
            problem, self._reduction, count=self._rounds, unbounded=options.reduction
        )
        small = plan_count(problem.space) <= budget
        self._course: Waiting = iter(()) if small else self._search()

    def ask(self, n: int) -> Sequence[Request]:
        """Return up to `n` new requests; fewer while all chains wait."""
        requests: list[Request] = []
        wanted = next(self._course, None)
        while wanted is None and len(requests) < n:
            another = self._another()
            if another is None:
                return requests
            requests.append(self._note(another))
        for request in wanted or ():
            if len(requests) < n and _name(request) not in self._pending:
                requests.append(self._note(request))
        return requests

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn from finished trials."""
        self._everywhere.tell([dataclasses.replace(trial, base=None) for trial in trials])
        for trial in trials:
            name = _trial_name(trial)
            self._told.setdefault(name, trial)
            self._pending.pop(name, None)

    def snapshot(self) -> Snapshot:
        """Return the count and what is pending; the course is run through again."""
        pending = [[name, list(point) if point else None] for name, point in self._pending.items()]
        return Snapshot({"version": VERSION, "asked": self._asked, "pending": pending})

    def restore(self, snapshot: Snapshot) -> None:
        """Take up where `snapshot` was made.

        Raises:
            ProblemInvalid: It is of another version.
        """
        version = snapshot.data.get("version")
        if version != VERSION:
            raise ProblemInvalid(f"Agent snapshot has version {version!r}; {VERSION} is known")
        self._asked = int(snapshot.data["asked"])
        for name, point in snapshot.data["pending"]:
            self._pending[name] = tuple(point) if point else None
            self._mark(self._pending[name])

    def _note(self, request: Request) -> Request:
        point = self._problem.space.encode(request.plan)
        self._pending[_name(request)] = point if isinstance(request, Evaluate) else None
        self._mark(self._pending[_name(request)])
        self._asked += 1
        return request

    def _mark(self, point: Point | None) -> None:
        if point is not None and self._everywhere.is_new(point):
            self._everywhere.order(point)

    # The course of the search: what it waits for is yielded; what was told decides how it goes on.

    def _search(self) -> Waiting:
        known: set[Point] = set()
        best: Point | None = None
        visits: Visits = []
        narrowed = False
        for number in range(1, self._rounds + 1):
            here = self._stages.round(number, self._base, self._reached, frozenset(known))
            visits = []
            yield from self._anneal(here, best or self._reached, visits, self._quota)
            known |= {point for point, _ in visits}
            best = min(visits, key=lambda v: self._stages.merit(v, here), default=(best, None))[0]
            before = self._base
            if best is not None and self._options.prepare and self._on_reached(best) != best:
                yield from self._prepare(best)
            narrowed = self._base != before
        last = self._stages.round(self._rounds, self._base, self._reached, frozenset(known))
        if narrowed and best is not None:
            last = dataclasses.replace(last, fill=False)
            best = self._on_reached(best)
            yield from self._wait([self._evaluate(best, last)])
            visits = self._visited([best], last)
        # What is left of the budget, as long as there is something new around.
        yield from self._anneal(last, best or self._reached, visits, None)

    def _anneal(self, here: Round, start: Point, visits: Visits, quota: int | None) -> Waiting:
        """Visit about `quota` plans, or all there are; the list grows as they are told."""
        options = self._options
        first = self._stages.fitted(start, here, visits)
        seen: set[Point] = {first}
        if quota is not None:
            probes = self._probes(here, first, min(options.probes, max(2, quota // 4)))
            seen |= set(probes)
            yield from self._wait([self._evaluate(point, here) for point in probes])
            visits += self._visited(probes, here)
            self._temperature = self._first_temperature(first, here, visits)
            first = min(visits, key=lambda v: self._stages.merit(v, here), default=(first, None))[0]
            quota -= len(probes)
        energies = {point: self._stages.energy(m, here) for point, m in visits}
        chains = [Chain(first, energies.get(first), self._temperature)] * options.chains
        steps = OPEN_STEPS if quota is None else max(1, quota // options.chains)
        stuck = 0
        for step in itertools.count() if quota is None else range(steps):
            drawn: dict[int, tuple[Point, float]] = {}
            for number, chain in enumerate(chains):
                purpose = 1 + number + 100 * (here.number + (quota is None))
                rng = generator(self._problem, step, purpose)
                chance = float(rng.random())
                point = self._draw(chain, here, move_size(step, steps), rng, visits, seen)
                if point is not None:
                    seen.add(point)
                    drawn[number] = (point, chance)
            stuck = 0 if drawn else stuck + 1
            if stuck == STUCK:
                return
            yield from self._wait([self._evaluate(point, here) for point, _ in drawn.values()])
            for number, (point, chance) in drawn.items():
                found = self._visited([point], here)
                visits += found
                energy = self._stages.energy(found[0][1], here) if found else None
                chains[number] = chains[number].judged(point, energy, chance, options.cooling)

    def _draw(
        self,
        chain: Chain,
        here: Round,
        size: float,
        rng: np.random.Generator,
        visits: Visits,
        seen: set[Point],
    ) -> Point | None:
        """Return a move that nobody made yet; None where none was found."""
        # Where no plan at the target is new any more, plans below it are.
        for stage in (here, dataclasses.replace(here, fill=False)):
            for _ in range(REDRAWS):
                moved = self._reduction.moved(chain.point, here.reached, size, rng)
                drawn = self._stages.fitted(moved, stage, visits)
                if drawn not in seen and drawn not in here.known:
                    return drawn
        return None

    def _first_temperature(self, first: Point, here: Round, found: Visits) -> float:
        """Return the temperature of a round whose probes were told."""
        energies = {point: self._stages.energy(m, here) for point, m in found}
        begin = energies.get(first, min(energies.values(), default=0.0))
        changes = [energy - begin for point, energy in energies.items() if point != first]
        return start_temperature(changes, self._options.accepted)

    def _probes(self, here: Round, first: Point, count: int) -> list[Point]:
        """Return the first plan, where it is new, and up to `count` random moves from it."""
        points = {} if first in here.known else {first: None}
        rng = generator(self._problem, here.number, 0)
        for _ in range(REDRAWS * count):
            if len(points) > count:
                break
            drawn = self._reduction.moved(first, here.reached, move_size(0, 1), rng)
            drawn = self._stages.fitted(drawn, here, [])
            if drawn not in here.known:
                points[drawn] = None
        return list(points)

    def _prepare(self, best: Point) -> Waiting:
        """Wait for the network of a plan; a failed preparation leaves the base as it was."""
        options = self._options
        order = Prepare(
            kind="admm",
            plan=self._reduction.structure(best),
            base=self._base,
            options={
                "steps": options.admm_steps,
                "rounds": options.admm_rounds,
                "rho": [1e-3, 1e-1],
                "retrain_steps": options.retrain_steps,
                "purify": options.purify,
            },
        )
        yield from self._wait([order])
        trial = self._told[_name(order)]
        if not isinstance(trial.outcome, Measured) or PREPARED_ROLE not in trial.artifacts:
            return
        self._base = trial.artifacts[PREPARED_ROLE]
        self._reached = self._problem.space.encode(order.plan)
        with contextlib.suppress(PlanInvalid, KeyError):
            self._reached = self._problem.space.encode(Plan.from_json(trial.outcome.found["plan"]))

    def _on_reached(self, best: Point) -> Point:
        """Return the network's own plan with the other decisions of `best`."""
        fields = STRUCTURE
        knobs = self._problem.space.knobs
        return self._problem.space.canonical(
            [
                reached if knob.field in fields else other
                for reached, other, knob in zip(self._reached, best, knobs, strict=True)
            ]
        )

    def _evaluate(self, point: Point, here: Round) -> Evaluate:
        return Evaluate(plan=self._problem.space.decode(point), base=here.base)

    def _visited(self, points: Sequence[Point], here: Round) -> Visits:
        """Return those of the told points that were measured."""
        found: Visits = []
        for point in points:
            outcome = self._told[_name(self._evaluate(point, here))].outcome
            if isinstance(outcome, Measured):
                found.append((point, outcome.measurement))
        return found

    def _wait(self, requests: Sequence[Request]) -> Waiting:
        while missing := [r for r in requests if _name(r) not in self._told]:
            yield missing

    def _another(self) -> Evaluate | None:
        """Return a request for any plan that is left, on the last network where it can be."""
        rng = generator(self._problem, self._asked, 50)
        ranked = sorted(self._everywhere.told, key=lambda t: self._problem.rank_key(t.trial))
        near = [told.point for told in ranked[:20]]
        point = new_point(self._repair, self._everywhere, rng, near=near)
        if point is None:
            return None
        base = self._base if self._reduction.is_within(point, self._reached) else None
        return Evaluate(plan=self._problem.space.decode(point), base=base)


def _name(request: Request) -> str:
    """Return what makes a request different from every other."""
    if isinstance(request, Prepare):
        return f"{request.plan.digest} {request.preparation.key} {request.base or ''}"
    return f"{request.plan.digest} {request.fidelity} {request.base or ''}"


def _trial_name(trial: Trial) -> str:
    what = trial.preparation.key if trial.preparation is not None else trial.fidelity
    return f"{trial.plan.digest} {what} {trial.base or ''}"
