from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from search.catalogue import create
from search.measurement import Measured, Measurement
from search.reselect import Reselection, reselect
from search.trial import Trial
from tests.synthetic import (
    LATENCY,
    TOP1,
    Loop,
    Net,
    download_at_most,
    latency_at_most,
    macs_at_most,
)

NET = Net(d=4, multiple=4)


@pytest.fixture(scope="module")
def trials() -> list[Trial]:
    """A search under loose bounds."""
    problem = NET.problem((latency_at_most(0.8),), budget=24)
    return Loop(NET, create("random", problem, {})).run(24)


def under(trials: Sequence[Trial], latency: float, **options: float) -> Reselection:
    problem = NET.problem((latency_at_most(latency), macs_at_most(0.9)), budget=24)
    return reselect(problem, trials, candidates=100, **options)


def test_feasible_trials_come_best_first(trials: list[Trial]) -> None:
    found = under(trials, 0.6)
    problem = NET.problem((latency_at_most(0.6), macs_at_most(0.9)))
    outcomes = [t.outcome for t in trials]
    kept = [o for o in outcomes if isinstance(o, Measured) and problem.feasible(o.measurement)]
    assert len(found.feasible) == len(kept) > 2
    scores = [NET.top1(t.plan) for t in found.feasible]
    assert scores == sorted(scores, reverse=True)
    assert found.nearest is None
    assert found.unmeasured == 0


def test_a_random_search_can_be_improved_upon(trials: list[Trial]) -> None:
    found = under(trials, 0.3, least_gain=0.0)
    assert found.chance_of_better > 0.5
    assert found.expected_gain > 0
    assert found.worthwhile


def test_nothing_better_is_expected_beyond_the_dense_model(trials: list[Trial]) -> None:
    # The best plans lose nothing that could be won back by a tenth of the range.
    loop = Loop(NET, create("cbo", NET.problem((), budget=24), {"candidates": 64}))
    found = reselect(NET.problem(()), [*loop.run(16)], least_gain=0.1, candidates=100)
    assert found.chance_of_better < 0.2
    assert not found.worthwhile


def test_what_no_plan_can_keep_is_not_worth_a_search(trials: list[Trial]) -> None:
    found = under(trials, 0.02)
    assert found.feasible == ()
    assert found.nearest is not None
    assert found.chance_of_better < 0.1
    assert not found.worthwhile


def test_too_few_trials_say_nothing(trials: list[Trial]) -> None:
    found = under(trials[:2], 0.5)
    assert found.worthwhile
    assert found.chance_of_better == 1.0


def test_trials_without_the_reading_are_counted_and_left_out(trials: list[Trial]) -> None:
    outcome = trials[0].outcome
    assert isinstance(outcome, Measured)
    kept = tuple(r for r in outcome.measurement.readings if r.metric != "download_bytes")
    bare = dataclasses.replace(trials[0], outcome=Measured(Measurement(kept)))
    problem = NET.problem((download_at_most(0.9),))
    found = reselect(problem, [bare, *trials[1:]], candidates=32)
    assert found.unmeasured == 1
    assert bare not in found.feasible


def test_several_objectives_and_the_same_answer_twice(trials: list[Trial]) -> None:
    problem = NET.problem((macs_at_most(0.8),), (TOP1, LATENCY))
    first = reselect(problem, trials, candidates=64)
    assert first == reselect(problem, trials[::-1], candidates=64)
    assert 0.0 <= first.chance_of_better <= 1.0
