from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.cooling import SCHEDULES, Cooling, Schedule, cooled
from search.errors import ProblemInvalid
from tests.synthetic import Net, latency_at_most, macs_at_most, top1_at_least

GOLDEN = {
    "exponential": [162.9, 125.2, 102.3, 88.4, 80.0],
    "linear": [206.4, 174.8, 143.2, 111.6, 80.0],
    "one_step": [80.0] * 5,
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_golden_vectors(schedule: Schedule) -> None:
    bounds = [cooled(schedule, 238, 80, step=t, steps=5, rate=0.5) for t in range(1, 6)]
    assert [round(bound, 1) for bound in bounds] == GOLDEN[schedule]


@given(
    st.sampled_from(SCHEDULES),
    st.floats(-1e6, 1e6),
    st.floats(-1e6, 1e6),
    st.integers(1, 12),
    st.floats(0.01, 5),
)
def test_ends_at_the_target_and_never_loosens(
    schedule: Schedule, start: float, target: float, steps: int, rate: float
) -> None:
    bounds = [
        cooled(schedule, start, target, step=t, steps=steps, rate=rate) for t in range(1, steps + 3)
    ]
    assert bounds[steps - 1] == bounds[steps] == bounds[-1] == target
    distances = [abs(bound - target) for bound in bounds]
    assert all(b <= a for a, b in itertools.pairwise(distances))
    assert distances[0] <= abs(start - target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "quadratic"}, "quadratic"),
        ({"step": 0}, "step 0 of 5"),
        ({"steps": 0}, "step 1 of 0"),
        ({"rate": 0.0}, "rate is 0"),
    ],
)
def test_refuses_what_is_out_of_range(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"schedule": "linear", "step": 1, "steps": 5, "rate": 0.5}
    arguments |= change
    schedule = arguments.pop("schedule")
    with pytest.raises(ProblemInvalid, match=message):
        cooled(schedule, 2.0, 1.0, **arguments)  # type: ignore[arg-type]


def test_bounds_cool_from_the_dense_value_to_the_target() -> None:
    problem = Net(d=4).problem([latency_at_most(0.5), macs_at_most(0.25), top1_at_least(-0.02)])
    cooling = Cooling(problem, "exponential", steps=5, rate=0.5, startup=10, share=0.4)
    # 50 trials after the design, 20 of them in 4 loose steps.
    assert [cooling.step(asked) for asked in (0, 9, 10, 14, 15, 25, 29, 30, 59)] == [
        1, 1, 1, 1, 2, 4, 4, 5, 5,
    ]  # fmt: skip
    # A latency of at most half is missed by (1 - 0.5) / 0.5 = 1, MACs by 3, the floor not at all.
    heat = np.exp(-0.5) - np.exp(-2.5)
    np.testing.assert_allclose(cooling.slack(1), [heat, 3 * heat, 0.0])
    np.testing.assert_array_equal(cooling.slack(5), [0.0, 0.0, 0.0])


def test_without_loose_trials_the_target_follows_the_design() -> None:
    problem = Net().problem((macs_at_most(0.5),), budget=30)
    cooling = Cooling(problem, "linear", steps=5, rate=0.5, startup=4, share=0.0)
    assert [cooling.step(asked) for asked in (0, 3, 4, 29)] == [1, 1, 5, 5]
