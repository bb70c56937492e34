"""Black-box agents with many seeds on a surrogate of real proxy trials.

    make bench NAME=agents_surrogate

Random plans of the trained ResNet-20, half of them near the bound, are evaluated once and kept in
`--work`. With `--searched`, what `agents_equal_budget` evaluated in the same folder joins them:
random plans within the bound are never as good as those that agents find. A Gaussian process learns
the log-odds of top-1; its error on plans it has not seen is stated. Agents then search the
surrogate under the same bound: MACs at most a half. Bounds and costs stay exact; only the accuracy
is the surrogate's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from compression.plan import Plan
from search.arithmetic import Floats, as_points
from search.catalogue import AGENTS, create
from search.measurement import Measured, Measurement, Reading
from search.problem import Problem
from search.repair import Repair, as_point
from search.sampling import draw
from search.trial import Fidelity, Trial, TrialState
from tests.benchmarks.agents_world import World
from tests.benchmarks.record import record
from tests.conftest import real_data_folder

TRAINS = frozenset({"metapruning", "tas", "autocompress"})
"""Agents that train, which no surrogate of plans can answer."""
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "cbo, trust region": ("cbo", {"trust_region": "on"}),
    "cbo, three numbers": ("cbo", {"parametrisation": "three"}),
    "cbo, one step": ("cbo", {"schedule": "one_step"}),
    "cbo, linear": ("cbo", {"schedule": "linear"}),
}
"""Options of agents that are told apart from their defaults."""
TEST_SHARE = 0.2
IMAGES = 2000
"""Of a proxy: its binomial noise is added to what the surrogate answers."""


class SurrogateWorld:
    """Top-1 as a learned function of a plan's widths."""

    def __init__(self, problem: Problem, plans: Sequence[Plan], top1: Floats) -> None:
        """Learn from evaluated plans; the last fifth is kept for the error."""
        self.problem = problem
        self._widths = [
            (knob.site, int(knob.choices[-1]))
            for knob in problem.space.knobs
            if knob.field == "keep_channels"
        ]
        x, y = np.array([self._features(plan) for plan in plans]), _log_odds(top1)
        count = int(len(x) * (1 - TEST_SHARE))
        kernel = ConstantKernel() * Matern(np.full(x.shape[1], 1.0), nu=2.5) + WhiteKernel(0.01)
        self._model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
        few = min(count, 600)
        self._model.fit(x[:few], y[:few])
        # The kernel's scales are learnt from some, the values from all.
        self._model = GaussianProcessRegressor(
            self._model.kernel_, optimizer=None, normalize_y=True
        ).fit(x[:count], y[:count])
        found = _share(self._model.predict(x[count:]))
        error = 100 * (found - top1[count:])
        within = np.array([problem.arithmetic_violation(plan) <= 0 for plan in plans[count:]])
        good = within & (top1[count:] >= np.quantile(top1[count:][within], 0.8))
        self.error = {
            "train": count,
            "test": len(x) - count,
            "rmse_points": float(np.sqrt((error**2).mean())),
            "rmse_points_best_fifth_within": float(np.sqrt((error[good] ** 2).mean())),
            "rank_correlation": float(spearmanr(found, top1[count:]).statistic),
            "rank_correlation_best_fifth_within": float(
                spearmanr(found[good], top1[count:][good]).statistic
            ),
        }

    def measurement(self, plan: Plan, rng: np.random.Generator) -> Measurement:
        """Return what a proxy of `plan` would read."""
        true = float(_share(self._model.predict(np.array([self._features(plan)])))[0])
        seen = rng.binomial(IMAGES, min(max(true, 0.0), 1.0)) / IMAGES
        baseline = self.problem.baseline
        known = self.problem.arithmetic(plan).readings
        top1 = Reading(metric="top1", value=seen, low=seen, high=seen, n=IMAGES, split="search")
        assert baseline.get("top1") is not None
        return Measurement((top1, *known))

    def truth(self, plan: Plan) -> float:
        """Return the surrogate's own value, without noise."""
        return float(_share(self._model.predict(np.array([self._features(plan)])))[0])

    def _features(self, plan: Plan) -> list[float]:
        kept = plan.prune_channels()
        return [
            kept[site].keep_channels / width if site in kept else 1.0
            for site, width in self._widths
        ]


def _log_odds(share: Floats) -> Floats:
    clipped = np.clip(share, 0.01, 0.99)
    return np.asarray(np.log(clipped / (1 - clipped)))


def _share(log_odds: NDArray[Any]) -> Floats:
    return np.asarray(1 / (1 + np.exp(-log_odds)))


def random_plans(problem: Problem, count: int) -> list[Plan]:
    """Return plans of every size, every other one grown or shrunk to the bound."""
    repair, space = Repair(problem), problem.space
    rng = np.random.default_rng(0)
    drawn = draw(space, rng, count)
    drawn[::2] = repair.fill(drawn[::2])
    points = dict.fromkeys(as_point(row) for row in as_points(drawn.tolist(), len(space.knobs)))
    return [space.decode(point) for point in points]


def with_searched(
    world: World, plans: Sequence[Plan], top1: Sequence[float]
) -> tuple[list[Plan], list[float]]:
    """Return these plans and all that searches evaluated, with their top-1, in a random order."""
    known = dict(zip(plans, top1, strict=True))
    for plan, measurement in world.proxies():
        reading = measurement.get("top1")
        if reading is not None:
            known.setdefault(plan, reading.value)
    pairs = list(known.items())
    order = np.random.default_rng(1).permutation(len(pairs))
    return [pairs[i][0] for i in order], [pairs[i][1] for i in order]


def searched(
    world: SurrogateWorld, problem: Problem, agent: str, seed: int, budget: int
) -> tuple[float, float]:
    """Return the surrogate's value of the plan an agent would hand on, and the seconds it took."""
    name, options = VARIANTS.get(agent, (agent, {}))
    made = create(name, problem, options)
    rng = np.random.default_rng([seed, 3])
    trials: list[Trial] = []
    start = time.perf_counter()
    while len(trials) < budget:
        requests = made.ask(1)
        if not requests:
            break
        for request in requests:
            trial = Trial(
                id=f"trl_{len(trials):04d}",
                number=len(trials),
                plan=request.plan,
                fidelity=Fidelity.PROXY,
                seed=0,
                agent=agent,
                state=TrialState.MEASURED,
                outcome=Measured(world.measurement(request.plan, rng)),
            )
            trials.append(trial)
            made.tell([trial])
    seconds = time.perf_counter() - start
    feasible = [t for t in trials if problem.rank_key(t)[0] <= 0]
    if not feasible:
        return 0.1, seconds
    return world.truth(min(feasible, key=problem.rank_key).plan), seconds


def main() -> None:
    """Evaluate random plans, learn from them, and let the agents search."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plans", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--budget", type=int, default=60)
    black_box = [name for name in AGENTS if name not in TRAINS]
    parser.add_argument(
        "--agents", nargs="+", default=black_box, choices=[*black_box, *VARIANTS], metavar="NAME"
    )
    parser.add_argument("--searched", action="store_true", help="learn from kept searches too")
    parser.add_argument("--only-evaluate", action="store_true", help="plans, nothing else")
    parser.add_argument("--work", type=Path, default=Path(".work"))
    options = parser.parse_args()
    folder = real_data_folder()
    if folder is None:
        raise SystemExit("CIFAR-10 and its checkpoints are absent; set PARETOPRESS_TEST_DATA")
    torch.set_num_threads(1)
    world = World(folder, options.work, 20, "macs", train_files=1)
    problem = world.problem(0, options.budget)
    plans = random_plans(problem, options.plans)
    top1 = []
    for number, plan in enumerate(plans):
        reading = world.measure(plan).get("top1")
        assert reading is not None
        top1.append(reading.value)
        if number % 100 == 0:
            print(number, len(plans), flush=True)
    if options.only_evaluate:
        return
    if options.searched:
        plans, top1 = with_searched(world, plans, top1)
    surrogate = SurrogateWorld(problem, plans, np.array(top1))
    print(surrogate.error, flush=True)
    rows: dict[str, Mapping[str, float]] = {}
    for agent in options.agents:
        found, seconds = [], []
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            value, took = searched(
                surrogate, world.problem(seed, options.budget), agent, seed, options.budget
            )
            found.append(100 * value)
            seconds.append(took)
        rows[agent] = {
            "mean": float(np.mean(found)),
            "standard_error": float(np.std(found, ddof=1) / np.sqrt(len(found))),
            "deviation": float(np.std(found, ddof=1)),
            "worst": float(np.min(found)),
            "agent_s": float(np.mean(seconds)),
        }
        print(agent, rows[agent], flush=True)
    best_control = max(("uniform", "random"), key=lambda name: rows[name]["mean"])
    control = rows[best_control]
    auto = rows.get("auto", control)
    record(
        "agents_surrogate",
        passed=auto["mean"] >= control["mean"] - control["standard_error"],
        seed=options.first_seed,
        seeds=options.seeds,
        plans=len(plans),
        searched=options.searched,
        surrogate=surrogate.error,
        budget=options.budget,
        rows=rows,
        best_control=best_control,
    )


if __name__ == "__main__":
    main()
