from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search.amc.ddpg import Ddpg, Hyper, Transitions, target
from search.amc.exploration import sigma, truncated_normal
from search.amc.learner import Learner, Schedule, transitions
from search.amc.state import Episode, Walked


def test_noise_decays_after_the_warmup() -> None:
    assert sigma(0.5, 0.95, 20, 20) == 0.5
    assert sigma(0.5, 0.95, 3, 20) == 0.5
    assert sigma(0.5, 0.95, 30, 20) == pytest.approx(0.5 * 0.95**10)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1), st.floats(0, 2), st.integers(0, 10_000))
def test_noisy_actions_stay_in_the_unit_interval(mean: float, deviation: float, seed: int) -> None:
    drawn = truncated_normal(mean, deviation, np.random.default_rng(seed))
    assert 0 <= drawn <= 1


def test_noisy_actions_have_the_moments_of_the_cut_distribution() -> None:
    from scipy.stats import truncnorm

    rng = np.random.default_rng(0)
    draws = np.array([truncated_normal(0.8, 0.3, rng) for _ in range(8000)])
    exact = truncnorm((0 - 0.8) / 0.3, (1 - 0.8) / 0.3, loc=0.8, scale=0.3)
    assert draws.mean() == pytest.approx(exact.mean(), abs=0.01)
    assert draws.std() == pytest.approx(exact.std(), abs=0.01)


def test_the_critics_target() -> None:
    rewards = torch.tensor([[-0.3], [-0.5]])
    following = torch.tensor([[0.2], [0.9]])
    ended = torch.tensor([[0.0], [1.0]])
    wanted = target(rewards, -0.4, 1.0, following, ended)
    torch.testing.assert_close(wanted, torch.tensor([[0.3], [-0.1]]))


def batch(seed: int, features: int = 11) -> Transitions:
    generator = torch.Generator().manual_seed(seed)
    shapes = (features, 1, 1, features, 1)
    return Transitions(*(torch.rand(64, n, generator=generator) for n in shapes))


def test_the_baseline_is_a_moving_average_of_batch_rewards() -> None:
    net = Ddpg(11, Hyper(hidden=8), seed=0)
    batches = [batch(seed) for seed in range(3)]
    for one in batches:
        net.update(one)
    first, second, third = (float(b.rewards.mean()) for b in batches)
    expected = 0.5 * (0.5 * (first + second) + third)
    assert net.baseline == pytest.approx(expected)


def test_networks_have_the_papers_sizes_and_leave_global_seeds_alone() -> None:
    before = torch.random.get_rng_state()
    net = Ddpg(11, Hyper(), seed=0)
    net.update(batch(0))
    assert torch.equal(before, torch.random.get_rng_state())
    assert [tuple(p.shape) for p in net.actor.parameters()] == [
        (300, 11), (300,), (300, 300), (300,), (1, 300), (1,),
    ]  # fmt: skip
    assert [tuple(p.shape) for p in net.critic.parameters()] == [
        (300, 11), (300,), (300, 1), (300,), (300, 300), (300,), (1, 300), (1,),
    ]  # fmt: skip


def test_slow_copies_follow_by_tau() -> None:
    net = Ddpg(11, Hyper(hidden=8), seed=0)
    old = [p.clone() for p in net._slow_actor.parameters()]
    net.update(batch(0))
    for before, slow, fast in zip(
        old, net._slow_actor.parameters(), net.actor.parameters(), strict=True
    ):
        torch.testing.assert_close(slow.data, 0.99 * before + 0.01 * fast.data)


def test_a_copy_continues_like_its_original() -> None:
    net = Ddpg(11, Hyper(hidden=16), seed=0)
    net.update(batch(0))
    twin = copy.deepcopy(net)
    for one in (net, twin):
        one.update(batch(1))
    state = np.linspace(0, 1, 11)
    assert net.act(state) == twin.act(state)


def test_the_actor_finds_the_best_action_of_a_bandit() -> None:
    net = Ddpg(1, Hyper(hidden=32, actor_lr=1e-3), seed=0)
    rng = np.random.default_rng(0)
    for _ in range(600):
        actions = torch.from_numpy(rng.random((64, 1)).astype(np.float32))
        ones = torch.ones(64, 1)
        net.update(Transitions(ones, actions, -((actions - 0.7) ** 2), ones, ones))
    assert net.act(np.ones(1)) == pytest.approx(0.7, abs=0.1)


def episode(number: int, steps: int = 3) -> Episode:
    rng = np.random.default_rng(number)
    return Episode(
        f"trl_{number}", Walked(rng.random((steps, 4)), rng.random(steps)), -rng.random()
    )


def learner() -> Learner:
    schedule = Schedule(warmup=3, replay=5, updates=1)
    return Learner(4, Hyper(hidden=8), schedule, 0, lambda e: np.random.default_rng([1, e]))


def test_every_step_of_an_episode_has_its_final_reward() -> None:
    rows = transitions([episode(0, 2), episode(1, 3)])
    assert rows.ended[:, 0].tolist() == [0, 1, 0, 0, 1]
    rewards = [episode(0, 2).reward] * 2 + [episode(1, 3).reward] * 3
    np.testing.assert_allclose(rows.rewards[:, 0].numpy(), rewards, rtol=1e-6)
    torch.testing.assert_close(rows.following[2], rows.states[3])


def test_a_late_episode_is_learned_from_in_its_place() -> None:
    episodes = [episode(n) for n in range(12)]
    living, rebuilt = learner(), learner()
    state = np.linspace(0, 1, 4)
    for count in range(1, 10):
        living.policy([e for e in episodes[:count] if e.key != "trl_6"])
    assert living.trained == 3 * 5  # three steps each of 3, 4, 5, 7, 8
    assert living.policy(episodes[:10]).act(state) == rebuilt.policy(episodes[:10]).act(state)
    assert rebuilt.trained == 3 * 7
    # Ranks 6 and up were new or moved; the copies before the gap, one or two back, served.
    assert living.trained <= 3 * (5 + 4 + 2)


def test_the_warmup_trains_nothing() -> None:
    living = learner()
    state = np.linspace(0, 1, 4)
    first = living.policy([]).act(state)
    assert living.policy([episode(n) for n in range(3)]).act(state) == first
    assert living.trained == 0
    assert living.policy([episode(n) for n in range(4)]).act(state) != first


def test_the_warmup_is_learned_from_at_its_end_where_wished() -> None:
    schedule = Schedule(warmup=3, replay=5, updates=1, catch_up=7)
    early = Learner(4, Hyper(hidden=8), schedule, 0, lambda e: np.random.default_rng([1, e]))
    early.policy([episode(n) for n in range(2)])
    assert early.trained == 0
    early.policy([episode(n) for n in range(4)])
    assert early.trained == 7 + 3


def test_few_copies_are_kept() -> None:
    living = learner()
    for count in range(80):
        living.policy([episode(n, 1) for n in range(count)])
    assert living.trained == 76
    assert len(living._copies) <= 16
