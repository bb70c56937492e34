"""What the agents' papers claim, tried at the size of two cores: ResNet-20, CIFAR-10, inner widths.

    make bench NAME=agents_claims

* `cooling` (constrained BO, ECCV 2018): bounds that cool exponentially find better plans than one
  step, with less spread; here a bound on MACs, which arithmetic decides.
* `cooling_measured`: the same under a bound on latency, as in the paper.
* `penalty` (likewise): bounds that the search knows as such are held by more plans, and the best is
  better, than where their excess is a penalty of the objective.
* `amc` (AMC, ECCV 2018): at half the MACs better than uniform and random widths.
* `metapruning` (MetaPruning, ICCV 2019): with the weights of one PruningNet, evolution beats
  random, random beats uniform, and the gap grows as the budget of MACs gets tighter.
* `proxies` (distiller's reproduction of AMC; EagleEye, ECCV 2020): proxies rank plans as short
  trainings do, and worse without recalibrated BatchNorm.

A part passes, or says "not reproduced" with its figures. Plans are compared on search-validation
images only. Searches share one folder of evaluations with `agents_equal_budget`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from compression.artifact import Digest
from compression.methods import Methods
from compression.plan import Plan
from search.agent import Agent, Evaluate, Request, Snapshot
from search.agents.metapruning import Metapruning
from search.agents.metapruning import Options as MetapruningOptions
from search.arithmetic import Floats
from search.catalogue import create
from search.measurement import Measured, Measurement
from search.objective import Constraint
from search.problem import Problem
from search.repair import Repair, as_point
from search.sampling import draw
from search.trial import PREPARED_ROLE, Fidelity, Trial
from tests.benchmarks.agents_equal_budget import CHANCE, row_of
from tests.benchmarks.agents_training import prepared
from tests.benchmarks.agents_world import THIN, Setting, World, latency
from tests.benchmarks.record import record
from tests.conftest import real_data_folder
from workers.meters.accuracy import accuracy

Row = Mapping[str, Any]


def at_most(macs: float, methods: Methods = THIN) -> Setting:
    """Return the setting of a bound on MACs alone."""
    bound = Constraint(metric="macs", at_most=macs, relative_to="baseline")
    return Setting((bound,), methods)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """Data, folder and sizes of a run."""

    folder: Path
    options: argparse.Namespace

    def world(self, macs: float) -> World:
        """Return ResNet-20 under a bound on MACs."""
        if macs == 0.5:
            return World(self.folder, self.options.work, 20, "macs")
        name = f"macs{macs:g}"
        return World(self.folder, self.options.work, 20, name, setting=at_most(macs))

    def best(
        self, world: World, agent: str, budget: int, options: Mapping[str, Any] | None = None
    ) -> Floats:
        """Return the best top-1 in per cent within the bounds, one per seed."""
        return bests(self.searches(world, agent, budget, options))

    def searches(
        self, world: World, agent: str, budget: int, options: Mapping[str, Any] | None = None
    ) -> Sequence[Row]:
        """Return what came of a search, one row per seed, finished ones kept."""
        book = self.options.work / "claims.jsonl"
        lines = book.read_text().splitlines() if book.exists() else []
        known = {row["key"]: row for row in map(json.loads, lines)}
        found = []
        for seed in range(self.options.seeds):
            key = json.dumps([world.spec.name, agent, budget, seed, options or {}], sort_keys=True)
            if key not in known:
                make = functools.partial(made, world, agent, options or {})
                row = row_of(world.search_by(make, agent, seed, budget))
                known[key] = {"key": key, **{name: row[name] for name in KEPT}}
                with book.open("a") as file:
                    file.write(json.dumps(known[key]) + "\n")
                print(json.dumps(known[key]), flush=True)
            found.append(known[key])
        return found


KEPT = ("best", "feasible_share")
"""Columns of a search that claims are about."""

TIGHT = 0.6
"""Share of the dense latency; uniform widths hold it with a third of the MACs."""
PENALTY = "penalty"
ON_NET = "pruning_net/"


def made(world: World, agent: str, options: Mapping[str, Any], problem: Problem) -> Agent:
    """Return an agent of the catalogue, perhaps on a PruningNet, or `cbo` that sees a penalty."""
    if agent == PENALTY:
        return Penalised(problem)
    if agent.startswith(ON_NET):
        order = Metapruning(problem, MetapruningOptions()).order
        assert order is not None
        base = prepared(world, order).artifacts[PREPARED_ROLE]
        return OnNet(create(agent.removeprefix(ON_NET), problem, options), base)
    return create(agent, problem, options)


class OnNet:
    """An agent of plans whose proposals are scored with the weights that a training left."""

    def __init__(self, agent: Agent, base: Digest) -> None:
        self._agent = agent
        self._base = base

    def ask(self, n: int) -> Sequence[Request]:
        """Return the agent's plans, which start from the base."""
        return [
            dataclasses.replace(request, base=self._base)
            if isinstance(request, Evaluate)
            else request
            for request in self._agent.ask(n)
        ]

    def tell(self, trials: Sequence[Trial]) -> None:
        """Tell the agent, as if its plans had started from the job's model."""
        self._agent.tell([dataclasses.replace(trial, base=None) for trial in trials])

    def snapshot(self) -> Snapshot:
        """See `search.agent.Agent`."""
        return self._agent.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """See `search.agent.Agent`."""
        self._agent.restore(snapshot)


class Penalised:
    """`cbo` without bounds, for which every excess makes the accuracy smaller."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._agent = create("cbo", dataclasses.replace(problem, constraints=()), {})

    def ask(self, n: int) -> Sequence[Request]:
        """See `search.agent.Agent`."""
        return self._agent.ask(n)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Tell top-1 over 1 + the total violation of the bounds: it stays a share of 1."""
        self._agent.tell([self._penalised(trial) for trial in trials])

    def snapshot(self) -> Snapshot:
        """See `search.agent.Agent`."""
        return self._agent.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """See `search.agent.Agent`."""
        self._agent.restore(snapshot)

    def _penalised(self, trial: Trial) -> Trial:
        if not isinstance(trial.outcome, Measured):
            return trial
        measurement = trial.outcome.measurement
        excess = self._problem.total_violation(measurement)
        readings = tuple(
            dataclasses.replace(r, **{end: getattr(r, end) / (1 + excess) for end in ENDS})
            if r.metric == self._problem.objectives[0].metric
            else r
            for r in measurement.readings
        )
        return dataclasses.replace(trial, outcome=Measured(Measurement(readings)))


ENDS = ("value", "low", "high")


def bests(rows: Sequence[Row]) -> Floats:
    """Return the best top-1 in per cent of each search; chance where nothing held the bounds."""
    return np.array([CHANCE if row["best"] is None else row["best"] for row in rows])


def held(rows: Sequence[Row]) -> float:
    """Return the share of trials within the bounds, the mean of all searches."""
    return round(float(np.mean([row["feasible_share"] for row in rows])), 3)


def shown(found: Floats) -> Row:
    """Return mean, spread (None of one seed) and the single values of several seeds."""
    deviation = float(found.std(ddof=1)) if len(found) > 1 else None
    return {
        "mean": round(float(found.mean()), 3),
        "deviation": None if deviation is None else round(deviation, 3),
        "standard_error": None if deviation is None else round(deviation / len(found) ** 0.5, 3),
        "seeds": [round(float(value), 2) for value in found],
    }


def cooling(bench: Bench) -> tuple[bool, Row]:
    """Exponential cooling against linear, one step, and steps between which the model advances."""
    world, budget = bench.world(0.3), bench.options.budget
    rows = {
        name: bench.best(world, "cbo", budget, {"schedule": name})
        for name in ("exponential", "linear", "one_step")
    }
    rows["advancing"] = bench.best(world, "cbo", budget, {"advance": True, "advance_steps": 100})
    passed = _steadier(rows["exponential"], rows["one_step"])
    return passed, {name: shown(found) for name, found in rows.items()}


def cooling_measured(bench: Bench) -> tuple[bool, Row]:
    """The same schedules under a bound that only a measurement decides: latency of fp32 widths."""
    budget = bench.options.budget
    setting = Setting((latency(TIGHT),), THIN)
    world = World(bench.folder, bench.options.work, 20, f"thin-latency{TIGHT:g}", setting=setting)
    rows = {
        name: bench.searches(world, "cbo", budget, {"schedule": name})
        for name in ("exponential", "linear", "one_step")
    }
    found = {name: bests(searches) for name, searches in rows.items()}
    shares = {name: held(searches) for name, searches in rows.items()}
    passed = _steadier(found["exponential"], found["one_step"])
    return passed, {
        "latency": TIGHT,
        "feasible_share": shares,
        **{name: shown(values) for name, values in found.items()},
    }


def _steadier(cooled: Floats, sudden: Floats) -> bool:
    """Whether one is better by its standard error and scatters less."""
    margin = float(cooled.std(ddof=1)) / math.sqrt(len(cooled))
    return bool(cooled.mean() >= sudden.mean() + margin and cooled.std(ddof=1) < sudden.std(ddof=1))


def penalty(bench: Bench) -> tuple[bool, Row]:
    """Bounds that are known as such against bounds that are a penalty of the objective."""
    world, budget = bench.world(0.3), bench.options.budget
    rows = {name: bench.searches(world, name, budget) for name in ("cbo", PENALTY)}
    found = {name: bests(searches) for name, searches in rows.items()}
    shares = {name: held(searches) for name, searches in rows.items()}
    passed = bool(found["cbo"].mean() > found[PENALTY].mean() and shares["cbo"] > shares[PENALTY])
    return passed, {"feasible_share": shares, **{name: shown(v) for name, v in found.items()}}


def amc(bench: Bench) -> tuple[bool, Row]:
    """AMC against uniform and random widths on an equal number of trials."""
    world, budget = bench.world(0.5), bench.options.budget
    rows = {agent: bench.best(world, agent, budget) for agent in ("amc", "random", "uniform")}
    means = {agent: found.mean() for agent, found in rows.items()}
    passed = bool(means["amc"] > max(means["random"], means["uniform"]))
    return passed, {agent: shown(found) for agent, found in rows.items()}


def metapruning(bench: Bench) -> tuple[bool, Row]:
    """Evolution, random and uniform with the weights of one PruningNet, at three bounds."""
    agents = ("metapruning", f"{ON_NET}random", f"{ON_NET}uniform")
    gaps: dict[float, float] = {}
    rows: dict[str, Row] = {}
    ordered = True
    for macs in (0.75, 0.5, 0.25):
        world = bench.world(macs)
        found = {agent: bench.best(world, agent, bench.options.budget) for agent in agents}
        evolution, random, uniform = (float(found[agent].mean()) for agent in agents)
        gaps[macs] = evolution - uniform
        ordered = ordered and evolution > random > uniform
        rows[f"{macs:g}"] = {agent: shown(values) for agent, values in found.items()}
    grows = gaps[0.75] <= gaps[0.5] <= gaps[0.25]
    return ordered and grows, {"ordered": ordered, "gaps_over_uniform": gaps, **rows}


def proxies(bench: Bench) -> tuple[bool, Row]:
    """Spearman between a proxy, with and without new statistics, and a short training."""
    world = bench.world(0.5)
    problem = world.problem(0, bench.options.plans)
    repair = Repair(problem)
    drawn = repair.fill(draw(problem.space, np.random.default_rng(5), bench.options.plans))
    plans = list(dict.fromkeys(problem.space.decode(as_point(row)) for row in drawn))
    columns: dict[str, list[float]] = {"plain": [], "recalibrated": [], "short": []}
    for plan in plans:
        columns["plain"].append(_plain(world, plan))
        for name, fidelity in (("recalibrated", Fidelity.PROXY), ("short", Fidelity.SHORT)):
            reading = world.measure(plan, fidelity).get("top1")
            assert reading is not None
            columns[name].append(reading.value)
        print({name: values[-1] for name, values in columns.items()}, flush=True)
    short = np.array(columns["short"])
    rho = {
        name: round(float(spearmanr(columns[name], short).statistic), 3)
        for name in ("plain", "recalibrated")
    }
    upper = short >= np.median(short)
    half = float(spearmanr(np.array(columns["recalibrated"])[upper], short[upper]).statistic)
    figures = {
        "plans": len(plans),
        "spearman": rho,
        "spearman_upper_half": round(half, 3),
        "mean_top1": {name: round(100 * float(np.mean(v)), 2) for name, v in columns.items()},
    }
    return rho["recalibrated"] >= 0.5 and rho["recalibrated"] > rho["plain"], figures


def _plain(world: World, plan: Plan) -> float:
    """Return the top-1 of a plan with the dense network's BatchNorm statistics."""
    context = world.context
    model = world.network(plan)
    images, labels = context.part(Fidelity.PROXY)
    logits = context.score_module(model, images)
    return accuracy(logits, labels, context.dense_logits(Fidelity.PROXY), "search")[0].value


PARTS: Mapping[str, Callable[[Bench], tuple[bool, Row]]] = {
    "proxies": proxies,
    "cooling": cooling,
    "cooling_measured": cooling_measured,
    "penalty": penalty,
    "amc": amc,
    "metapruning": metapruning,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Try the parts that were asked for; each records its own line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=60)
    parser.add_argument("--plans", type=int, default=20, help="of the part proxies")
    parser.add_argument("--work", type=Path, default=Path(".work"))
    options = parser.parse_args(arguments)
    folder = real_data_folder()
    if folder is None:
        raise SystemExit("CIFAR-10 and its checkpoints are absent; set PARETOPRESS_TEST_DATA")
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(folder, options)
    for part in options.parts:
        passed, figures = PARTS[part](bench)
        record(
            "agents_claims",
            passed=passed,
            seed=0,
            seeds=options.seeds,
            part=part,
            verdict="reproduced" if passed else "not reproduced",
            budget=options.budget,
            **figures,
        )


if __name__ == "__main__":
    main()
