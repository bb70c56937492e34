from __future__ import annotations

import numpy as np
import pytest

from search.front import hypervolume
from search.one_thread import one_thread
from search.sampling import draw
from search.surrogate.beliefs import Beliefs, believe
from search.surrogate.features import Features
from search.surrogate.nehvi import log_gain, reference_point, undominated
from search.surrogate.observations import Observations
from tests.synthetic import LATENCY, TOP1, Net, latency_at_most, top1_at_least

NET = Net(d=4)


def fitted(count: int = 30) -> tuple[Beliefs, Observations]:
    problem = NET.problem((latency_at_most(0.7),), (TOP1, LATENCY))
    points = draw(problem.space, np.random.default_rng(0), count)
    measured = [NET.measurement(problem.space.decode(p.tolist())) for p in points]
    losses = np.array([problem.losses(m) for m in measured])
    violations = np.array([problem.violations(m) for m in measured])
    seen = Observations(points, losses, violations, np.ones(count, dtype=bool))
    features = Features(problem)
    return believe(problem, features, losses, seen, seen, max_iterations=15), seen


def test_the_gain_is_the_mean_of_what_draws_add_to_the_front() -> None:
    with one_thread():
        beliefs, seen = fitted()
        rng = np.random.default_rng(1)
        pool = draw(NET.space, rng, 16)
        keeps = seen.violations[:, 0] <= 0
        observed, reference = seen.points[keeps], np.array([-0.2, 2.0])
        limits = beliefs.limits(np.zeros(1))
        gain = np.exp(
            log_gain(
                beliefs, observed, seen.points[:0],
                limits=limits, reference=reference, seed=3,
            )(pool)
        )  # fmt: skip
        draws = beliefs.sample(np.vstack([observed, pool]), rng, 120)
    scale = beliefs.losses[0].scale
    expected = np.zeros(len(pool))
    floor = tuple(reference)
    for sample in draws:
        fits = sample[:, 2] <= limits[0]
        front = [tuple(row) for row in sample[: len(observed), :2][fits[: len(observed)]]]
        before = hypervolume(front, floor)
        for i in np.flatnonzero(fits[len(observed) :]):
            row = tuple(sample[len(observed) + i, :2])
            expected[i] += hypervolume([*front, row], floor) - before
    expected /= len(draws) * scale.prod()
    assert np.corrcoef(gain, expected)[0, 1] > 0.95
    large = expected > expected.max() / 3
    np.testing.assert_allclose(gain[large], expected[large], rtol=0.35)


def test_a_pending_point_is_worth_little_twice() -> None:
    with one_thread():
        beliefs, seen = fitted(20)
        pool = draw(NET.space, np.random.default_rng(2), 30)
        observed = seen.points[seen.violations[:, 0] <= 0]

        def gain(pending: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
            return log_gain(
                beliefs, observed, pool[best : best + pending],
                limits=beliefs.limits(np.zeros(1)), reference=np.array([-0.2, 2.0]), seed=3,
            )(pool)  # fmt: skip

        best = 0
        best = int(np.argmax(gain(0)))
        assert gain(1)[best] < gain(0)[best] - 1.0


def test_the_reference_is_the_bound_or_the_dense_model_or_the_worst() -> None:
    dense = NET.latency_ms(NET.space.decode(NET.space.dense()))
    losses = np.array([[-0.9, 0.4], [-0.5, 0.2]])
    free = NET.problem((), (TOP1, LATENCY))
    np.testing.assert_allclose(reference_point(free, losses), [-0.46, dense])
    bound = NET.problem((latency_at_most(0.7), top1_at_least(-0.2)), (TOP1, LATENCY))
    np.testing.assert_allclose(
        reference_point(bound, losses), [-(0.92 - 0.2), 0.7 * dense], rtol=1e-3
    )


@pytest.mark.parametrize(("most", "rows"), [(2, [0, 2]), (3, [0, 2, 3]), (9, [0, 1, 2, 3])])
def test_the_least_dominated_come_first(most: int, rows: list[int]) -> None:
    losses = np.array([[0.0, 3.0], [4.0, 4.0], [1.0, 1.0], [2.0, 2.0]])
    assert undominated(losses, most).tolist() == rows
