"""Which trials get their recovery, and what an infeasible job is told."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from compression.artifact import Digest
from compression.plan import Plan
from search.finalists import (
    before_recovery,
    choose_finalists,
    compared_accuracy,
    price_of_relaxing,
    rank_correlations,
    rivals,
    spearman,
)
from search.measurement import Failed, Measured, Measurement, Reading
from search.trial import BASELINE_AGENT, Fidelity, Trial, TrialState
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


def scored(plan_of: float, fidelity: Fidelity, top1: float, **changes: Any) -> Trial:
    (trial,) = trials(plan_of)
    reading = Reading(metric="top1", value=top1, low=top1, high=top1, n=100)
    outcome = Measured(Measurement((reading,)))
    return dataclasses.replace(trial, fidelity=fidelity, outcome=outcome, **changes)


def test_a_plan_scored_at_two_rungs_is_recovered_once() -> None:
    (one,) = trials(0.5)
    again = dataclasses.replace(one, id="trl_8", fidelity=Fidelity.SHORT)
    assert len(choose_finalists(NET.problem(), [one, again], 4)) == 1


def test_spearman_in_closed_form() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    # 1 - 6 * sum(d^2) / (n (n^2 - 1)), d = (0, 1, -1, 0).
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / 60)
    # Ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3: 4.5 / sqrt(4.5 * 5).
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_rungs_are_compared_over_the_plans_measured_at_both() -> None:
    ratios = (1.0, 0.75, 0.5, 0.25)
    pool = [scored(r, Fidelity.PROXY, r) for r in ratios]
    pool += [scored(r, Fidelity.FULL, 1 - r) for r in ratios[:3]]
    pool += [scored(r, Fidelity.SHORT, r) for r in ratios[:2]]
    pool.append(scored(0.25, Fidelity.FULL, 1.0, agent=BASELINE_AGENT))
    pool.append(scored(0.25, Fidelity.FULL, 1.0, base=Digest("ab" * 32)))
    assert rank_correlations("top1", pool) == {
        "proxy_short": {"rho": None, "n": 2},
        "proxy_full": {"rho": pytest.approx(-1.0), "n": 3},
        "short_full": {"rho": None, "n": 2},
    }
    assert rank_correlations("top5", pool) == {}


def test_everyone_rivals_everyone_where_only_accuracy_counts() -> None:
    problem = NET.problem([macs_at_most(0.6)])
    assert rivals(problem, trials(0.5, 0.25)) == [{1}, {0}]
    # What misses a bound outruns nobody that holds it.
    assert rivals(problem, trials(0.9, 0.5)) == [{1}, frozenset()]


def test_only_what_costs_no_more_outruns_a_point_of_a_trade_off() -> None:
    problem = NET.problem(objectives=(TOP1, LATENCY))
    assert rivals(problem, trials(1.0, 0.5, 0.25)) == [{1, 2}, {2}, frozenset()]


def test_the_accuracy_that_ranks_is_the_first_that_is_named() -> None:
    assert compared_accuracy((LATENCY, TOP1), ()) == "top1"
    assert compared_accuracy((LATENCY,), (top1_at_least(-0.01),)) == "top1"
    assert compared_accuracy((LATENCY,), (macs_at_most(0.5),)) is None
