from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from compression.artifact import Digest
from compression.layer_cost import LayerCost
from compression.plan import Plan
from search.agent import Evaluate, Prepare
from search.agents.metapruning import BROOD, LARGEST, Metapruning, Options
from search.catalogue import create
from search.errors import ProblemInvalid
from search.measurement import Measured
from search.problem import best_first
from search.trial import PREPARED_ROLE, Trial
from tests.contracts.agent import AgentContract
from tests.search_tests.rivalry import NET
from tests.synthetic import Loop, Net, artifact_of, latency_at_most, macs_at_most

SMALL = Net(d=4, multiple=4, selectors=("l1", "l2"))


class TestMetapruning(AgentContract):
    name = "metapruning"
    waits = True
    options = MappingProxyType({"population_size": 8})


def chosen(agent: str, seed: int) -> float:
    """Return what the best feasible plan is worth with the weights of the job's model."""
    problem = NET.problem([macs_at_most(0.4)], budget=100, seed=seed)
    trials = Loop(NET, create(agent, problem, {}), seed=seed).run(100)
    best = best_first(problem, trials)[0]
    assert _feasible(problem, best)
    return NET.top1(best.plan)


@pytest.mark.slow
def test_learns() -> None:
    # Its scores come from shared weights, which feel all damage more; the rivals' do not.
    means = {
        agent: np.mean([chosen(agent, seed) for seed in range(4)])
        for agent in ("metapruning", "random", "uniform")
    }
    assert means["metapruning"] > means["random"]
    assert means["metapruning"] > means["uniform"] + 0.02


def test_the_training_comes_first_and_everything_is_scored_from_it() -> None:
    problem = SMALL.problem([macs_at_most(0.5)], budget=40)
    agent = create("metapruning", problem, {"learning_rate": 0.1})
    loop = Loop(SMALL, agent)
    (order,) = agent.ask(3)
    assert isinstance(order, Prepare)
    assert order.kind == "pruning_net"
    assert order.base is None
    assert not order.plan.decisions
    assert order.options["steps"] == 600
    assert order.options["learning_rate"] == 0.1
    assert order.options["choices"] == {
        knob.site: list(knob.choices) for knob in SMALL.space.knobs if knob.field == "keep_channels"
    }
    (trial,) = loop.propose([order])
    assert agent.ask(3) == []
    agent.tell([loop.evaluate(trial)])
    requests = agent.ask(3)
    assert len(requests) == 3
    assert {r.base for r in requests if isinstance(r, Evaluate)} == {artifact_of(trial)}


@pytest.mark.parametrize("luck", [{"fail": 1.0}, {"refuse": 1.0}])
def test_a_failed_training_leaves_the_weights_of_the_model(luck: dict[str, Any]) -> None:
    problem = SMALL.problem([macs_at_most(0.5)])
    agent = create("metapruning", problem, {})
    failing = Loop(SMALL, agent, **luck)
    agent.tell([failing.evaluate(t) for t in failing.propose(agent.ask(1))])
    rest = Loop(SMALL, agent, trials=failing.trials).run(12)
    assert len(rest) == 12
    assert {t.base for t in rest} == {None}
    assert all(t.preparation is None for t in rest)


def test_a_training_that_somebody_else_ordered_is_not_ordered_again() -> None:
    problem = SMALL.problem()
    agent, other = (create("metapruning", problem, {}) for _ in range(2))
    loop = Loop(SMALL, other)
    done = [loop.evaluate(t) for t in loop.propose(other.ask(1))]
    agent.tell(done)
    (request,) = agent.ask(1)
    assert isinstance(request, Evaluate)
    assert request.base == artifact_of(done[0])


def test_the_training_may_be_told_last() -> None:
    problem = SMALL.problem(seed=2)
    loop = Loop(SMALL, create("metapruning", problem, {}))
    loop.run(14)
    rebuilt = create("metapruning", problem, {})
    before: dict[str, Any] = {"version": 1, "asked": 14, "ordered": True, "settled": False}
    snapshot = loop.agent.snapshot()
    rebuilt.restore(dataclasses.replace(snapshot, data={**before, "base": None}))
    for trial in reversed(loop.trials):
        rebuilt.tell([trial])
    rebuilt_next = [r.plan.digest for r in rebuilt.ask(2)]
    assert rebuilt_next == [r.plan.digest for r in loop.agent.ask(2)]


def test_every_plan_keeps_the_bounds_that_arithmetic_decides() -> None:
    problem = NET.problem([macs_at_most(0.25)], budget=60)
    trials = Loop(NET, create("metapruning", problem, {})).run(60)
    assert all(problem.arithmetic_violation(t.plan) == 0 for t in trials)


def test_parents_are_the_best_of_those_that_hold_the_measured_bounds() -> None:
    problem = NET.problem([latency_at_most(0.4)], budget=40)
    agent = Metapruning(problem, Options(parents=5))
    loop = Loop(NET, agent)
    trials = loop.run(30)
    measured = [t for t in trials if isinstance(t.outcome, Measured)]
    wanted = [problem.space.encode(t.plan) for t in best_first(problem, measured)[:5]]
    assert agent._best() == wanted
    assert _feasible(problem, best_first(problem, measured)[0])


def _feasible(problem: Any, trial: Trial) -> bool:
    return isinstance(trial.outcome, Measured) and problem.feasible(trial.outcome.measurement)


def test_mutants_change_each_gene_now_and_then_and_never_into_itself() -> None:
    problem = SMALL.problem()
    agent = Metapruning(problem, Options(mutation_probability=0.1))
    parent = problem.space.uniform(0.5)
    rng = np.random.default_rng(0)
    children = np.concatenate([agent.mutants([parent], rng) for _ in range(60)])
    sizes = np.array([len(k.choices) for k in problem.space.knobs])
    genes = np.array([k.field != "selector" and len(k.choices) > 1 for k in problem.space.knobs])
    assert ((children >= 0) & (children < sizes)).all()
    changed = (children != np.array(parent)).mean(axis=0)
    np.testing.assert_allclose(changed[genes], 0.1, atol=0.02)
    assert (changed[~genes] == 0).all()
    # Every other choice is as likely as any.
    column = int(np.flatnonzero(genes & (sizes > 3))[0])
    moved = children[children[:, column] != parent[column], column]
    counts = np.bincount(moved, minlength=sizes[column])
    assert counts[parent[column]] == 0
    others = np.delete(counts, parent[column])
    assert others.min() > 0.5 * others.mean()
    always = Metapruning(problem, Options(mutation_probability=1.0)).mutants([parent], rng)
    assert (always[:, genes] != np.array(parent)[genes]).all()


def test_crossovers_take_every_gene_of_one_of_two_different_parents() -> None:
    problem = NET.problem()
    agent = Metapruning(problem, Options())
    low, high = problem.space.smallest(), problem.space.dense()
    rng = np.random.default_rng(0)
    children = agent.crossovers([low, high], rng)
    assert children.shape == (BROOD, len(problem.space.knobs))
    assert ((children == np.array(low)) | (children == np.array(high))).all()
    differ = np.array(low) != np.array(high)
    shares = (children == np.array(high))[:, differ].mean()
    assert 0.4 < shares < 0.6
    # With a third parent only two of the three meet in one child.
    third = problem.space.uniform(0.5)
    for child in agent.crossovers([low, high, third], rng):
        sources = [
            {number for number, gene in enumerate(child) if gene == parent[number]}
            for parent in (low, high, third)
        ]
        everything = set(range(len(child)))
        assert any(
            one | other == everything for i, one in enumerate(sources) for other in sources[i + 1 :]
        )


def test_children_are_grown_only_where_arithmetic_decides_every_bound() -> None:
    free = NET.problem([macs_at_most(0.4)], budget=60)
    timed = NET.problem([macs_at_most(0.4), latency_at_most(0.2)], budget=60)
    shares = {}
    for name, problem in (("free", free), ("timed", timed)):
        trials = Loop(NET, create("metapruning", problem, {})).run(60)[20:]
        macs = [problem.costs.cost(t.plan).macs for t in trials]
        shares[name] = np.mean(macs) / problem.costs.cost(Plan()).macs
    assert 0.36 < shares["free"] <= 0.4
    assert shares["timed"] < shares["free"] - 0.05


def test_numbers_follow_the_budget() -> None:
    def made(budget: int | None) -> Metapruning:
        return Metapruning(SMALL.problem(budget=budget), Options())

    assert [made(b).population_size for b in (12, 36, 60, 1000, None)] == [8, 12, 20, 20, 20]
    assert [made(b).parents for b in (12, 60, 1000)] == [4, 4, 4]
    steps = [made(b).order.options["steps"] for b in (10, 40, 1000, None)]  # type: ignore[union-attr]
    assert steps == [300, 600, 1500, 1500]


def test_large_models_share_weights() -> None:
    problem = SMALL.problem()
    fixed = LayerCost(
        name="(other)", op="fixed", in_channels=0, out_channels=0, fixed_params=LARGEST
    )
    costs = dataclasses.replace(problem.costs, layers=(*problem.costs.layers, fixed))
    large = dataclasses.replace(problem, costs=costs)
    kinds = [
        Metapruning(given, options).order.kind  # type: ignore[union-attr]
        for given in (problem, large)
        for options in (Options(), Options(generator="pruning_net"), Options(generator="supernet"))
    ]
    assert kinds[:3] == ["pruning_net", "pruning_net", "supernet"]
    assert kinds[3:] == ["supernet", "pruning_net", "supernet"]


def test_a_space_without_widths_needs_no_training() -> None:
    problem = SMALL.problem()
    space = dataclasses.replace(
        problem.space,
        knobs=tuple(k for k in problem.space.knobs if k.field not in ("keep_channels", "selector")),
    )
    agent = Metapruning(dataclasses.replace(problem, space=space), Options())
    assert agent.order is None
    assert [type(r) for r in agent.ask(1)] == [Evaluate]


def test_what_a_training_leaves_is_named_by_its_role() -> None:
    problem = SMALL.problem()
    agent = Metapruning(problem, Options())
    loop = Loop(SMALL, agent)
    done = loop.evaluate(loop.propose(agent.ask(1))[0])
    agent.tell([dataclasses.replace(done, artifacts={PREPARED_ROLE: Digest("ab" * 32)})])
    assert {r.base for r in agent.ask(2)} == {Digest("ab" * 32)}


@pytest.mark.parametrize(
    "options",
    [
        {"generator": "oracle"},
        {"steps": 0},
        {"learning_rate": 0.0},
        {"population_size": 1},
        {"parents": 1},
        {"mutation_probability": 0.0},
    ],
)
def test_refuses_an_option_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ProblemInvalid, match=next(iter(options))):
        Options(**options)
