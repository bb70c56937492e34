"""Agents raced on shared trials: the one whose plans are good gets the next request.

Every measured plan is told to every racer, whoever asked for it; what is raced is who proposes. A
uniform and a random control take fixed turns, so that a report can say what cleverness bought.

Reference:
    J. Ansel et al.: OpenTuner: An Extensible Framework for Program Autotuning, PACT 2014, section
    4.2: the area-under-the-curve bandit, A + C sqrt(2 ln N / n), where A weighs a racer's recent
    successes more than its old ones.

Deviations:
    * A success is a plan among the best `elite` share of all measured by then, feasible ones first;
      at the default that is a new best until some fifty are measured. With a larger share, racers
      that ask for neighbours of what is known to be good win all turns.
    * Controls are outside the bandit: they ask in fixed turns.
    * The first racer leads: it asks alone for the first `lead_share` of the budget. Its probes
      teach all others, while a race of beginners teaches nobody who is best. On the way down to
      the bounds nearly every plan is a new best: what was asked for during the lead earns nothing.
    * Racers differ in their defaults where the lead has done their work already (`RACING`).
    * A racer that waits, or whose suggestion another has under way, is passed over.
    * Racers that need long training before their first plan, or hundreds of cheap episodes, are
      not raced by default: name them in `agents` where the budget allows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from search.agent import Agent, Evaluate, Prepare, Request, Snapshot
from search.errors import ProblemInvalid
from search.measurement import Measured
from search.problem import Problem
from search.trial import Fidelity, Trial

RACERS = ("netadapt", "cbo")
CONTROLS = ("uniform", "random")

RACING: Mapping[str, Mapping[str, Any]] = {"cbo": {"schedule": "one_step"}}
"""Defaults in a race, by racer: the lead came down to the bounds, nobody need cool them again."""

USUAL = 60
"""Trials that a search without a budget of trials is taken to have."""

SEPARATOR = "/"
"""Between a racer's name and its array's, in a snapshot."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the race.

    Attributes:
        agents: Who races, at least one; the first leads.
        options: Options of racers, by name.
        lead_share: Share of the budget that the first racer has to itself, in [0, 1]; without a
            budget of trials, of 60.
        control_share: Share of the requests that uniform and random get in turn, in [0, 0.5];
            unless it is 0 each gets one at least.
        exploration: C of the bandit, at least 0.
        elite: Share of the measured plans that count as successes, in (0, 1].
    """

    agents: tuple[str, ...] = RACERS
    options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    lead_share: float = 0.35
    control_share: float = 0.05
    exploration: float = 0.3
    elite: float = 0.02

    def __post_init__(self) -> None:
        object.__setattr__(self, "agents", tuple(self.agents))
        if not self.agents or len(set(self.agents)) != len(self.agents):
            raise ProblemInvalid(f"auto: agents are {list(self.agents)}; some, each once")
        barred = sorted({"auto", *CONTROLS} & set(self.agents))
        if barred:
            raise ProblemInvalid(f"auto: {barred} cannot race; controls ask in fixed turns")
        foreign = sorted(set(self.options) - set(self.agents))
        if foreign:
            raise ProblemInvalid(f"auto: options are given for {foreign}, which do not race")
        # The catalogue lists this module; importing it at load time would be a circle.
        from search import catalogue

        for name in self.agents:
            catalogue.options(name, self.options.get(name, {}))
        if not 0.0 <= self.lead_share <= 1.0:
            raise ProblemInvalid(f"auto: lead_share is {self.lead_share}; it must be in [0, 1]")
        if not 0.0 <= self.control_share <= 0.5:
            raise ProblemInvalid(
                f"auto: control_share is {self.control_share}; it must be in [0, 0.5]"
            )
        if self.exploration < 0:
            raise ProblemInvalid(f"auto: exploration is {self.exploration}; at least 0")
        if not 0.0 < self.elite <= 1.0:
            raise ProblemInvalid(f"auto: elite is {self.elite}; it must be in (0, 1]")


class Auto:
    """Races agents on shared trials and moves the budget to those whose plans are good."""

    options_type = Options

    def __init__(self, problem: Problem, options: Options) -> None:
        from search.catalogue import create

        self._problem = problem
        self._options = options
        names = (*options.agents, *CONTROLS)
        self._racers: dict[str, Agent] = {
            name: create(name, problem, {**RACING.get(name, {}), **options.options.get(name, {})})
            for name in names
        }
        budget = problem.budget_trials or USUAL
        self._lead = options.lead_share * budget
        least = min(0.5, len(CONTROLS) / budget)
        self._control_share = options.control_share and max(options.control_share, least)
        self._askers: dict[str, str] = {}
        """Who asked, by the name of the order."""
        self._led: dict[str, None] = {}
        """Names of the orders of the lead."""
        self._told: dict[str, tuple[str, Trial]] = {}
        """Names of orders and their trials, by the trial's id."""
        self._turn = 0

    def ask(self, n: int) -> Sequence[Request]:
        """Return up to `n` new requests; fewer when every racer waits or nothing is left."""
        requests: list[Request] = []
        while len(requests) < n:
            request = self._next()
            if request is None:
                break
            requests.append(request)
        return requests

    def tell(self, trials: Sequence[Trial]) -> None:
        """Tell every racer."""
        for racer in self._racers.values():
            racer.tell(trials)
        self._told.update({trial.id: (_name_of(trial), trial) for trial in trials})

    def snapshot(self) -> Snapshot:
        """Return who asked for what, and every racer's snapshot."""
        parts = {name: racer.snapshot() for name, racer in self._racers.items()}
        data = {name: dict(part.data) for name, part in parts.items()}
        arrays = {
            f"{name}{SEPARATOR}{key}": array
            for name, part in parts.items()
            for key, array in part.arrays.items()
        }
        known = {"turn": self._turn, "askers": dict(self._askers), "led": list(self._led)}
        return Snapshot({**known, "racers": data}, arrays)

    def restore(self, snapshot: Snapshot) -> None:
        """Take up where `snapshot` was made.

        Raises:
            ProblemInvalid: It is of another race.
        """
        known = snapshot.data.get("racers", {})
        if set(known) != set(self._racers):
            raise ProblemInvalid(
                f"Agent snapshot is of a race of {sorted(known)}; {sorted(self._racers)} race here"
            )
        for name, racer in self._racers.items():
            mark = f"{name}{SEPARATOR}"
            arrays = {
                key.removeprefix(mark): array
                for key, array in snapshot.arrays.items()
                if key.startswith(mark)
            }
            racer.restore(Snapshot(known[name], arrays))
        self._turn = int(snapshot.data["turn"])
        self._askers = dict(snapshot.data["askers"])
        self._led = dict.fromkeys(snapshot.data["led"])

    def _next(self) -> Request | None:
        """Return one request of the first in line who has one."""
        for name in self._line():
            request = self._fresh(name)
            if request is not None:
                order = _name(request)
                self._askers[order] = name
                if self._turn < self._lead:
                    self._led[order] = None
                self._turn += 1
                return request
        return None

    def _fresh(self, name: str) -> Request | None:
        """Return a racer's next request that nobody has under way; None when it has none."""
        while True:
            requests = self._racers[name].ask(1)
            if not requests:
                return None
            if _name(requests[0]) not in self._askers:
                return requests[0]

    def _line(self) -> list[str]:
        """Return everyone in the order of asking now."""
        share = self._control_share
        # Turn t is a control's where t * share passes a whole number.
        passed = math.floor((self._turn + 1) * share + 1e-9)
        control = CONTROLS[passed % len(CONTROLS)]
        successes = self._successes()
        # Sorting is stable: of equals, the one named first comes first.
        racers = sorted(
            self._options.agents, key=lambda name: -self._merit(name, successes.get(name, []))
        )
        if passed > math.floor(self._turn * share + 1e-9):
            return [control, *racers, *(c for c in CONTROLS if c != control)]
        return [*racers, *CONTROLS]

    def _merit(self, name: str, successes: Sequence[bool]) -> float:
        raced = [asker for order, asker in self._askers.items() if order not in self._led]
        uses = raced.count(name)
        total = sum(asker in self._options.agents for asker in raced)
        if not uses or (self._turn < self._lead and name == self._options.agents[0]):
            return math.inf
        spread = self._options.exploration * math.sqrt(2 * math.log(max(2, total)) / uses)
        return area_under_curve(successes) + spread

    def _successes(self) -> dict[str, list[bool]]:
        """Return for each racer whether its plans were among the best, in order of proposal.

        What was asked for during the lead is compared with, but not counted.
        """
        found: dict[str, list[bool]] = {}
        keys: list[tuple[float, float]] = []
        for order, trial in sorted(self._told.values(), key=lambda t: (t[1].number, t[1].id)):
            if trial.fidelity is not Fidelity.PROXY or not isinstance(trial.outcome, Measured):
                continue
            key = self._problem.rank_key(trial)[:2]
            keys.append(key)
            place = sum(other < key for other in keys)
            asker = self._askers.get(order)
            if asker is not None and order not in self._led:
                succeeded = place < max(1.0, self._options.elite * len(keys))
                found.setdefault(asker, []).append(succeeded)
        return found


def area_under_curve(successes: Sequence[bool]) -> float:
    """Return the weighted share of successes, in [0, 1]; the i-th of n weighs i.

    Equation 2 of Ansel et al., 2014: 2 / (n (n + 1)) times the sum of i over the successes.
    """
    n = len(successes)
    if not n:
        return 0.0
    return float(2 / (n * (n + 1)) * np.arange(1, n + 1)[np.array(successes, dtype=bool)].sum())


def _name(request: Request) -> str:
    match request:
        case Evaluate(plan=plan, fidelity=fidelity, base=base):
            return f"{plan.digest} {fidelity} {base or ''}"
        case Prepare(plan=plan, base=base):
            return f"{plan.digest} {request.preparation.key} {base or ''}"


def _name_of(trial: Trial) -> str:
    what = trial.fidelity if trial.preparation is None else trial.preparation.key
    return f"{trial.plan.digest} {what} {trial.base or ''}"
