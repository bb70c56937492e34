"""What foretold latencies spare a real search, and what they cost it.

    make bench NAME=latency_sparing

Agents search the trained CIFAR-10 ResNet-20 under a bound on its measured latency that about half
of random plans miss (ONNX Runtime; widths, blocks, INT8), each with equal trials, data and seeds
twice: as `prune_hopeless` has it, and with everything measured. Every plan that was spared is
measured afterwards, so that how many of them would have held the bound is counted, not estimated.
No search knows of another's readings.

How much is spared depends on how quiet the machine is, since a prediction is as wide as the
readings scatter: `noise` is the median half-width of a measured ratio's interval.

Evaluations are kept in `--work`: a killed run goes on where it was. Seconds are those that the
evaluations took when they were made.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compression.plan import Plan
from search.agent import Evaluate
from search.catalogue import AGENTS, create
from search.front import hypervolume
from search.measurement import Infeasible, Interval, Measured, Measurement
from search.objective import Constraint
from search.trial import Trial
from tests.benchmarks.agents_world import MIXED, Searched, Setting, World, latency
from tests.benchmarks.record import record
from tests.conftest import real_data_folder
from workers.latency_book import LatencyBook

CHANCE = 0.1
"""Top-1 of ten classes."""

LARGEST_MISTAKE = 0.02
"""Share of the spared plans that may hold the bound; the interval's own is 0.0125."""

Row = dict[str, Any]


def row_of(found: Searched, bound: Constraint) -> Row:
    """Return what one search came to."""
    problem = found.problem
    held = [m for m in _measured(found) if problem.feasible(m)]
    points = [(-_top1(m), _ratio(m, bound).value) for m in held]
    return {
        "trials": len(found.trials),
        "feasible": len(held),
        "best": max(map(_top1, held), default=CHANCE),
        "hypervolume": hypervolume(points, (-CHANCE, 1.0)),
        "trial_s": found.trial_s,
        "agent_s": found.agent_s,
    }


def spared(found: Searched) -> list[Trial]:
    """Return the trials that were not carried out because their latency was foretold."""
    return [t for t in found.trials if isinstance(t.outcome, Infeasible) and t.outcome.foretold]


def compared(world: World, agent: str, seed: int, budget: int, bound: Constraint) -> Row:
    """Return one agent's search with and without foretold latencies."""
    dense = world.measure(Plan())
    book = LatencyBook(world.context.survey.costs, (bound,), dense)
    make = functools.partial(create, agent, given={})
    having = world.search_by(make, agent, seed, budget, latency=book)
    everything = world.search_by(make, agent, seed, budget)
    skipped = spared(having)
    before = world.spent_s
    # A plan that breaks when it is carried out would have told the search nothing either.
    truth = [world.carry_out(_again(trial)).outcome for trial in skipped]
    return {
        "agent": agent,
        "seed": seed,
        "with": row_of(having, bound),
        "without": row_of(everything, bound),
        "spared": len(skipped),
        "spared_s": world.spent_s - before,
        "spared_though_feasible": sum(
            isinstance(o, Measured) and bound.violation(o.measurement, dense) <= 0 for o in truth
        ),
        "missing_without": sum(bound.violation(m, dense) > 0 for m in _measured(everything)),
        "noise": float(np.median([_half_width(m, bound) for m in _measured(everything)])),
    }


def summary(rows: Sequence[Row]) -> Row:
    """Return sums and means of searches."""

    def mean(arm: str, key: str) -> float:
        return round(float(np.mean([row[arm][key] for row in rows])), 4)

    trials = sum(row["with"]["trials"] for row in rows)
    count = sum(row["spared"] for row in rows)
    arms: Mapping[str, Row] = {
        arm: {key: mean(arm, key) for key in ("best", "hypervolume", "feasible", "trial_s")}
        for arm in ("with", "without")
    }
    return {
        "searches": len(rows),
        "trials": trials,
        "spared": count,
        "spared_share": round(count / trials, 4),
        "spared_s": round(sum(row["spared_s"] for row in rows), 1),
        "spared_though_feasible": sum(row["spared_though_feasible"] for row in rows),
        "missing_without": sum(row["missing_without"] for row in rows),
        "noise": round(float(np.mean([row["noise"] for row in rows])), 4),
        **arms,
    }


def _measured(found: Searched) -> list[Measurement]:
    return [t.outcome.measurement for t in found.trials if isinstance(t.outcome, Measured)]


def _again(trial: Trial) -> Evaluate:
    return Evaluate(plan=trial.plan, fidelity=trial.fidelity)


def _top1(measurement: Measurement) -> float:
    reading = measurement.get("top1")
    assert reading is not None
    return reading.value


def _ratio(measurement: Measurement, bound: Constraint) -> Interval:
    reading = bound.reading(measurement)
    assert reading is not None
    assert reading.ratio is not None
    return reading.ratio


def _half_width(measurement: Measurement, bound: Constraint) -> float:
    ratio = _ratio(measurement, bound)
    return (ratio.high - ratio.low) / (2 * ratio.value)


def main() -> None:
    """Search, check what was spared, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", nargs="+", default=["auto", "random"], choices=list(AGENTS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--budget", type=int, default=60)
    parser.add_argument("--at-most", type=float, default=0.35)
    parser.add_argument("--depth", type=int, default=20, choices=(20, 32, 56))
    parser.add_argument("--work", type=Path, default=Path(".work"))
    parser.add_argument("--dry", action="store_true", help="print, record nothing")
    options = parser.parse_args()
    folder = real_data_folder()
    if folder is None:
        raise SystemExit("CIFAR-10 and its checkpoints are absent; set PARETOPRESS_TEST_DATA")
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    bound = latency(options.at_most)
    setting = Setting((bound,), MIXED)
    world = World(folder, options.work, options.depth, "sparing", setting=setting)
    rows = []
    for seed in range(options.seeds):
        for agent in options.agents:
            rows.append(compared(world, agent, seed, options.budget, bound))
            print(json.dumps(rows[-1]), flush=True)
    figures = {
        agent: summary([row for row in rows if row["agent"] == agent]) for agent in options.agents
    }
    total = summary(rows)
    print(json.dumps({"total": total, **figures}, indent=2), flush=True)
    if not options.dry:
        record(
            "latency_sparing",
            passed=total["spared"] > 0
            and total["spared_though_feasible"] <= LARGEST_MISTAKE * total["spared"]
            and total["with"]["hypervolume"] >= 0.99 * total["without"]["hypervolume"],
            seed=0,
            depth=options.depth,
            budget=options.budget,
            at_most=options.at_most,
            total=total,
            by_agent=figures,
            rows=rows,
        )


if __name__ == "__main__":
    main()
