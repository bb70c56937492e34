from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from compression.cost import CostTable
from compression.layer_cost import LayerCost
from compression.methods import Methods, resolve_space
from compression.space import Knob, PlanSpace, Point
from search.agent import Evaluate
from search.agents.amc import Amc, Options, Warmup
from search.catalogue import create
from search.errors import ProblemInvalid
from search.history import History
from search.objective import Objective
from search.problem import Problem
from tests.builders import surveyed_resnet
from tests.contracts.agent import AgentContract, digests, snapshot_from_text, snapshot_to_text
from tests.synthetic import Loop, Net, download_at_most, latency_at_most, macs_at_most

PAPER = MappingProxyType(
    {
        "warmup": "uniform",
        "catch_up": 0,
        "actor_lr": 1e-4,
        "one_hot": False,
        "clamp": "sequential",
        "store": "raw",
    }
)


class TestAmc(AgentContract):
    name = "amc"
    options = MappingProxyType({"warmup_trials": 6, "catch_up": 8})


@pytest.mark.parametrize("options", [PAPER, {"bits": True}, {"warmup": "centred"}])
def test_rebuilt_from_snapshot_and_trials_it_continues(options: dict[str, object]) -> None:
    net = Net(d=4, noise=0.02)
    problem = net.problem([macs_at_most(0.5), latency_at_most(0.4)], budget=12)
    given = {"warmup_trials": 4, **options}
    loop = Loop(net, create("amc", problem, given))
    loop.run(7)
    rebuilt = create("amc", problem, given)
    rebuilt.restore(snapshot_from_text(snapshot_to_text(loop.agent.snapshot())))
    rebuilt.tell(loop.trials[::-1])
    assert digests(rebuilt.ask(2)) == digests(loop.agent.ask(2))


@pytest.mark.slow
def test_it_learns_where_accuracy_is_lost() -> None:
    net = Net(d=9, quantize=False)
    problem = net.problem([macs_at_most(0.5)], budget=60)
    trials = Loop(net, create("amc", problem, {"warmup": "uniform"})).run(60)
    top1 = np.array([net.top1(trial.plan) for trial in trials])
    # The first twenty are drawn at random; the noise of the last twenty is small.
    assert top1[-20:].mean() > top1[:20].mean() + 0.15


def test_episodes_keep_a_budget_without_repair_under_the_papers_clamp() -> None:
    _, survey = surveyed_resnet(20)
    space = resolve_space(
        survey.sites, Methods(allow=("prune_channels",), channel_multiple=2), survey.costs
    )
    base = Net().problem([macs_at_most(0.5)])
    problem = dataclasses.replace(base, space=space, costs=survey.costs)
    problem = dataclasses.replace(problem, baseline=problem.arithmetic(space.decode(space.dense())))
    agent = Amc(problem, Options(clamp="sequential"))
    rng = np.random.default_rng(0)
    for _ in range(40):
        point, raw = agent._episode((), None, 0.0, rng)
        assert problem.arithmetic_violation(space.decode(point)) == 0
        # The first width has all the budget, so it is the wish, or the floor.
        widths = np.array(space.knobs[0].choices) / space.knobs[0].choices[-1]
        nearest = int(np.argmin(np.abs(widths - raw[0])))
        assert point[0] == max(nearest, int(np.argmax(widths >= 0.2)))


def test_bits_are_lowered_in_turn_until_the_predicted_size_fits() -> None:
    layers = [LayerCost(name=n, op="conv", in_channels=8, out_channels=8, kernel=9) for n in "abc"]
    bits = ("none", "8", "4", "2")
    space = PlanSpace(
        tuple(Knob(site=n, field="quantize_weights", choices=bits, ordered=True) for n in "abc")
    )
    for at_most, lowered in ((1.1, (0, 0, 0)), (0.8, (1, 0, 0)), (0.3, (2, 1, 1))):
        base = Net().problem([download_at_most(at_most)])
        problem = dataclasses.replace(base, space=space, costs=CostTable(tuple(layers), {}))
        agent = Amc(problem, Options(bits=True))
        assert agent._fitting.fitted(space.dense(), History(problem)) == lowered


def test_walks_grow_to_the_budget_where_only_accuracy_is_sought() -> None:
    net = Net(d=9, quantize=False)
    small = net.problem([macs_at_most(0.5)]).space.smallest()

    def fitted(problem: Problem, **options: Any) -> Point:
        return Amc(problem, Options(**options))._fitting.fitted(small, History(problem))

    bound = [macs_at_most(0.5)]
    grown = fitted(net.problem(bound))
    problem = net.problem(bound)
    assert 0.4 < share_of_macs(problem, grown) <= 0.5
    # Measured bounds that are expected to fail leave the walk as it is, as do the paper's
    # clamp and a reward of small sizes.
    assert fitted(net.problem([*bound, latency_at_most(0.05)])) == small
    assert fitted(problem, clamp="sequential") == small
    assert fitted(problem, mode="guarantee") == small
    # A front wants small members, too.
    objectives = (*problem.objectives, Objective(metric="macs", direction="minimize"))
    assert fitted(dataclasses.replace(problem, objectives=objectives)) == small


def share_of_macs(problem: Problem, point: Point) -> float:
    """Return the MACs of a point over those of the dense model."""
    found = problem.arithmetic(problem.space.decode(point)).get("macs")
    dense = problem.baseline.get("macs")
    assert found is not None
    assert dense is not None
    return found.value / dense.value


def test_every_other_episode_of_the_warmup_stays_near_one_keep_ratio() -> None:
    _, survey = surveyed_resnet(20)
    methods = Methods(allow=("prune_channels",), channel_multiple=1)
    space = resolve_space(survey.sites, methods, survey.costs)
    base = Net().problem([macs_at_most(0.5)])
    problem = dataclasses.replace(base, space=space, costs=survey.costs)
    problem = dataclasses.replace(problem, baseline=problem.arithmetic(space.decode(space.dense())))

    channels = {site.name: site.channels for site in survey.sites}

    def spreads(warmup: Warmup) -> Sequence[float]:
        agent = Amc(problem, Options(warmup=warmup, warmup_trials=20))
        plans = [request.plan for request in agent.ask(20) if isinstance(request, Evaluate)]
        shares = [
            [kept.keep_channels / channels[name] for name, kept in plan.prune_channels().items()]
            for plan in plans
        ]
        return [float(np.std(row)) for row in shares]

    mixed = spreads("mixed")
    # The first has all that the bounds allow.
    assert mixed[0] < 0.05
    assert np.mean(mixed[2::2]) > np.mean(mixed[1::2]) + 0.02
    assert np.mean(spreads("uniform")[1::2]) > np.mean(mixed[1::2]) + 0.02


def test_settings_of_the_model_are_compared_with_the_same_widths_first() -> None:
    net = Net(d=4)
    problem = net.problem([latency_at_most(0.5)], budget=60)
    agent = Amc(problem, Options())
    loop = Loop(net, agent)
    loop.run(4)
    plans = [trial.plan for trial in loop.trials]
    for one, other in (plans[:2], plans[2:]):
        assert one.quantize() is None
        assert other.quantize() is not None
        assert one.prune_channels() == other.prune_channels()
    # A precision alone may hold the bounds.
    assert not plans[1].prune_channels()
    assert plans[3].prune_channels()
    # INT8 halves the latency for 0.02 of damage.
    assert agent._best_setting() == (1,)
    assert all(request.plan.quantize() is not None for request in agent.ask(6))


def test_the_warmup_is_a_third_of_the_budget_at_most() -> None:
    net = Net(d=4)
    assert Amc(net.problem(budget=60), Options())._warmup == 20
    assert Amc(net.problem(budget=900), Options())._warmup == 100
    assert Amc(net.problem(budget=None), Options())._warmup == 20
    assert Amc(net.problem(budget=60), Options(warmup_trials=7))._warmup == 7


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "both"},
        {"size": "bytes"},
        {"clamp": "none"},
        {"warmup": "cold"},
        {"store": "both"},
        {"lbound": 0.0},
        {"noise_decay": 1.5},
        {"noise": 0.0},
        {"actor_lr": 0.0},
        {"critic_lr": -1.0},
        {"penalty": -0.1},
        {"warmup_trials": 0},
        {"updates": 0},
        {"catch_up": -1},
        {"replay_episodes": 0},
    ],
)
def test_refuses_an_option_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(ProblemInvalid, match=next(iter(options))):
        Options(**options)  # type: ignore[arg-type]
