"""How every `workers.ledger.Ledger` begins a job warm; subclass with a fixture `ledger`."""

from __future__ import annotations

from compression.plan import Plan
from search.agent import Evaluate
from search.measurement import Infeasible, Measured
from search.trial import BASELINE_AGENT, MEMORY_AGENT, Fidelity, TrialState
from tests.contracts.ledger import finish, measurement, one, plan_of
from workers.ledger import Ledger
from workers.memory import Remembered


class WarmStartContract:
    """Every ledger keeps these."""

    def test_a_job_starts_with_what_other_jobs_know(self, ledger: Ledger) -> None:
        (dense,) = ledger.propose([Evaluate(plan=Plan())], agent=BASELINE_AGENT, snapshot=None)
        ledger.record(finish(dense, ledger.start(dense)))
        known = [
            Remembered(plan=plan_of(1), outcome=Measured(measurement(0.7))),
            Remembered(plan=plan_of(2), outcome=Infeasible("refused")),
            Remembered(plan=Plan(), outcome=Measured(measurement(0.1))),
        ]
        assert ledger.warm_start(known) == 2
        first, second = ledger.trials()[1:]
        assert {first.agent, second.agent} == {MEMORY_AGENT}
        assert {first.fidelity, second.fidelity} == {Fidelity.PROXY}
        assert [first.outcome, second.outcome] == [known[0].outcome, known[1].outcome]
        assert [first.state, second.state] == [TrialState.MEASURED, TrialState.INFEASIBLE]
        assert [(t.number, t.recorded) for t in (first, second)] == [(1, 1), (2, 2)]
        assert ledger.spent().trials == 0
        # A trial that is known already is not proposed again.
        assert one(ledger, 1) == first

    def test_a_job_starts_warm_once(self, ledger: Ledger) -> None:
        known = [Remembered(plan=plan_of(n), outcome=Infeasible("refused")) for n in (1, 2)]
        assert ledger.warm_start(known[:1]) == 1
        trials = list(ledger.trials())
        assert ledger.warm_start(known) == 0
        assert list(ledger.trials()) == trials

    def test_a_job_that_began_cold_goes_on_cold(self, ledger: Ledger) -> None:
        assert ledger.warm_start([]) == 0
        known = [Remembered(plan=plan_of(1), outcome=Infeasible("refused"))]
        assert ledger.warm_start(known) == 0
        assert list(ledger.trials()) == []

    def test_a_search_that_has_begun_is_not_told_of_more(self, ledger: Ledger) -> None:
        one(ledger, 1)
        known = [Remembered(plan=plan_of(2), outcome=Infeasible("refused"))]
        assert ledger.warm_start(known) == 0
        assert len(ledger.trials()) == 1
