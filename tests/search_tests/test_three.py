from __future__ import annotations

import numpy as np

from search.arithmetic import as_points
from search.sampling import draw
from search.surrogate.features import Features
from search.surrogate.three import Three
from tests.synthetic import Net

NET = Net(d=12, multiple=1)
SPACE = NET.space
THREE = Three(NET.problem())


def test_uniform_points_have_no_slopes() -> None:
    points = as_points([SPACE.dense(), SPACE.uniform(0.5)], len(SPACE.knobs))
    np.testing.assert_allclose(
        THREE.coordinates(points), [[1, 0.5, 0.5], [0.5, 0.5, 0.5]], atol=1e-9
    )


def test_coordinates_lead_to_a_point_and_back() -> None:
    others = as_points([SPACE.dense()] * 3, len(SPACE.knobs))
    wanted = np.array([[0.5, 0.6, 0.5], [0.6, 0.5, 0.4], [0.4, 0.45, 0.55]])
    points = THREE.points(wanted, others)
    np.testing.assert_allclose(THREE.coordinates(points), wanted, atol=0.03)
    # The precision is left as it was.
    np.testing.assert_array_equal(points[:, -1], others[:, -1])


def test_a_depth_slope_keeps_more_at_the_end() -> None:
    others = as_points([SPACE.dense()], len(SPACE.knobs))
    decision = SPACE.decode(THREE.points(np.array([[0.5, 0.8, 0.5]]), others)[0].tolist())
    shares = [
        decision.prune_channels()[f"b{i}.conv1"].keep_channels / width
        for i, width in enumerate(NET.widths)
    ]
    assert shares == sorted(shares)
    assert shares[-1] - shares[0] > 0.5


def test_draws_and_moves_are_points_of_the_space() -> None:
    rng = np.random.default_rng(0)
    drawn = THREE.draw(rng, 50)
    moved = THREE.around(drawn[0], rng, 50, 0.03)
    counts = np.array([len(knob.choices) for knob in SPACE.knobs])
    for points in (drawn, moved):
        assert ((points >= 0) & (points < counts)).all()
        assert len(np.unique(points, axis=0)) > 20
    near = np.abs(THREE.coordinates(moved) - THREE.coordinates(drawn[:1])).max(axis=1)
    assert np.median(near) < 0.1


def test_surrogates_see_three_columns_and_the_other_knobs() -> None:
    points = draw(SPACE, np.random.default_rng(1), 7)
    table = Features(NET.problem(), THREE).decisions(points)
    assert table.shape == (7, 4)
    np.testing.assert_allclose(table[:, :3], THREE.coordinates(points))
