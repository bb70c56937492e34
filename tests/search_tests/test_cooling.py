from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.cooling import SCHEDULES, Schedule, cooled
from search.errors import ProblemInvalid

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
