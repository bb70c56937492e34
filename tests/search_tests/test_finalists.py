"""Which trials get their recovery, and what an infeasible job is told."""

from __future__ import annotations

import dataclasses

import pytest

from compression.plan import Plan
from search.finalists import before_recovery, choose_finalists, price_of_relaxing
from search.measurement import Failed, Measured
from search.trial import Fidelity, Trial, TrialState
from tests.synthetic import LATENCY, TOP1, Net, latency_at_most, macs_at_most, top1_at_least

NET = Net(d=4)


def trials(*keep_ratios: float, precision: str = "none") -> list[Trial]:
    space = NET.space
    found = []
    for number, keep in enumerate(keep_ratios):
        plan = space.decode(space.uniform(keep, precision=precision))
        found.append(
            Trial(
                id=f"trl_{number}",
                number=number,
                plan=plan,
                fidelity=Fidelity.PROXY,
                seed=0,
                agent="x",
                state=TrialState.MEASURED,
                outcome=Measured(NET.measurement(plan)),
            )
        )
    return found


def test_the_best_feasible_trial_comes_first() -> None:
    problem = NET.problem([macs_at_most(0.6)])
    pool = trials(0.9, 0.5, 0.25)
    assert [t.number for t in choose_finalists(problem, pool, 3)] == [1, 2, 0]


def test_infeasible_trials_fill_up_by_how_much_they_miss() -> None:
    problem = NET.problem([macs_at_most(0.1)])
    assert [t.number for t in choose_finalists(problem, trials(0.9, 0.5, 0.75), 2)] == [1, 2]


def test_several_objectives_spread_the_finalists() -> None:
    problem = NET.problem(objectives=(TOP1, LATENCY))
    pool = trials(1.0, 0.95, 0.9, 0.25)
    chosen = choose_finalists(problem, pool, 3)
    assert chosen[0].number == 0
    assert pool[3] in chosen


def test_excluded_plans_and_failures_are_passed_over() -> None:
    problem = NET.problem([macs_at_most(0.6)])
    pool = trials(0.5, 0.25)
    broken = dataclasses.replace(pool[0], id="trl_9", outcome=Failed("x"))
    chosen = choose_finalists(problem, [broken, *pool], 4, exclude=frozenset({pool[0].plan.digest}))
    assert chosen == [pool[1]]


def test_the_order_of_trials_does_not_matter() -> None:
    problem = NET.problem([macs_at_most(0.8)], objectives=(TOP1, LATENCY))
    pool = trials(1.0, 0.9, 0.75, 0.6, 0.5, 0.4, 0.25)
    assert choose_finalists(problem, pool, 4) == choose_finalists(problem, pool[::-1], 4)


def test_an_accuracy_floor_becomes_an_objective_before_recovery() -> None:
    problem = NET.problem([macs_at_most(0.6), top1_at_least(-0.01)], objectives=(LATENCY,))
    searched = before_recovery(problem)
    assert searched.constraints == (macs_at_most(0.6),)
    assert [o.metric for o in searched.objectives] == ["latency_ms", "top1"]
    assert before_recovery(NET.problem([macs_at_most(0.6)])).objectives == (TOP1,)


def test_the_price_is_what_the_other_bounds_leave() -> None:
    problem = NET.problem([macs_at_most(0.6), latency_at_most(0.01)])
    pool = trials(0.9, 0.5, 0.25)
    rows = price_of_relaxing(problem, pool)
    assert [row["constraint"] for row in rows] == [latency_at_most(0.01).key]
    assert rows[0]["trial_id"] == "trl_2"
    assert rows[0]["reachable"] == pytest.approx(NET.latency_ms(pool[2].plan))
    assert rows[0]["relative_price"] > 0


def test_bounds_that_exclude_each_other_are_both_named() -> None:
    problem = NET.problem([macs_at_most(0.001), latency_at_most(0.001)])
    rows = price_of_relaxing(problem, trials(0.9, 0.5))
    assert {row["constraint"] for row in rows} == {"macs", latency_at_most(0.001).key}


def test_a_met_job_has_no_price() -> None:
    assert price_of_relaxing(NET.problem([macs_at_most(1.0)]), trials(1.0)) == []
    assert Plan() == NET.space.decode(NET.space.dense())
