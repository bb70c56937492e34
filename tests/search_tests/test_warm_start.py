"""Every agent goes on from trials that it never asked for, as a job with memory starts."""

from __future__ import annotations

import numpy as np
import pytest

from compression.plan import Plan
from search import catalogue
from search.agent import Agent, Evaluate
from search.history import canonical
from search.problem import Problem
from search.trial import Fidelity, Trial
from tests.synthetic import Loop, Net, latency_at_most, macs_at_most

NET = Net(d=4, multiple=4)
WARM = 30
OWN = 6


def problem() -> Problem:
    return NET.problem((latency_at_most(0.5), macs_at_most(0.7)), budget=OWN, seed=3)


def warm_plans() -> list[Plan]:
    """Return different plans in a random order: what jobs with other bounds have tried."""
    space = NET.space
    rng = np.random.default_rng(3)
    plans: dict[str, Plan] = {}
    while len(plans) < WARM:
        point = canonical(space, [int(rng.integers(len(knob.choices))) for knob in space.knobs])
        plan = space.decode(point)
        if plan.decisions:
            plans[plan.digest] = plan
    return list(plans.values())


def name_of(trial: Trial) -> tuple[str, Fidelity, str, str]:
    preparation = trial.preparation.key if trial.preparation else ""
    return trial.plan.digest, trial.fidelity, trial.base or "", preparation


def warm_loop(agent: Agent) -> Loop:
    loop = Loop(NET, agent, seed=3)
    orders = [Evaluate(plan=plan) for plan in (Plan(), *warm_plans())]
    for trial in loop.propose(orders):
        agent.tell([loop.evaluate(trial)])
    return loop


@pytest.mark.parametrize("name", list(catalogue.AGENTS))
def test_an_agent_goes_on_from_what_other_jobs_know(name: str) -> None:
    agent = catalogue.create(name, problem(), {})
    loop = warm_loop(agent)
    evaluated = loop.run(1 + WARM + OWN)
    names = [name_of(trial) for trial in loop.trials]
    assert len(evaluated) > 1 + WARM
    assert len(set(names)) == len(names)
    resumed = catalogue.create(name, problem(), {})
    resumed.restore(agent.snapshot())
    for trial in loop.trials:
        resumed.tell([trial])
    assert list(resumed.ask(1)) == list(agent.ask(1))
