"""The laws of `search.agent.Agent`; each agent subclasses `AgentContract`.

Run as a module, it continues runs that another process wrote down: see `continue_elsewhere`.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import itertools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from compression.decisions import PruneChannels
from compression.plan import Plan
from compression.space import Knob, PlanSpace, Point
from search.agent import Agent, Prepare, Request, Snapshot
from search.catalogue import create
from search.history import plan_count
from search.measurement import Measured, Measurement, outcome_from_json, outcome_to_json
from search.objective import objective_from_json
from search.problem import Problem
from search.trial import Fidelity, Preparation, Trial, state_of
from tests.synthetic import (
    LATENCY,
    TOP1,
    Loop,
    Net,
    download_at_most,
    latency_at_most,
    macs_at_most,
    top1_at_least,
)

NET = Net(d=4, noise=0.02, multiple=4)
BOUNDS = (latency_at_most(0.4), macs_at_most(0.7))
BUDGET = 24


def digests(requests: Sequence[Request]) -> list[str]:
    """Name orders by all that makes them different."""
    names = []
    for request in requests:
        what = request.preparation.key if isinstance(request, Prepare) else request.fidelity
        names.append(f"{request.plan.digest} {what} {request.base or ''}")
    return names


def snapshot_to_text(snapshot: Snapshot) -> str:
    """JSON for the data and npz for the arrays, as a ledger keeps them."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **dict(snapshot.arrays))
    arrays = base64.b64encode(buffer.getvalue()).decode()
    return json.dumps({"data": dict(snapshot.data), "arrays": arrays})


def snapshot_from_text(text: str) -> Snapshot:
    fields = json.loads(text)
    with np.load(io.BytesIO(base64.b64decode(fields["arrays"])), allow_pickle=False) as arrays:
        return Snapshot(fields["data"], {name: arrays[name] for name in arrays.files})


def trials_to_json(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    return [
        {
            "number": t.number,
            "plan": t.plan.to_json(),
            "fidelity": t.fidelity,
            "base": t.base,
            "preparation": t.preparation.to_json() if t.preparation else None,
            "artifacts": dict(t.artifacts),
            "outcome": outcome_to_json(t.outcome) if t.outcome else None,
        }
        for t in trials
    ]


def trial_from_json(data: Mapping[str, Any]) -> Trial:
    outcome = outcome_from_json(data["outcome"])
    return Trial(
        id=f"trl_{data['number']:04d}",
        number=data["number"],
        plan=Plan.from_json(data["plan"]),
        fidelity=Fidelity(data["fidelity"]),
        base=data["base"],
        preparation=(Preparation.from_json(data["preparation"]) if data["preparation"] else None),
        artifacts=data["artifacts"],
        seed=0,
        agent="elsewhere",
        state=state_of(outcome),
        outcome=outcome,
    )


def all_points(space: PlanSpace) -> list[Point]:
    return list(itertools.product(*(range(len(knob.choices)) for knob in space.knobs)))


class AgentContract:
    """Laws of every agent; subclasses name it and give options that make it quick."""

    name: str
    waits: bool = False
    """Whether it may hold back requests until earlier ones are told: generations, preparations."""
    options: Mapping[str, Any] = MappingProxyType({})

    def problem(self, *, seed: int = 3, net: Net = NET, **changes: Any) -> Problem:
        return net.problem(changes.pop("constraints", BOUNDS), seed=seed, budget=BUDGET, **changes)

    def agent(self, problem: Problem) -> Agent:
        return create(self.name, problem, self.options)

    def loop(self, problem: Problem, **changes: Any) -> Loop:
        return Loop(changes.pop("net", NET), self.agent(problem), seed=5, **changes)

    def test_every_plan_is_in_the_space_and_never_repeats(self) -> None:
        problem = self.problem()
        trials = self.loop(problem, fail=0.1, refuse=0.1).run(BUDGET, q=3)
        assert len(trials) == BUDGET
        assert all(problem.space.contains(t.plan) for t in trials)
        assert len({(t.plan.digest, t.base) for t in trials}) == BUDGET

    def test_arithmetic_bounds_are_kept_without_a_trial(self) -> None:
        problem = self.problem(constraints=(macs_at_most(0.5),))
        trials = self.loop(problem).run(BUDGET)
        # Agents that cool their bounds may exceed them early; the last ones must keep them.
        assert all(problem.arithmetic_violation(t.plan) == 0 for t in trials[-6:])

    def test_same_seed_same_future(self) -> None:
        problem = self.problem()
        first, second = (self.loop(problem).run(16, q=2) for _ in range(2))
        assert [t.plan for t in first] == [t.plan for t in second]

    def test_asking_at_once_is_asking_one_by_one(self) -> None:
        problem = self.problem()
        one, other = self.loop(problem), self.loop(problem)
        one.run(10)
        other.run(10)
        at_once = digests(one.agent.ask(4))
        # An agent may wait for what it asked for before: then it returns fewer.
        assert len(at_once) == 4 or self.waits
        assert at_once == [digest for _ in range(4) for digest in digests(other.agent.ask(1))]

    def test_order_of_telling_does_not_matter(self) -> None:
        problem = self.problem()
        one, other = self.loop(problem), self.loop(problem)
        if self.waits:
            one.run(6)
            other.run(6)
        done = [one.evaluate(t) for t in one.propose(one.agent.ask(9))]
        other.propose(other.agent.ask(9))
        one.agent.tell(done)
        other.agent.tell(done[::-1])
        assert digests(one.agent.ask(3)) == digests(other.agent.ask(3))

    def test_rebuilt_from_snapshot_and_trials_it_has_the_same_future(self) -> None:
        problem = self.problem()
        loop = self.loop(problem, fail=0.1, refuse=0.1)
        loop.run(12, q=2)
        pending = loop.propose(loop.agent.ask(3))
        text = snapshot_to_text(loop.agent.snapshot())
        # One of the pending trials finishes after the snapshot was written.
        loop.agent.tell([loop.evaluate(pending[-1])])
        rebuilt = self.agent(problem)
        rebuilt.restore(snapshot_from_text(text))
        for trial in sorted(loop.trials, key=lambda t: t.id[::-1]):
            if trial.outcome is not None:
                rebuilt.tell([trial])
        future = digests(loop.agent.ask(2))
        assert digests(rebuilt.ask(2)) == future
        late = [loop.evaluate(trial) for trial in pending[:-1]]
        loop.agent.tell(late)
        rebuilt.tell(late)
        assert digests(rebuilt.ask(2)) == digests(loop.agent.ask(2))

    def test_another_process_continues_identically(self) -> None:
        problem = self.problem()
        loop = self.loop(problem)
        loop.run(13)
        loop.propose(loop.agent.ask(1))
        message = {
            "name": self.name,
            "options": dict(self.options),
            "objectives": [objective.to_json() for objective in problem.objectives],
            "snapshot": snapshot_to_text(loop.agent.snapshot()),
            "trials": trials_to_json([t for t in loop.trials if t.outcome]),
        }
        assert ask_elsewhere(message) == digests(loop.agent.ask(2))

    def test_pending_trials_do_not_stop_it(self) -> None:
        problem = self.problem()
        loop = self.loop(problem)
        asked = [digest for _ in range(5) for digest in digests(loop.agent.ask(3))]
        assert len(set(asked)) == len(asked)
        assert len(asked) == 15 or (self.waits and asked)

    def test_a_trial_told_twice_counts_once(self) -> None:
        problem = self.problem()
        one, other = self.loop(problem), self.loop(problem)
        done = one.run(9)
        other.run(9)
        other.agent.tell(done)
        assert digests(one.agent.ask(2)) == digests(other.agent.ask(2))

    @pytest.mark.parametrize("share", [{"fail": 1.0}, {"refuse": 1.0}])
    def test_survives_when_nothing_can_be_measured(self, share: dict[str, float]) -> None:
        trials = self.loop(self.problem(), **share).run(14, q=2)
        assert len({(t.plan.digest, t.base) for t in trials}) == 14

    @pytest.mark.parametrize(
        "bounds",
        [
            (latency_at_most(0.001),),
            (macs_at_most(0.001),),
            (macs_at_most(0.5), download_at_most(0.001), top1_at_least(0.05)),
        ],
    )
    def test_survives_when_nothing_is_feasible(self, bounds: Any) -> None:
        trials = self.loop(self.problem(constraints=bounds)).run(14)
        assert len({(t.plan.digest, t.base) for t in trials}) == 14

    def test_survives_equal_measurements(self) -> None:
        problem = self.problem()
        loop = self.loop(problem)
        flat = Measured(Measurement(NET.measurement(Plan()).readings))
        for _ in range(14):
            (trial,) = loop.propose(loop.agent.ask(1))
            if trial.preparation is not None:
                loop.agent.tell([loop.evaluate(trial)])
                continue
            data = {**trials_to_json([trial])[0], "outcome": outcome_to_json(flat)}
            loop.agent.tell([trial_from_json(data)])
        names = {(t.plan.digest, t.base, t.fidelity, t.preparation and t.preparation.key)
                 for t in loop.trials}  # fmt: skip
        assert len(names) == 14

    def test_lives_without_constraints_and_without_a_budget_of_trials(self) -> None:
        problem = NET.problem((), budget=None, seed=1)
        assert len(self.loop(problem).run(12)) == 12

    def test_serves_several_objectives(self) -> None:
        problem = self.problem(objectives=(TOP1, LATENCY), constraints=(macs_at_most(0.6),))
        trials = self.loop(problem).run(16, q=2)
        assert len({(t.plan.digest, t.base) for t in trials}) == 16

    def test_selectors_that_change_nothing_are_not_tried_twice(self) -> None:
        net = Net(d=4, multiple=8, selectors=("l1", "l2", "taylor"))
        trials = self.loop(self.problem(net=net), net=net).run(BUDGET, q=2)
        assert len({(t.plan.digest, t.base) for t in trials}) == BUDGET

    def test_a_single_plan_is_asked_for_once(self) -> None:
        space = PlanSpace(
            (Knob(site="model", field="precision", choices=("none",), ordered=False),)
        )
        problem = self._with_space(space)
        loop = self.loop(problem)
        assert [t.plan for t in loop.run(5, q=2)] == [Plan()]
        assert loop.agent.ask(2) == []

    def test_an_exhausted_space_ends_it(self) -> None:
        knobs = NET.space.knobs
        small = (*(Knob(site=k.site, field=k.field, choices=k.choices[-2:], ordered=True)
                   for k in knobs[:3]), knobs[-1])  # fmt: skip
        problem = self._with_space(PlanSpace(small))
        trials = self.loop(problem).run(100, q=3)
        assert len(trials) == plan_count(problem.space) == 16
        assert len({t.plan.digest for t in trials}) == 16

    def test_plans_that_arithmetic_refuses_are_left_out_to_the_end(self) -> None:
        knobs = NET.space.knobs
        small = tuple(Knob(site=k.site, field=k.field, choices=k.choices[-2:], ordered=True)
                      for k in knobs[:3])  # fmt: skip
        problem = self._with_space(PlanSpace(small), constraints=(macs_at_most(0.93),))
        trials = self.loop(problem).run(100)
        allowed = [p for p in all_points(problem.space)
                   if problem.arithmetic_violation(problem.space.decode(p)) == 0]  # fmt: skip
        assert 0 < len(allowed) < problem.space.size
        kept = [t for t in trials if problem.arithmetic_violation(t.plan) == 0]
        assert len(kept) == len(allowed)

    def test_other_fidelities_and_foreign_plans_are_ignored(self) -> None:
        problem = self.problem()
        one, other = self.loop(problem), self.loop(problem)
        done = one.run(9)
        other.run(9)
        elsewhere = Plan.of({"nowhere": [PruneChannels(keep_channels=1)]})
        other.agent.tell(
            [
                dataclasses.replace(done[0], id="trl_full", number=500, fidelity=Fidelity.FULL),
                dataclasses.replace(done[0], id="trl_away", number=501, plan=elsewhere),
            ]
        )
        assert digests(one.agent.ask(2)) == digests(other.agent.ask(2))

    def _with_space(self, space: PlanSpace, **changes: Any) -> Problem:
        return dataclasses.replace(self.problem(**changes), space=space)


def continue_elsewhere(message: Mapping[str, Any]) -> list[str]:
    """Rebuild the agent of `test_another_process_continues_identically` and ask it for two."""
    objectives = tuple(objective_from_json(data) for data in message["objectives"])
    problem = NET.problem(BOUNDS, objectives, seed=3, budget=BUDGET)
    agent = create(message["name"], problem, message["options"])
    agent.restore(snapshot_from_text(message["snapshot"]))
    agent.tell([trial_from_json(data) for data in message["trials"]])
    return digests(agent.ask(2))


@functools.cache
def another_process() -> subprocess.Popen[str]:
    """Start a process that continues what it is told, a line each; it ends with this one."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.contracts.agent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask_elsewhere(message: Mapping[str, Any]) -> list[str]:
    """Let another process `continue_elsewhere`; one for all agents, for it starts slowly."""
    stdin, stdout = another_process().stdin, another_process().stdout
    assert stdin is not None
    assert stdout is not None
    stdin.write(json.dumps(message) + "\n")
    stdin.flush()
    answer: list[str] = json.loads(stdout.readline())
    return answer


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(json.dumps(continue_elsewhere(json.loads(line))) + "\n")
        sys.stdout.flush()
