"""What the papers of agents that train claim, at the size of one core: ResNet-20, CIFAR-10.

    make bench NAME=agents_claims_trained

* `pruning_net` (MetaPruning, ICCV 2019): the weights that a PruningNet generates rank networks as
  short trainings from scratch do: Kendall's tau above 0.3.
* `tas` (TAS, NeurIPS 2019): what the search decides costs what it was told to, and width and depth
  together are no worse than either alone, after the same short training (`agents_claims_tas`).
* `distillation` (TAS): the same short trainings with and without the dense teacher, of TAS's plan
  and of the uniform one: what is the architecture's, and what the teacher's.
* `admm` (AutoCompress, AAAI 2020): at a fifth of the parameters, annealing and ADMM beat one-shot
  uniform L1 widths that got as many training steps.
* `purification` (AutoCompress): channels can go afterwards for at most 0.1 points.
* `purification_deep`: likewise on ResNet-56, from ADMM towards uniform widths at half the MACs.

The papers train for hundreds of epochs; here it is hundreds of steps, and the plans' trainings end
long before they converge. So a part says "reproduced" or "not reproduced" at this size, with its
figures, and nothing of the size of the papers. Networks are compared on all search-validation
images, held-out data take no part. What is finished is kept in `--work`.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import nn

from compression.counting import count_params
from compression.methods import Methods
from compression.plan import Plan
from compression.recover.purification import purify, strengths
from compression.recover.scratch import scratch
from compression.recover.training import Recipe
from compression.survey import survey
from search.agent import Evaluate, Prepare
from search.measurement import Measured
from search.objective import Constraint
from search.repair import as_point
from search.sampling import draw
from search.trial import PREPARED_ROLE, Fidelity, Trial
from tests.benchmarks.agents_claims import at_most
from tests.benchmarks.agents_claims_tas import distillation, tas
from tests.benchmarks.agents_training import (
    TrainingBench,
    prepared,
    three,
    uniform_plans,
)
from tests.benchmarks.agents_world import Setting, World
from tests.benchmarks.peer_rows import FinishedRows, Row, top1_gain
from tests.benchmarks.record import record
from tests.conftest import real_data_folder
from workers.meters.accuracy import accuracy

LEAST_PARAMS = 0.2
SCRATCH_RATE = 0.1
FINE = Methods(allow=("prune_channels",), channel_multiple=1, selectors=("l2",))


def pruning_net(bench: TrainingBench) -> tuple[bool, Row]:
    """Kendall's tau of generated weights and of trainings from scratch, plans of all sizes."""
    options, world = bench.options, bench.world("macs-trained", at_most(0.5))
    order = Prepare(kind="pruning_net", options={"steps": options.net_steps})
    base = prepared(world, order).artifacts[PREPARED_ROLE]
    problem = world.problem(0, options.nets)
    drawn = draw(problem.space, np.random.default_rng(8), options.nets)
    plans = [problem.space.decode(as_point(row)) for row in drawn]
    columns: dict[str, list[float]] = {name: [] for name in ("generated", "macs", "scratch")}
    for plan in dict.fromkeys(plans):
        outcome = world.carry_out(Evaluate(plan=plan, base=base)).outcome
        assert isinstance(outcome, Measured), outcome
        top1, macs = (outcome.measurement.get(name) for name in ("top1", "macs"))
        assert top1 is not None
        assert macs is not None
        small = _fresh(world, plan, int(macs.value), options)
        row = bench.trained(
            world,
            f"scratch {plan.digest}",
            small,
            steps=options.scratch_steps,
            rate=SCRATCH_RATE,
            distils=False,
        )
        for name, value in zip(columns, (100 * top1.value, macs.value, row["top1"]), strict=True):
            columns[name].append(value)
    tau = {name: _tau(columns[name], columns["scratch"]) for name in ("generated", "macs")}
    figures = {
        "nets": len(columns["scratch"]),
        "net_steps": options.net_steps,
        "scratch_steps": options.scratch_steps,
        "kendall_tau": tau["generated"],
        "kendall_tau_of_macs": tau["macs"],
        "scratch_top1": [min(columns["scratch"]), max(columns["scratch"])],
        "generated_top1": [min(columns["generated"]), max(columns["generated"])],
    }
    return tau["generated"][0] > 0.3, figures


def _fresh(
    world: World, plan: Plan, macs: int, options: argparse.Namespace
) -> Callable[[], nn.Module]:
    """Return how the plan's network is made with random weights."""
    dense_macs = world.context.survey.summary["macs"]

    def make() -> nn.Module:
        model = world.network(plan)
        generator = torch.Generator().manual_seed(options.seed)
        return scratch(model, Recipe(), "E", dense_macs=dense_macs, macs=macs, generator=generator)[
            0
        ]

    return make


def _tau(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Return Kendall's tau-b and its p-value."""
    found = kendalltau(one, other)
    return round(float(found.statistic), 3), round(float(found.pvalue), 4)


def _autocompressed(bench: TrainingBench, world: World) -> Trial:
    """Return the best trial within the bound whose network ADMM left."""
    options = bench.options
    settings = {
        "rounds": options.rounds,
        "admm_steps": options.admm_steps,
        "retrain_steps": options.retrain_steps,
        # Purification is a claim of its own.
        "purify": False,
    }
    found = world.search("autocompress", options.seed, options.budget, settings)
    within = [t for t in found.trials if found.problem.rank_key(t)[0] <= 0]
    trained = [trial for trial in within if trial.base is not None]
    if not trained:
        raise RuntimeError("AutoCompress measured no plan within the bound after ADMM")
    return min(trained, key=found.problem.rank_key)


def _params_world(bench: TrainingBench) -> World:
    bound = Constraint(metric="params", at_most=LEAST_PARAMS, relative_to="baseline")
    return bench.world("params-trained", Setting((bound,), FINE))


def admm(bench: TrainingBench) -> tuple[bool, Row]:
    """Annealing and ADMM against uniform L1 of the same size, at equal steps after and in all."""
    options, world = bench.options, _params_world(bench)
    trial = _autocompressed(bench, world)
    costs = world.context.survey.costs
    params = costs.cost(trial.plan).params
    # What rounding leaves is the peer's: the narrowest share that is no smaller than ours.
    wider = [p for p in uniform_plans(world, "l1") if costs.cost(p).params >= params]
    uniform = wider[-1]
    before = options.rounds * (3 * options.admm_steps + options.retrain_steps)
    ours = bench.trained(
        world,
        f"plan {trial.plan.digest} of {trial.base}",
        functools.partial(world.network, trial.plan, trial.base),
        steps=options.train_steps,
    )
    name, make = f"plan {uniform.digest}", functools.partial(world.network, uniform)
    short = bench.trained(world, name, make, steps=options.train_steps)
    long = bench.trained(world, name, make, steps=before + options.train_steps)
    gains = {"equal_steps_in_all": bench.gain(world, ours, long)}
    gains["equal_steps_after"] = bench.gain(world, ours, short)
    figures = {
        "budget": options.budget,
        "steps": {"before": before, "after": options.train_steps},
        "params": {"admm": params, "l1": costs.cost(uniform).params},
        "params_share": round(params / world.context.survey.summary["params"], 4),
        "macs": {"admm": costs.cost(trial.plan).macs, "l1": costs.cost(uniform).macs},
        "top1": {"admm": ours["top1"], "l1": short["top1"], "l1, steps in all": long["top1"]},
        "gain": {name: three(gain) for name, gain in gains.items()},
    }
    return gains["equal_steps_in_all"].low > 0, figures


def purification(bench: TrainingBench) -> tuple[bool, Row]:
    """What can be dropped of the network that ADMM left, judged on images of the training split."""
    world = _params_world(bench)
    trial = _autocompressed(bench, world)
    return _purified(world, world.network(trial.plan, trial.base))


def purification_deep(bench: TrainingBench) -> tuple[bool, Row]:
    """Likewise of ResNet-56 after one ADMM training towards uniform widths at half the MACs."""
    world = bench.world("macs-trained-56", at_most(0.5, FINE), 56)
    costs = world.context.survey.costs
    half = 0.5 * world.context.survey.summary["macs"]
    plan = next(p for p in uniform_plans(world, "l2") if costs.cost(p).macs <= half)
    options = {
        "steps": bench.options.admm_steps,
        "retrain_steps": bench.options.retrain_steps,
        "purify": False,
    }
    base = prepared(world, Prepare(kind="admm", plan=plan, options=options))
    passed, figures = _purified(world, world.network(plan, base.artifacts[PREPARED_ROLE]))
    return passed, {"depth": 56, **figures}


def _purified(world: World, model: nn.Module) -> tuple[bool, Row]:
    """Return whether channels of a network can go for nothing, and what is left of it."""
    context = world.context
    context.recalibrate(model)
    couplings = tuple(
        context.context_of(
            model, survey(model, context.spec.model.input_shape)
        ).module.rankings.couplings.values()
    )
    images, labels = context.data.part("train")
    few = (images[:2000], None if labels is None else labels[:2000])

    def points(network: nn.Module) -> float:
        return (
            100 * accuracy(context.score_module(network, few[0]), few[1], None, "search")[0].value
        )

    found = purify(
        model,
        couplings,
        {coupling.name: range(1, coupling.channels + 1) for coupling in couplings},
        recalibrate=context.recalibrate,
        score=points,
    )
    images, labels = context.part(Fidelity.FULL)
    assert labels is not None
    logits = [context.score_module(network, images) for network in (found.model, model)]
    gain = top1_gain(logits[0], logits[1], labels)
    figures = {
        "removed_channels": found.removed,
        "threshold": found.threshold,
        "weakest": round(min(float(s.min()) for s in strengths(model, couplings).values()), 3),
        "params": [count_params(model), count_params(found.model)],
        "training_points": [round(found.before, 3), round(found.after, 3)],
        "search_validation_gain": three(gain),
    }
    return found.removed > 0 and gain.value >= -0.1, figures


PARTS: Mapping[str, Callable[[TrainingBench], tuple[bool, Row]]] = {
    "pruning_net": pruning_net,
    "tas": tas,
    "distillation": distillation,
    "admm": admm,
    "purification": purification,
    "purification_deep": purification_deep,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Try the parts that were asked for; each records its own line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-files", type=int, default=2, help="fifths of the training images")
    parser.add_argument("--nets", type=int, default=15)
    parser.add_argument("--net-steps", type=int, default=600, help="of the PruningNet")
    parser.add_argument("--scratch-steps", type=int, default=500)
    parser.add_argument("--tas-steps", type=int, default=400, help="pairs of steps")
    parser.add_argument("--train-steps", type=int, default=300, help="of every plan")
    parser.add_argument("--budget", type=int, default=30, help="of AutoCompress")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--admm-steps", type=int, default=150, help="at each of three penalties")
    parser.add_argument("--retrain-steps", type=int, default=300)
    parser.add_argument("--work", type=Path, default=Path(".work"))
    parser.add_argument("--dry", action="store_true", help="print the figures, record nothing")
    options = parser.parse_args(arguments)
    folder = real_data_folder()
    if folder is None:
        raise SystemExit("CIFAR-10 and its checkpoints are absent; set PARETOPRESS_TEST_DATA")
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    bench = TrainingBench(folder, options, FinishedRows(options.work, "trained"))
    for part in options.parts:
        begin = time.perf_counter()
        passed, figures = PARTS[part](bench)
        print(part, passed, figures, flush=True)
        if options.dry:
            continue
        record(
            "agents_claims_trained",
            passed=passed,
            seed=options.seed,
            part=part,
            verdict="reproduced" if passed else "not reproduced",
            train_images=10_000 * options.train_files,
            wall_s=round(time.perf_counter() - begin),
            **figures,
        )


if __name__ == "__main__":
    main()
