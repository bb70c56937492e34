from __future__ import annotations

from typing import Any

import pytest

from search.budget import Budget, Spent


@pytest.mark.parametrize("limit", ["trials", "wall_s", "device_s"])
def test_any_limit_ends_it(limit: str) -> None:
    limits: dict[str, Any] = {limit: 10}
    budget = Budget(**limits)
    assert not budget.exhausted(Spent(**{limit: 9}))
    assert budget.exhausted(Spent(**{limit: 10}))
    assert budget.exhausted(Spent(**{limit: 11}))


def test_other_spending_does_not_count() -> None:
    assert not Budget(trials=10).exhausted(Spent(trials=9, wall_s=1e9, device_s=1e9))
    assert not Budget().exhausted(Spent(trials=10**9, wall_s=1e9, device_s=1e9))


def test_trials_left_is_never_negative() -> None:
    assert Budget(trials=10).trials_left(4) == 6
    assert Budget(trials=10).trials_left(12) == 0
    assert Budget(wall_s=5).trials_left(10**6) > 10**8
