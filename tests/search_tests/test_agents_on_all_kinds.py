"""Every agent on a space that holds every kind of knob, of a real network's survey."""

from __future__ import annotations

import dataclasses

import pytest

from compression.decisions import DECISIONS
from compression.methods import Methods, resolve_space
from compression.plan import Plan
from search.agent import Prepare
from search.catalogue import AGENTS, create
from search.measurement import Failed, Measured, Measurement, Reading
from search.problem import Problem
from search.trial import Fidelity, Trial, TrialState, state_of
from tests.builders import surveyed_resnet
from tests.synthetic import TOP1, macs_at_most

TRIALS = 14
LONG_THINKING = ("auto", "cbo", "gp")


@pytest.fixture(scope="module")
def problem() -> Problem:
    _, survey = surveyed_resnet(20)
    space = resolve_space(survey.sites, Methods(allow=tuple(DECISIONS)), survey.costs)
    return Problem(
        space=space,
        costs=survey.costs,
        objectives=(TOP1,),
        constraints=(macs_at_most(0.6),),
        baseline=measured(Plan(), survey.costs.cost(Plan()).macs, survey.costs.cost(Plan()).macs),
        budget_trials=TRIALS,
        seed=1,
    )


def measured(plan: Plan, macs: int, dense: int) -> Measurement:
    """Accuracy falls with what is taken away."""
    top1 = 0.2 + 0.7 * (macs / dense) ** 0.2 - 0.002 * len(list(plan))
    reading = Reading(metric="top1", value=top1, low=top1, high=top1, n=100, split="search")
    return Measurement((reading, Reading.exact("macs", macs, dense)))


def failed(order: Prepare, number: int) -> Trial:
    return Trial(
        id=f"trl_prepare_{number}",
        number=1000 + number,
        plan=order.plan,
        base=order.base,
        fidelity=Fidelity.PREPARED,
        preparation=order.preparation,
        seed=0,
        agent="under test",
        state=TrialState.FAILED,
        outcome=Failed("made-up failure"),
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in LONG_THINKING else ())
        for name in AGENTS
    ],
)
def test_it_proposes_new_plans_of_the_space_that_keep_the_bounds(
    name: str, problem: Problem
) -> None:
    agent = create(name, problem, {})
    dense = problem.costs.cost(Plan()).macs
    seen: set[Plan] = set()
    orders: list[Prepare] = []
    kept = 0
    while len(seen) < TRIALS:
        requests = agent.ask(2)
        if not requests:
            break
        done = []
        for request in requests:
            if isinstance(request, Prepare):
                # An agent whose training fails goes on with the model as it is.
                done.append(failed(request, len(orders)))
                orders.append(request)
                continue
            assert problem.space.contains(request.plan)
            assert request.plan not in seen
            seen.add(request.plan)
            macs = problem.costs.cost(request.plan).macs
            kept += macs <= 0.6 * dense
            trial = Trial(
                id=f"trl_{len(seen)}",
                number=len(seen),
                plan=request.plan,
                fidelity=Fidelity.PROXY,
                seed=0,
                agent=name,
            )
            outcome = Measured(measured(request.plan, macs, dense))
            done.append(
                dataclasses.replace(
                    trial, outcome=outcome, state=state_of(outcome), recorded=trial.number
                )
            )
        agent.tell(done)
    assert len(seen) >= min(TRIALS, 8)
    assert kept >= 0.5 * len(seen)
