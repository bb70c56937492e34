"""AMC: an actor walks the network layer by layer and decides how much of each to keep.

Reference:
    Y. He, J. Lin, Z. Liu, H. Wang, L.-J. Li, S. Han: AMC: AutoML for Model Compression and
    Acceleration on Mobile Devices, ECCV 2018 (states, clamp, rewards, DDPG), with the constants of
    its public code; bits as actions from K. Wang et al.: HAQ, CVPR 2019.

Deviations:
    * An action is the share of channels that a coupling group keeps: the layers of a residual
      stage share one width and its indices by construction.
    * The clamp asks the exact cost table, for all bounds on macs, flops and params together; what
      such bounds it cannot keep (lower ones, or those of the rewards without a budget) is repaired
      by one common factor.
    * Bounds that only a measurement decides are penalties on the reward, and the mode `auto` counts
      them as a budget too. With several objectives the first is the reward.
    * No plan is asked for twice. A repeated one is drawn again from wider noise, then moved by one
      step; what was applied enters the replay, as do plans of other agents.
    * Defaults are for jobs of some dozen trials, not the paper's 400. The warm-up takes a third of
      them and is learned from at its end; every other of its episodes stays near uniform widths,
      since uniform draws of dozens of layers are hopeless plans. The actor's step is ten times the
      paper's, and states name their layer. The paper's are `warmup="uniform", warmup_trials=100,
      catch_up=0, actor_lr=1e-4, one_hot=False, clamp="sequential"`.
    * By default a budget is kept by one common factor. The paper's clamp lets the first layers take
      the budget, so random episodes leave the last ones at their floors, and little is learned.
      Where accuracy alone is rewarded, the factor grows a walk to the budget as well, as far as
      measured bounds are expected to hold: episodes then differ in how they share the budget.
    * Failed trials teach nothing; plans that cannot be evaluated earn the worst reward.
    * Selector and precision of the whole model are one choice for an episode. The first episodes
      try each with the same actions (first all that the bounds allow, since a precision alone may
      hold them), later ones take the best; with `bits`, precisions (also those of layers) are
      actions instead. Other choices (blocks, ranks, zeros, codebooks) stay untouched.
    * HAQ lowers bits in turn until a table says that the budget is kept. Here sizes and times are
      predicted, from the cost table and the readings so far.
    * Trials are learned from in the order of their proposal; weights are not stored but trained
      again from the seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from compression.space import Point
from search.agent import Request, Snapshot
from search.amc.clamp import Clamp
from search.amc.exploration import sigma, truncated_normal
from search.amc.fitting import Fitting
from search.amc.rewards import Mode, Reward, Size, mode_for
from search.amc.state import Episode, Walk, Walked, tried_settings
from search.arithmetic import Floats, as_points
from search.errors import ProblemInvalid
from search.history import History, canonical, fill, generator
from search.measurement import Failed, Measured
from search.metric import ACCURACIES
from search.problem import Problem
from search.repair import Repair, as_point
from search.sampling import neighbours, new_point
from search.trial import Trial

if TYPE_CHECKING:
    from search.amc.ddpg import Ddpg
    from search.amc.learner import Learner

Warmup = Literal["uniform", "centred", "mixed"]
ClampName = Literal["sequential", "common"]
Store = Literal["applied", "raw"]

REDRAWS = 12
"""Walks that are tried for a plan that is new."""

WIDER = 1.25
"""Factor on the noise of each further walk."""

COMPARISONS = 2
"""Widths that every setting of the whole model is tried with, as far as half the warm-up goes."""

CENTRED_SIGMA = 0.2
"""Noise of warm-up actions around the keep ratio that just meets the bounds."""

DRAW, TRAIN, WEIGHTS, COMPARE = range(4)
"""Purposes of generators."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of AMC.

    Attributes:
        mode: `budget` rewards -error under bounds, `guarantee` rewards -error * log(size); `auto`
            is `budget` where something that costs is bounded.
        size: What `guarantee` weighs, `macs` or `params`.
        lbound: Smallest keep ratio of a site, in (0, 1], unless the bounds ask for less.
        clamp: How a budget is kept: `common` fits the widths of the finished walk by one factor;
            `sequential`, the paper's, limits each width so that the later ones can still be paid
            for at their smallest.
        bits: Whether precisions are actions too (HAQ).
        warmup: Draws of the first episodes: `uniform` in [0, 1], `centred` at the keep ratio
            that just meets the bounds, or `mixed`, both in turn.
        warmup_trials: Episodes before the actor acts, at least 1; None takes a third of the
            budget of trials, at most 100.
        store: Which action the replay holds: as `applied` after the clamp, or `raw` before it.
        one_hot: Whether states name their layer, apart from the paper's features.
        penalty: Error added per unit of log(1 + violation) of a measured bound, at least 0.
        updates: Updates per transition of a finished episode, 1 to 64.
        catch_up: Most updates on the warm-up's transitions at its end, 0 to 10000.
        replay_episodes: Newest episodes that updates draw from, at least 1.
        noise: Standard deviation of the first actions after the warm-up, positive.
        noise_decay: Factor on it per episode, in (0, 1].
        actor_lr: Step of the actor's optimiser, positive.
        critic_lr: Step of the critic's optimiser, positive.
    """

    mode: Literal["auto", "budget", "guarantee"] = "auto"
    size: Size = "macs"
    lbound: float = 0.2
    clamp: ClampName = "common"
    bits: bool = False
    warmup: Warmup = "mixed"
    warmup_trials: int | None = None
    store: Store = "applied"
    one_hot: bool = True
    penalty: float = 1.0
    updates: int = 1
    catch_up: int = 300
    replay_episodes: int = 100
    noise: float = 0.5
    noise_decay: float = 0.95
    actor_lr: float = 1e-3
    critic_lr: float = 1e-3

    def __post_init__(self) -> None:
        for name, known in (
            ("mode", ("auto", *get_args(Mode))),
            ("size", get_args(Size)),
            ("clamp", get_args(ClampName)),
            ("warmup", get_args(Warmup)),
            ("store", get_args(Store)),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ProblemInvalid(f"amc: {name} is {value!r}; choose from {', '.join(known)}")
        for name in ("lbound", "noise_decay"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ProblemInvalid(f"amc: {name} is {getattr(self, name)}; it must be in (0, 1]")
        for name in ("noise", "actor_lr", "critic_lr"):
            if not getattr(self, name) > 0:
                raise ProblemInvalid(f"amc: {name} is {getattr(self, name)}; it must be positive")
        if not self.penalty >= 0:
            raise ProblemInvalid(f"amc: penalty is {self.penalty}; at least 0")
        if self.warmup_trials is not None and self.warmup_trials < 1:
            raise ProblemInvalid(f"amc: warmup_trials is {self.warmup_trials}; at least 1")
        if not 1 <= self.updates <= 64:
            raise ProblemInvalid(f"amc: updates is {self.updates}; 1..64 is allowed")
        if not 0 <= self.catch_up <= 10_000:
            raise ProblemInvalid(f"amc: catch_up is {self.catch_up}; 0..10000 is allowed")
        if self.replay_episodes < 1:
            raise ProblemInvalid(f"amc: replay_episodes is {self.replay_episodes}; at least 1")


class Amc:
    """Learns by reinforcement how much of each layer to keep, under an exact budget."""

    options_type = Options

    def __init__(self, problem: Problem, options: Options) -> None:
        self._problem = problem
        self._options = options
        self._history = History(problem)
        self._repair = Repair(problem)
        self._walk = Walk(
            problem,
            self._repair,
            Clamp(self._repair, options.lbound),
            bits=options.bits,
            one_hot=options.one_hot,
        )
        self._settings = tried_settings(self._walk, problem)
        mode: Mode = mode_for(problem) if options.mode == "auto" else options.mode
        self._clamped = mode == "budget" and options.clamp == "sequential"
        by_accuracy = all(objective.metric in ACCURACIES for objective in problem.objectives)
        grows = mode == "budget" and options.clamp == "common" and by_accuracy
        self._fitting = Fitting(problem, self._walk, self._repair, grows=grows)
        self._reward = Reward(problem, mode, options.size, options.penalty)
        self._reachable = self._repair.reachable()
        self._warmup = options.warmup_trials or min(100, max(1, (problem.budget_trials or 60) // 3))
        self._raw: dict[Point, Floats] = {}
        self._learner: Learner | None = None
        self._episodes: dict[str, Episode | None] = {}

    def ask(self, n: int) -> Sequence[Request]:
        """Return up to `n` new requests; fewer when the space is exhausted."""
        return fill(self._history, n, self._suggest)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn from finished trials."""
        self._history.tell(trials)

    def snapshot(self) -> Snapshot:
        """Return the count, the pending points and, where the replay holds them, raw actions."""
        snapshot = self._history.snapshot()
        if self._options.store == "applied":
            return snapshot
        raw = {
            "raw_points": np.array(list(self._raw), dtype=np.float64),
            "raw_actions": np.array(list(self._raw.values()), dtype=np.float64),
        }
        return Snapshot(snapshot.data, {**snapshot.arrays, **raw})

    def restore(self, snapshot: Snapshot) -> None:
        """Take up where `snapshot` was made."""
        self._history.restore(snapshot)
        if "raw_points" in snapshot.arrays:
            pairs = zip(snapshot.arrays["raw_points"], snapshot.arrays["raw_actions"], strict=True)
            self._raw = {tuple(int(i) for i in point): actions for point, actions in pairs}

    def _suggest(self) -> Point | None:
        history, asked = self._history, self._history.asked
        rng = generator(self._problem, asked, DRAW)
        compared = self._compared(asked)
        setting = self._best_setting() if compared is None else compared
        policy = self._policy() if asked >= self._warmup else None
        noise = sigma(self._options.noise, self._options.noise_decay, asked, self._warmup)
        turn = asked if compared is None else asked // len(self._settings)
        whole = compared is not None and turn == 0
        centre = self._centre() if policy is None and self._centred(turn) else None
        drawn: dict[Point, None] = {}
        for attempt in range(REDRAWS if self._walk.steps else 1):
            draws = rng
            if compared is not None and attempt == 0:
                draws = generator(self._problem, turn, COMPARE)
            action = 1.0 if whole and attempt == 0 else None
            point, raw = self._episode(
                setting, policy, noise * WIDER**attempt, draws, centre, action
            )
            if history.is_new(point) and self._admissible(point):
                if self._options.store == "raw":
                    self._raw[point] = raw
                return point
            drawn[point] = None
        for point in drawn:
            moved = self._moved(point, rng)
            if moved is not None:
                return moved
        return new_point(self._repair, history, rng, near=list(drawn))

    def _episode(
        self,
        setting: Sequence[int],
        policy: Ddpg | None,
        noise: float,
        rng: np.random.Generator,
        centre: float | None = None,
        action: float | None = None,
    ) -> tuple[Point, Floats]:
        """Walk once and return the plan's point and the actions before the clamp.

        Args:
            setting: Of the whole model.
            policy: Who acts; None in the warm-up.
            noise: Standard deviation around the policy's action.
            rng: One draw per step.
            centre: Keep ratio around which the warm-up draws; None draws in [0, 1].
            action: Of every step; None leaves them to the policy and to chance.
        """
        walk = self._walk
        point = walk.start(setting)
        raw = np.empty(len(walk.steps))
        for t, step in enumerate(walk.steps):
            if action is not None:
                raw[t] = action
            elif policy is not None:
                raw[t] = truncated_normal(policy.act(walk.state(point, t)), noise, rng)
            elif centre is not None and step.kind == "keep":
                raw[t] = truncated_normal(centre, CENTRED_SIGMA, rng)
            else:
                raw[t] = rng.random()
            point[step.column] = walk.decide(point, t, float(raw[t]), clamped=self._clamped)
        return canonical(self._problem.space, self._fitting.fitted(point, self._history)), raw

    def _centred(self, turn: int) -> bool:
        """Whether the warm-up's episode of this turn is drawn around one keep ratio."""
        warmup = self._options.warmup
        return warmup == "centred" or (warmup == "mixed" and turn % 2 == 1)

    def _centre(self) -> float:
        """Return the common keep ratio that just meets the arithmetic bounds; else 0.5."""
        if not self._repair.arithmetic.constraints:
            return 0.5
        space = self._problem.space
        shrunk = self._repair.shrink(as_points([space.dense()], len(space.knobs)))
        actions = self._walk.applied(as_point(shrunk[0]))
        kept = [a for a, step in zip(actions, self._walk.steps, strict=True) if step.kind == "keep"]
        return float(np.mean(kept)) if kept else 0.5

    def _compared(self, asked: int) -> Point | None:
        """Return the setting that a request of the first comparisons tries; None after them."""
        count = len(self._settings)
        if asked >= min(COMPARISONS * count, max(1, self._warmup // 2)):
            return None
        return self._settings[asked % count]

    def _best_setting(self) -> Point:
        """Return for each choice of the whole model the one with the best reward on its own."""
        first = self._settings[0]
        if len(self._settings) == 1:
            return first
        best: dict[Point, float] = {}
        for told in self._history.told:
            episode = self._learned(told.point, told.trial)
            if episode is not None:
                setting = tuple(told.point[column] for column in self._walk.settings)
                best[setting] = max(best.get(setting, -np.inf), episode.reward)
        chosen = list(first)
        for place in range(len(first)):
            ranked = [
                (best[setting], setting[place])
                for setting in self._settings
                if setting in best
                and all(
                    index == first[other] for other, index in enumerate(setting) if other != place
                )
            ]
            if ranked:
                chosen[place] = max(ranked, key=lambda pair: pair[0])[1]
        return tuple(chosen)

    def _policy(self) -> Ddpg:
        from search.amc.ddpg import Hyper
        from search.amc.learner import Learner, Schedule

        options = self._options
        if self._learner is None:
            self._learner = Learner(
                self._walk.features,
                Hyper(actor_lr=options.actor_lr, critic_lr=options.critic_lr),
                Schedule(
                    warmup=self._warmup,
                    replay=options.replay_episodes,
                    updates=options.updates,
                    catch_up=options.catch_up,
                ),
                int(generator(self._problem, 0, WEIGHTS).integers(2**31)),
                lambda episode: generator(self._problem, episode, TRAIN),
            )
        episodes = (self._learned(told.point, told.trial) for told in self._history.told)
        return self._learner.policy([episode for episode in episodes if episode is not None])

    def _learned(self, point: Point, trial: Trial) -> Episode | None:
        """Return what a told trial teaches; None where it is nothing."""
        if trial.id not in self._episodes:
            self._episodes[trial.id] = self._taught(point, trial)
        return self._episodes[trial.id]

    def _taught(self, point: Point, trial: Trial) -> Episode | None:
        outcome = trial.outcome
        if outcome is None or isinstance(outcome, Failed):
            return None
        if not (self._walk.steps and self._walk.is_walkable(point) and self._admissible(point)):
            return None
        measurement = outcome.measurement if isinstance(outcome, Measured) else None
        walked = self._walk.walked(point)
        if point in self._raw:
            walked = Walked(walked.states, self._raw[point])
        return Episode(trial.id, walked, self._reward.of(trial.plan, measurement))

    def _admissible(self, point: Point) -> bool:
        """Whether the arithmetic bounds hold; where nothing can keep them, any plan will do."""
        rows = as_points([point], len(point))
        return not self._reachable or bool(self._repair.keeps_bounds(rows)[0])

    def _moved(self, point: Point, rng: np.random.Generator) -> Point | None:
        """Return a new plan whose widths and bits are those of a point but for one step."""
        space = self._problem.space
        for row in rng.permutation(neighbours(space, point)):
            near = canonical(space, as_point(row))
            changed = self._walk.is_walkable(near) and self._history.is_new(near)
            if changed and self._admissible(near):
                return near
        return None
