"""How well latency is foretold from few measurements, and what that spares a search.

    make bench NAME=latency_model

Real timings of the CIFAR ResNet-20 on this machine: those that `agents_equal_budget --work DIR`
kept (`--evaluations DIR/evaluations-20-latency.jsonl ...`), or else of random plans that are
measured here. Networks are split at random, `--known` readings to learn from and the rest to
foretell, `--repeats` times; readings of one network never stand on both sides.

A loaded machine slows INT8 down more than floats (`search/latency/fit.py`), so every figure is
given twice: with the load told by the dense time beside the reading, and blind, as a proposal is
judged before it is measured. `noise` is by how much two readings of the same network differ.

Features were chosen on plans with an even digest: `--half odd` reports on the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import spearmanr

from compression.artifact import ModelArtifact
from compression.cost import CostTable
from compression.models.registry import build
from compression.plan import Plan
from compression.survey import survey
from search.history import generator
from search.latency.model import LatencyModel
from search.latency.observation import Observation, observed
from search.latency.shape import signature
from search.measurement import Measured, Measurement, outcome_from_json
from search.trial import Fidelity, Trial, state_of
from tests.benchmarks.agents_world import World, latency
from tests.benchmarks.record import record
from tests.conftest import real_data_folder
from workers.latency_book import LatencyBook

DEVICE, STATISTIC = "local/onnxruntime", "p50"
LARGEST_ERROR, LEAST_CORRELATION = 0.08, 0.9
SEARCH = 60
"""Trials of one search, for replays in which no search knows of another's readings."""

Half = Literal["all", "even", "odd"]


def trials_in(files: Sequence[Path]) -> Iterator[Trial]:
    """Yield kept proxies of the dense network's plans in the order of their evaluation."""
    number = 0
    for file in files:
        for line in file.read_text().splitlines():
            row = json.loads(line)
            _, fidelity, base, preparation = row["key"].split(" ")
            if fidelity != Fidelity.PROXY or base or preparation:
                continue
            outcome = outcome_from_json(row["outcome"])
            number += 1
            yield Trial(
                id=f"trl_{number}",
                number=number,
                plan=Plan.from_json(row["plan"]),
                fidelity=Fidelity.PROXY,
                seed=0,
                agent="kept",
                state=state_of(outcome),
                outcome=outcome,
            )


def measured_here(folder: Path, work: Path, depth: int, count: int) -> list[Trial]:
    """Measure random plans; what the folder of work holds is not measured again."""
    world = World(folder, work, depth, "latency")
    problem = world.problem(seed=0, budget=count)
    for number in range(count):
        rng = generator(problem, number)
        point = [int(rng.integers(len(knob.choices))) for knob in problem.space.knobs]
        world.measure(problem.space.decode(point))
    return list(trials_in([work / f"evaluations-{depth}-latency.jsonl"]))


def accuracy(
    costs: CostTable, known: Sequence[Observation], count: int, repeats: int
) -> dict[str, float]:
    """Return errors, rank correlations and coverage on networks that were not learned from."""
    names = [signature(costs, o.plan) for o in known]
    rows: list[dict[str, float]] = []
    for repeat in range(repeats):
        order = np.random.default_rng(repeat).permutation(len(known))
        model = LatencyModel(costs, [known[i] for i in order[:count]])
        seen = {names[i] for i in order[:count]}
        unseen = [known[i] for i in order[count:] if names[i] not in seen]
        told = [model.foretell(o.plan, o.dense_ms) for o in unseen]
        blind = [model.foretell(o.plan) for o in unseen]
        truth = np.array([o.ratio.value for o in unseen])
        fastest = min(o.dense_ms for o in known)
        idle = np.array([o.dense_ms < 1.1 * fastest for o in unseen])
        row: dict[str, float] = {}
        for name, found in (("told", told), ("blind", blind)):
            ratios = [f.ratio for f in found if f is not None]
            assert len(ratios) == len(unseen), "a plan in a precision that was never learned"
            value = np.array([r.value for r in ratios])
            error = np.abs(value / truth - 1)
            row[f"{name}_error"] = float(np.median(error))
            row[f"{name}_correlation"] = float(spearmanr(value, truth)[0])
            row[f"{name}_coverage"] = float(
                np.mean([r.low <= t <= r.high for r, t in zip(ratios, truth, strict=True)])
            )
            row[f"{name}_width"] = float(np.median([r.high / r.low for r in ratios]))
            if name == "told" and idle.sum() > 5:
                row["idle_error"] = float(np.median(error[idle]))
                row["idle_correlation"] = float(spearmanr(value[idle], truth[idle])[0])
        rows.append(row)
    keys = sorted({key for row in rows for key in row})
    return {k: round(float(np.mean([r[k] for r in rows if k in r])), 4) for k in keys}


def noise(costs: CostTable, known: Sequence[Observation]) -> dict[str, float]:
    """Return how far readings of one network lie apart: median of |log ratio| over pairs."""
    same: dict[str, list[float]] = {}
    for o in known:
        same.setdefault(signature(costs, o.plan), []).append(math.log(o.ratio.value))
    gaps = [abs(a - b) for logs in same.values() for i, a in enumerate(logs) for b in logs[i + 1 :]]
    return {"pairs": len(gaps), "noise": round(float(np.median(gaps)), 4) if gaps else 0.0}


def replay(
    costs: CostTable, dense: Measurement, trials: Sequence[Trial], at_most: float
) -> dict[str, Any]:
    """Return what pruning would have made of recorded proposals.

    Args:
        costs: Of the dense network.
        dense: Its readings.
        trials: In the order in which they were evaluated.
        at_most: Bound on latency, as a share of the dense network's.
    """
    bound = latency(at_most)
    book = LatencyBook(costs, (bound,), dense)
    pruned: list[Trial] = []
    kept: list[Trial] = []
    for trial in trials:
        proposed = dataclasses.replace(trial, outcome=None)
        if book.hopeless(proposed) is None:
            kept.append(trial)
            book.learn(trial)
        else:
            pruned.append(trial)

    def holds(trial: Trial) -> bool:
        assert isinstance(trial.outcome, Measured)
        return bound.violation(trial.outcome.measurement, dense) <= 0

    def best(among: Sequence[Trial]) -> float | None:
        return max((_top1(t) for t in among if holds(t)), default=None)

    return {
        "proposals": len(trials),
        "missing_the_bound": sum(not holds(t) for t in trials),
        "pruned": len(pruned),
        "pruned_though_feasible": sum(holds(t) for t in pruned),
        "same_best": best(kept) == best(trials),
    }


def _top1(trial: Trial) -> float:
    assert isinstance(trial.outcome, Measured)
    reading = trial.outcome.measurement.get("top1")
    assert reading is not None
    return reading.value


def cost_table(depth: int) -> CostTable:
    """Return the costs of a CIFAR ResNet; they do not depend on its weights."""
    shape = (3, 32, 32)
    model = ModelArtifact(
        weights=None,
        format="safetensors",
        architecture=f"cifar_resnet{depth}",
        input_shape=shape,
        num_classes=10,
    )
    return survey(build(model).eval(), shape).costs


def main() -> None:
    """Foretell, replay, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=Path, nargs="+", default=[])
    parser.add_argument("--work", type=Path, default=Path(".work"))
    parser.add_argument("--measure", type=int, default=120, help="plans, without evaluations")
    parser.add_argument("--depth", type=int, default=20, choices=(20, 32, 56))
    parser.add_argument("--known", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--at-most", type=float, default=0.6)
    parser.add_argument("--half", default="all", choices=("all", "even", "odd"))
    parser.add_argument("--dry", action="store_true", help="print, record nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.evaluations:
        trials = list(trials_in(options.evaluations))
    else:
        folder = real_data_folder()
        if folder is None:
            raise SystemExit("CIFAR-10 and its checkpoints are absent; set PARETOPRESS_TEST_DATA")
        options.work.mkdir(parents=True, exist_ok=True)
        trials = measured_here(folder, options.work, options.depth, options.measure)
    costs = cost_table(options.depth)
    (dense, *_) = [t.outcome.measurement for t in trials
                   if isinstance(t.outcome, Measured) and not t.plan.decisions]  # fmt: skip
    timed = [t for t in trials if t.plan.decisions and observed(t, DEVICE, STATISTIC)]
    known = [o for t in timed if (o := observed(t, DEVICE, STATISTIC)) and _in(t, options.half)]
    figures = accuracy(costs, known, options.known, options.repeats)
    alone = [timed[i : i + SEARCH] for i in range(0, len(timed), SEARCH)]
    replays = {
        "one_memory": replay(costs, dense, timed, options.at_most),
        "each_search_alone": _sum([replay(costs, dense, part, options.at_most) for part in alone]),
    }
    spoiled = sum(found["pruned_though_feasible"] for found in replays.values())
    row = {
        "readings": len(known),
        "known": options.known,
        "repeats": options.repeats,
        "half": options.half,
        **figures,
        **noise(costs, known),
        "replays": replays,
    }
    print(json.dumps(row, indent=2))
    if not options.dry:
        record(
            "latency_model",
            passed=figures["told_error"] <= LARGEST_ERROR
            and figures["told_correlation"] >= LEAST_CORRELATION
            and spoiled <= 0.01 * len(timed)
            and all(found["same_best"] for found in replays.values()),
            seed=0,
            depth=options.depth,
            **row,
        )


def _sum(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    counts = {k: sum(f[k] for f in found) for k in found[0] if k != "same_best"}
    return {**counts, "same_best": all(f["same_best"] for f in found)}


def _in(trial: Trial, half: Half) -> bool:
    return half == "all" or (int(trial.plan.digest[-1], 16) % 2 == 1) == (half == "odd")


if __name__ == "__main__":
    main()
