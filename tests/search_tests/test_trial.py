from __future__ import annotations

import itertools

import pytest

from search.errors import IllegalTransition
from search.measurement import Failed, Infeasible, Measured, Measurement
from search.trial import FINISHED, LEGAL, TrialState, check_transition, state_of

S = TrialState
ALLOWED = {
    (S.PROPOSED, S.RUNNING),
    (S.PROPOSED, S.CANCELLED),
    (S.PROPOSED, S.FAILED),
    (S.RUNNING, S.PROPOSED),
    (S.RUNNING, S.MEASURED),
    (S.RUNNING, S.INFEASIBLE),
    (S.RUNNING, S.FAILED),
    (S.RUNNING, S.CANCELLED),
}


@pytest.mark.parametrize(("before", "after"), list(itertools.product(S, S)))
def test_only_the_legal_moves_are_allowed(before: TrialState, after: TrialState) -> None:
    if (before, after) in ALLOWED:
        check_transition(before, after)
        assert after in LEGAL[before]
    else:
        with pytest.raises(IllegalTransition, match=f"{before} trial cannot become {after}"):
            check_transition(before, after)


def test_finished_states_are_final_and_can_be_reached() -> None:
    assert frozenset({S.MEASURED, S.INFEASIBLE, S.FAILED, S.CANCELLED}) == FINISHED
    reachable = {S.PROPOSED}
    for _ in S:
        reachable |= {after for state in reachable for after in LEGAL[state]}
    assert reachable == set(S)


def test_every_outcome_has_its_state() -> None:
    assert state_of(Measured(Measurement(()))) is S.MEASURED
    assert state_of(Infeasible("no")) is S.INFEASIBLE
    assert state_of(Failed("broken")) is S.FAILED
