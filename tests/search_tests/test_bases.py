from __future__ import annotations

from collections.abc import Sequence

from search.agent import Evaluate, Prepare, Request
from search.agents.cbo import Cbo, Options
from search.measurement import Measured
from search.problem import Problem
from search.trial import PREPARED_ROLE, Fidelity, Trial
from tests.synthetic import Loop, Net, latency_at_most, macs_at_most, wider

NET = Net(d=6, noise=0.02)
QUICK = Options(
    startup_trials=6, candidates=64, fit_iterations=5, steps=3, advance=True, advance_steps=50
)


def searched(fail: float = 0.0, budget: int = 24) -> tuple[Problem, Loop]:
    problem = NET.problem((latency_at_most(0.3), macs_at_most(0.5)), budget=budget, seed=1)
    loop = Loop(NET, Cbo(problem, QUICK), seed=1, fail=fail)
    loop.run(budget, q=2)
    return problem, loop


def preparations(loop: Loop) -> list[Trial]:
    return [t for t in loop.trials if t.preparation is not None]


def test_the_best_of_each_step_is_trained_and_gone_on_from() -> None:
    _, loop = searched()
    ordered = preparations(loop)
    # 6 trials of the design, then 18 in three steps: one preparation after each but the last.
    assert [t.number for t in ordered] == [12, 19]
    assert [t.preparation.options for t in ordered if t.preparation] == [{"steps": 50}] * 2
    artifacts = [t.artifacts[PREPARED_ROLE] for t in ordered]
    assert [t.base for t in ordered] == [None, artifacts[0]]
    used = [t.base for t in loop.evaluations]
    assert used == [None] * 12 + [artifacts[0]] * 6 + [artifacts[1]] * 6
    for trial in loop.evaluations:
        if trial.base is not None:
            assert not wider(trial.plan, loop.prepared[trial.base][1])
    assert all(t.plan.quantize() is None for t in ordered)


def test_what_is_trained_is_the_best_within_the_bounds_of_its_step() -> None:
    problem, loop = searched()
    (first, _) = preparations(loop)
    agent = loop.agent
    assert isinstance(agent, Cbo)
    slack = agent._cooling.slack(1)

    def rank(trial: Trial) -> tuple[float, float]:
        assert isinstance(trial.outcome, Measured)
        measured = trial.outcome.measurement
        violations = zip(problem.violations(measured), slack, strict=True)
        return sum(max(0.0, v - s) for v, s in violations), problem.losses(measured)[0]

    best = min(loop.evaluations[:12], key=rank)
    assert first.plan.prune_channels() == best.plan.prune_channels()


def test_a_failed_preparation_keeps_the_old_base() -> None:
    problem = NET.problem((latency_at_most(0.3),), budget=24, seed=1)
    agent = Cbo(problem, QUICK)
    loop = Loop(NET, agent, seed=1)
    while len(loop.evaluations) < 24:
        proposed = loop.propose(agent.ask(1))
        loop.fail = 1.0 if proposed[0].preparation else 0.0
        agent.tell([loop.evaluate(t) for t in proposed])
    assert {t.base for t in loop.evaluations} == {None}
    assert preparations(loop)


def test_it_waits_for_the_step_and_for_the_training() -> None:
    problem = NET.problem((latency_at_most(0.3),), budget=24, seed=1)
    agent = Cbo(problem, QUICK)
    loop = Loop(NET, agent, seed=1)
    first = loop.propose(_all(agent.ask(20), Evaluate))
    assert len(first) == 12
    assert agent.ask(1) == []
    agent.tell([loop.evaluate(t) for t in first])
    (order,) = loop.propose(_all(agent.ask(5), Prepare))
    assert order.fidelity is Fidelity.PREPARED
    assert agent.ask(5) == []
    agent.tell([loop.evaluate(order)])
    assert {r.base for r in _all(agent.ask(2), Evaluate)} == {loop.trials[12].artifacts["prepared"]}


def _all(requests: Sequence[Request], kind: type[Request]) -> Sequence[Request]:
    assert all(isinstance(request, kind) for request in requests)
    return requests
