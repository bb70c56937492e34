"""A policy as a function of the episodes told so far, in the order of their proposal.

Replayed from the seed, it needs no weights in a snapshot. A living agent goes on from the newest
copy that saw a prefix of the same episodes; copies are kept at ages that double, so an episode that
is told late costs little more than twice the episodes behind it.

Reference:
    Y. He et al.: AMC, ECCV 2018, section 4, and its public code: warm-up without training, then
    one update per transition at the end of each episode; every transition has the final reward.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch

from search.amc.ddpg import Ddpg, Hyper, Transitions
from search.amc.state import Episode
from search.one_thread import one_thread


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When is trained, and on what.

    Attributes:
        warmup: Episodes before the first update.
        replay: Newest episodes that updates draw from.
        updates: Updates per transition of a new episode.
        catch_up: Most updates at the end of the warm-up, one per transition seen in it.
    """

    warmup: int
    replay: int
    updates: int
    catch_up: int = 0


class Learner:
    """Trains on episodes, each once, and takes up a told order wherever it was left."""

    def __init__(
        self,
        features: int,
        hyper: Hyper,
        schedule: Schedule,
        seed: int,
        draws: Callable[[int], np.random.Generator],
    ) -> None:
        """Start untrained.

        Args:
            features: Numbers per state.
            hyper: Constants of the networks.
            schedule: When is trained.
            seed: Of the weights.
            draws: Generator of the batches of episode 0, 1, 2, ...
        """
        self._hyper = hyper
        self._schedule = schedule
        self._draws = draws
        self._keys: list[str] = []
        self._copies: dict[int, Ddpg] = {0: Ddpg(features, hyper, seed)}
        self.trained = 0
        """Updates made since this object was made, repeated ones included."""

    def policy(self, episodes: Sequence[Episode]) -> Ddpg:
        """Return the networks after all episodes; not to be changed by the caller."""
        keys = [episode.key for episode in episodes]
        common = next(
            (i for i, (a, b) in enumerate(zip(keys, self._keys, strict=False)) if a != b),
            min(len(keys), len(self._keys)),
        )
        seen = max(count for count in self._copies if count <= common)
        self._copies = {count: net for count, net in self._copies.items() if count <= seen}
        self._keys = keys
        if seen == len(keys):
            return self._copies[seen]
        # Nothing happens before the warm-up's last episode: there the copy of 0 serves as it is.
        net = self._copies[seen]
        with one_thread():
            for rank in range(max(seen, self._schedule.warmup - 1), len(keys)):
                net = copy.deepcopy(net)
                self._train(net, episodes, rank)
                self._copies[rank + 1] = net
                self._forget(rank + 1)
        return net

    def _train(self, net: Ddpg, episodes: Sequence[Episode], rank: int) -> None:
        replay = transitions(episodes[max(0, rank + 1 - self._schedule.replay) : rank + 1])
        rng = self._draws(rank)
        size = len(replay.rewards)
        schedule = self._schedule
        count = schedule.updates * len(episodes[rank].walked.actions)
        if rank < schedule.warmup:
            count = min(schedule.catch_up, size)
        self.trained += count
        for _ in range(count):
            batch = self._hyper.batch
            net.update(replay.rows(rng.choice(size, batch, replace=size < batch)))

    def _forget(self, newest: int) -> None:
        """Keep a copy at every age that is new, and one or two per power of two beyond."""
        kept: dict[int, Ddpg] = {}
        for count, net in self._copies.items():
            spacing = 1 << max(0, (newest - count).bit_length() - 1)
            if count % spacing == 0:
                kept[count] = net
        kept[0] = self._copies[0]
        self._copies = kept


def transitions(episodes: Sequence[Episode]) -> Transitions:
    """Return the steps of all episodes; each has its episode's final reward."""
    states = [episode.walked.states for episode in episodes]
    actions = np.concatenate([episode.walked.actions for episode in episodes])
    lengths = [len(rows) for rows in states]
    # After the last step there is no state: any will do, it counts for nothing.
    following = np.concatenate([np.vstack([rows[1:], rows[-1:]]) for rows in states])
    ended = np.concatenate([np.arange(n) == n - 1 for n in lengths])
    rewards = np.repeat([episode.reward for episode in episodes], lengths)

    def column(values: object) -> torch.Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.float32)[:, None])

    return Transitions(
        states=torch.from_numpy(np.concatenate(states).astype(np.float32)),
        actions=column(actions),
        rewards=column(rewards),
        following=torch.from_numpy(following.astype(np.float32)),
        ended=column(ended),
    )
