"""Deep deterministic policy gradients with AMC's networks and constants.

Reference:
    T. Lillicrap et al.: Continuous control with deep reinforcement learning, ICLR 2016; as set up
    in Y. He et al.: AMC, ECCV 2018 (two hidden layers, a reward baseline, no discount).

Everything is float32 on one thread and drawn from generators that are passed in: a learner is a
function of its seed and of what it was trained on.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search.one_thread import one_thread

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hyper:
    """Constants of the learner; the defaults are those of AMC.

    Attributes:
        hidden: Units of each of the two hidden layers.
        actor_lr: Adam's step of the actor.
        critic_lr: Adam's step of the critic.
        tau: Share by which the target networks follow per update.
        discount: gamma.
        batch: Transitions per update.
        baseline_rate: alpha of the moving average of batch rewards.
    """

    hidden: int = 300
    actor_lr: float = 1e-4
    critic_lr: float = 1e-3
    tau: float = 0.01
    discount: float = 1.0
    batch: int = 64
    baseline_rate: float = 0.5


@dataclasses.dataclass(frozen=True, slots=True)
class Transitions:
    """A batch of `n` steps of episodes.

    Attributes:
        states: `n x f` float32.
        actions: `n x 1` in [0, 1].
        rewards: `n x 1`: each step of an episode has the episode's reward.
        following: `n x f`: the next states; anything where the episode ended.
        ended: `n x 1`: 1 at the last step of an episode, else 0.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    following: Tensor
    ended: Tensor

    def rows(self, index: NDArray[np.int64]) -> Transitions:
        """Return some of the steps."""
        at = torch.from_numpy(index)
        return Transitions(
            self.states[at],
            self.actions[at],
            self.rewards[at],
            self.following[at],
            self.ended[at],
        )


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """Return a layer with uniform weights within 1 / sqrt(inputs), from the given generator."""
    # The usual constructor draws from torch's global generator, but not for tensors without data.
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    reach = float(inputs) ** -0.5
    with torch.no_grad():
        layer.weight.uniform_(-reach, reach, generator=generator)
        layer.bias.uniform_(-reach, reach, generator=generator)
    return layer


class Actor(nn.Module):
    """State to action: two hidden layers, then a sigmoid."""

    def __init__(self, features: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.first = _linear(features, hidden, generator)
        self.second = _linear(hidden, hidden, generator)
        self.out = _linear(hidden, 1, generator)

    def forward(self, states: Tensor) -> Tensor:
        """Return `n x 1` actions in (0, 1) for `n x f` states."""
        hidden = torch.relu(self.second(torch.relu(self.first(states))))
        return torch.sigmoid(self.out(hidden))


class Critic(nn.Module):
    """State and action to value: embedded apart, added, then one more hidden layer."""

    def __init__(self, features: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.of_state = _linear(features, hidden, generator)
        self.of_action = _linear(1, hidden, generator)
        self.second = _linear(hidden, hidden, generator)
        self.out = _linear(hidden, 1, generator)

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        """Return `n x 1` values."""
        first = torch.relu(self.of_state(states) + self.of_action(actions))
        value: Tensor = self.out(torch.relu(self.second(first)))
        return value


def target(
    rewards: Tensor, baseline: float, discount: float, following: Tensor, ended: Tensor
) -> Tensor:
    """Return what the critic should say: (R - b) + gamma * Q'(s', mu'(s')) * (1 - ended)."""
    return rewards - baseline + discount * following * (1 - ended)


class Ddpg:
    """Actor, critic, their slow copies, and the moving average of rewards.

    Attributes:
        baseline: b, the moving average of batch-mean rewards; None before the first update.
    """

    def __init__(self, features: int, hyper: Hyper, seed: int) -> None:
        """Draw the weights.

        Args:
            features: Numbers per state.
            hyper: Constants.
            seed: Of the weights.
        """
        self._hyper = hyper
        generator = torch.Generator().manual_seed(seed)
        self.actor = Actor(features, hyper.hidden, generator)
        self.critic = Critic(features, hyper.hidden, generator)
        copies = torch.Generator().manual_seed(seed)
        self._slow_actor = Actor(features, hyper.hidden, copies).requires_grad_(False)
        self._slow_critic = Critic(features, hyper.hidden, copies).requires_grad_(False)
        self._actor_step = torch.optim.Adam(self.actor.parameters(), hyper.actor_lr, fused=True)
        self._critic_step = torch.optim.Adam(self.critic.parameters(), hyper.critic_lr, fused=True)
        self.baseline: float | None = None

    def act(self, state: Floats) -> float:
        """Return the action in (0, 1) that the actor takes in a state of `f` numbers."""
        with one_thread(), torch.no_grad():
            return float(self.actor(torch.from_numpy(state.astype(np.float32))[None]))

    def update(self, batch: Transitions) -> None:
        """Make one step of critic, actor and slow copies."""
        hyper = self._hyper
        mean = float(batch.rewards.mean())
        before = mean if self.baseline is None else self.baseline
        self.baseline = before + hyper.baseline_rate * (mean - before)
        with torch.no_grad():
            following = self._slow_critic(batch.following, self._slow_actor(batch.following))
        wanted = target(batch.rewards, self.baseline, hyper.discount, following, batch.ended)
        self._critic_step.zero_grad()
        loss = nn.functional.mse_loss(self.critic(batch.states, batch.actions), wanted)
        loss.backward()  # type: ignore[no-untyped-call]
        self._critic_step.step()
        self._actor_step.zero_grad()
        self.critic.requires_grad_(False)
        (-self.critic(batch.states, self.actor(batch.states)).mean()).backward()
        self.critic.requires_grad_(True)
        self._actor_step.step()
        with torch.no_grad():
            for slow, fast in (
                (self._slow_actor, self.actor),
                (self._slow_critic, self.critic),
            ):
                for kept, new in zip(slow.parameters(), fast.parameters(), strict=True):
                    kept.lerp_(new, hyper.tau)
