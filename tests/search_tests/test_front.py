from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.decisions import PruneChannels
from compression.plan import Plan
from search.front import ParetoFront, dominates, hypervolume, nearest
from search.measurement import Failed, Measured, Measurement, Reading
from search.objective import Constraint, Objective
from search.problem import Problem, best_first
from search.trial import Fidelity, Trial, TrialState
from tests.synthetic import Net

OBJECTIVES = (
    Objective(metric="top1", direction="maximize"),
    Objective(metric="macs", direction="minimize"),
)
PROBLEM: Problem = dataclasses.replace(
    Net().problem(), objectives=OBJECTIVES, constraints=(Constraint(metric="params", at_most=5),)
)


def trial(number: int, top1: float, macs: float, params: float = 1.0, keep: int = 1) -> Trial:
    readings = (
        Reading.exact("top1", top1), Reading.exact("macs", macs), Reading.exact("params", params)
    )  # fmt: skip
    return Trial(
        id=f"trl_{number}", number=number, seed=0, agent="a", fidelity=Fidelity.PROXY,
        plan=Plan.of({"a": [PruneChannels(keep_channels=keep)]}), state=TrialState.MEASURED,
        outcome=Measured(Measurement(readings)),
    )  # fmt: skip


grid = st.integers(0, 4)
trials = st.lists(st.tuples(grid, grid, st.integers(3, 7), st.integers(1, 6)), max_size=12).map(
    lambda rows: [
        trial(i, float(a), float(b), float(c), keep) for i, (a, b, c, keep) in enumerate(rows)
    ]
)


def losses(front: ParetoFront) -> list[tuple[float, ...]]:
    return [
        PROBLEM.losses(t.outcome.measurement)
        for t in front.members
        if isinstance(t.outcome, Measured)
    ]


@given(trials)
def test_idempotent(some: list[Trial]) -> None:
    front = ParetoFront.of(PROBLEM, some)
    assert ParetoFront.of(PROBLEM, front.members) == front


@given(trials, st.randoms(use_true_random=False))
def test_free_of_order(some: list[Trial], random: object) -> None:
    shuffled = list(some)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert ParetoFront.of(PROBLEM, shuffled) == ParetoFront.of(PROBLEM, some)


@given(trials.map(lambda some: list({t.plan.digest: t for t in some}.values())))
def test_undominated_feasible_and_complete(some: list[Trial]) -> None:
    front = ParetoFront.of(PROBLEM, some)
    members = losses(front)
    assert not any(dominates(a, b) for a, b in itertools.permutations(members, 2))
    for one in some:
        assert isinstance(one.outcome, Measured)
        measurement = one.outcome.measurement
        if PROBLEM.feasible(measurement):
            loss = PROBLEM.losses(measurement)
            assert any(m == loss or dominates(m, loss) for m in members)
        else:
            assert one not in front.members


@given(trials)
def test_one_member_per_plan(some: list[Trial]) -> None:
    digests = [t.plan.digest for t in ParetoFront.of(PROBLEM, some).members]
    assert len(set(digests)) == len(digests)


def test_unmeasured_trials_are_left_out() -> None:
    failed = dataclasses.replace(trial(1, 9, 0), outcome=Failed("lost"), state=TrialState.FAILED)
    assert ParetoFront.of(PROBLEM, [failed]).members == ()


def test_nearest_misses_least() -> None:
    far, near, inside = trial(0, 1, 1, 9), trial(1, 0, 4, 6), trial(2, 0, 4, 5)
    assert nearest(PROBLEM, [far, near], count=1) == [near]
    assert nearest(PROBLEM, [far, near, inside]) == [inside, near, far]


def test_best_first_is_feasible_first() -> None:
    failed = dataclasses.replace(trial(3, 9, 0), outcome=Failed("lost"), state=TrialState.FAILED)
    worse, better, broken = trial(0, 0.5, 1), trial(1, 0.7, 1), trial(2, 0.9, 1, 8)
    assert best_first(PROBLEM, [failed, broken, worse, better]) == [better, worse, broken, failed]


@given(st.tuples(grid, grid, grid), st.tuples(grid, grid, grid))
def test_dominance_is_irreflexive_and_asymmetric(
    a: tuple[float, ...], b: tuple[float, ...]
) -> None:
    assert not dominates(a, a)
    assert not (dominates(a, b) and dominates(b, a))


def test_hypervolume_in_closed_form() -> None:
    assert hypervolume([(0.25,), (0.5,)], (1.0,)) == 0.75
    assert hypervolume([(0.0, 0.0)], (2.0, 3.0)) == 6.0
    # Three steps of a stair: 1x1 missing at each corner of a 3x3 square.
    assert hypervolume([(0, 2), (1, 1), (2, 0)], (3, 3)) == 1 + 2 + 3
    # Two boxes of 2x2x1 and 1x1x3 that share 1x1x1.
    assert hypervolume([(0, 0, 2), (1, 1, 0)], (2, 2, 3)) == 4 + 3 - 1
    # The simplex of n equally spaced steps under x + y = 1 tends to a half.
    stair = [(i / 200, 1 - i / 200) for i in range(201)]
    assert hypervolume(stair, (1.0, 1.0)) == pytest.approx(0.5, abs=0.003)
    assert hypervolume([], (1.0, 1.0)) == 0.0
    assert hypervolume([(2.0, 0.0), (1.0, 1.0)], (1.0, 1.0)) == 0.0


@pytest.mark.parametrize("m", [2, 3, 4])
def test_hypervolume_is_the_share_of_random_points_dominated(m: int) -> None:
    rng = np.random.default_rng(m)
    points = rng.random((12, m))
    at = rng.random((100_000, m))
    below = np.all(points[None] <= at[:, None], axis=2)
    share = float(np.mean(np.any(below, axis=1)))
    volume = hypervolume([tuple(p) for p in points.tolist()], (1.0,) * m)
    # Four standard errors of the share.
    assert volume == pytest.approx(share, abs=4 * math.sqrt(0.25 / len(at)))


@settings(max_examples=50)
@given(st.lists(st.tuples(grid, grid, grid), max_size=8), st.tuples(grid, grid, grid))
def test_hypervolume_grows_only_by_what_is_not_dominated(
    points: list[tuple[float, ...]], new: tuple[float, ...]
) -> None:
    reference = (4.0, 4.0, 4.0)
    before, after = hypervolume(points, reference), hypervolume([*points, new], reference)
    useless = any(p == new or dominates(p, new) for p in points) or max(new) >= 4
    assert after == before if useless else after > before
