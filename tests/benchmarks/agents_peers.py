"""Peers and our agents on one network, one bound and one recovery: ResNet-20, half the MACs.

    make bench NAME=agents_peers

* `ours`: winners of our agents, searched with the same budget of proxies.
* `optuna`: its samplers as its documentation shows them, over the same groups of channels, with
  the bound as a constraint (a penalty for CMA-ES, which knows none) and no repair of ours.
* `torch_pruning`: its rankings of the inner widths, at the smallest ratio that keeps the bound. It
  is not bound to even widths, searches nothing and pays for no proxy.
* `modelopt`: NVIDIA's FastNAS, through `--modelopt-python`: the interpreter of an environment with
  nvidia-modelopt, its dependencies and this project's. It ends when its own procedure does.

Every network is scored by the same proxy (recalibrated BatchNorm, search-validation images) and
recovered alike by `agents_finals`. Held-out data are reported, never chosen by.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import optuna
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from compression.models.cifar_resnet import CifarResNet
from compression.plan import Plan
from search.measurement import Measurement
from search.problem import Problem
from search.trial import Fidelity
from tests.benchmarks import peer_pruners
from tests.benchmarks.agents_equal_budget import row_of
from tests.benchmarks.agents_finals import (
    add_recovery,
    bench_of,
    conditions,
    final,
    shown,
    winners,
)
from tests.benchmarks.agents_world import World
from tests.benchmarks.compression_peers import Bench, Logits, recovered
from tests.benchmarks.peer_pruners import CONTENDERS, PeerPruner, pruned_to
from tests.benchmarks.peer_rows import OURS, PEER, Row, Verdict, top1_gain
from tests.benchmarks.record import record
from tests.conftest import real_data_folder
from workers.meters.accuracy import accuracy

SETTING = "macs"
MAX_MACS = 0.5
OUR_AGENTS = ("auto", "netadapt", "cbo", "amc")
ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True, eq=False)
class Contest:
    """What all parts share."""

    bench: Bench
    world: World

    @property
    def options(self) -> argparse.Namespace:
        """Of the run."""
        return self.bench.options

    @property
    def searching(self) -> dict[str, Any]:
        """What a search depends on."""
        options = self.options
        return {"depth": options.depth, "seed": options.search_seed, "budget": options.budget}

    def proxy_top1(self, model: nn.Module) -> float:
        """Return points of top-1 of a network as a proxy of a trial would read them."""
        context, model = self.world.context, copy.deepcopy(model)
        context.recalibrate(model)
        images, labels = context.part(Fidelity.PROXY)
        logits = context.score_module(model, images)
        dense = context.dense_logits(Fidelity.PROXY)
        return 100 * accuracy(logits, labels, dense, "search")[0].value

    def recover_plan(self, found: Row, plan: Plan) -> Row:
        """Return what was found, and the plan's network after recovery."""
        return {**found, **_recovered_columns(final(self.bench, plan))}

    def recover_network(self, found: Row, model: nn.Module) -> Row:
        """Return what was found, and the network after recovery; equal ones are trained once."""

        def make() -> tuple[Row, Logits]:
            return recovered(self.bench, copy.deepcopy(model), {"side": PEER}, 0.0, ())

        name, known = _digest(model), conditions(self.options)
        row = self.bench.rows.row("final", name, known, make)
        return {**found, **_recovered_columns(row)}


def _recovered_columns(row: Row) -> Row:
    return {**{k: v for k, v in row.items() if k not in ("name", "side", "plan")}}


def _digest(model: nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def ours(contest: Contest) -> list[Row]:
    """Return our agents' winners, found by `agents_equal_budget` or now."""
    options = contest.options
    book = options.work / f"searches-{options.depth}.jsonl"
    known = winners(book, SETTING, options.search_seed, options.budget) if book.exists() else {}
    rows = []
    for agent in options.agents:
        found = known.get(agent)
        if found is None:
            searched = contest.world.search(agent, options.search_seed, options.budget)
            found = row_of(searched)
        row = {
            "name": f"ours, {agent}",
            "side": OURS,
            "proxy": found["best"],
            "evaluations": found["trials"],
            "feasible_share": round(found["feasible_share"], 3),
            "search_s": round(found["agent_s"] + found["trial_s"], 1),
        }
        if found["best_plan"] is None:
            rows.append({**row, "failed": "no plan within the bound"})
        else:
            rows.append(contest.recover_plan(row, Plan.from_json(found["best_plan"])))
    return rows


def _samplers(seed: int) -> Mapping[str, optuna.samplers.BaseSampler]:
    """Return Optuna's samplers, seeded, all else as it comes."""
    samplers = optuna.samplers
    return {
        "TPE": samplers.TPESampler(seed=seed),
        "NSGA-II": samplers.NSGAIISampler(seed=seed),
        "GP": samplers.GPSampler(seed=seed),
        "CMA-ES": samplers.CmaEsSampler(seed=seed),
    }


def optuna_search(contest: Contest, name: str) -> tuple[Row, None]:
    """Return the best plan within the bound that a sampler found, and what that took."""
    world, options = contest.world, contest.options
    problem: Problem = world.problem(options.search_seed, options.budget)
    knobs, found = problem.space.knobs, list[tuple[bool, float, Plan]]()
    constrained = name != "CMA-ES"

    def objective(trial: optuna.Trial) -> float:
        point = [trial.suggest_int(knob.name, 0, len(knob.choices) - 1) for knob in knobs]
        plan = problem.space.decode(point)
        measurement: Measurement = world.measure(plan)
        excess = max(problem.violations(measurement))
        if constrained:
            trial.set_constraint(SETTING, excess)
        reading = measurement.get("top1")
        assert reading is not None
        found.append((excess <= 0, reading.value, plan))
        return reading.value if constrained else reading.value - max(0.0, excess)

    sampler = _samplers(options.search_seed)[name]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    begin, before = time.perf_counter(), world.spent_s
    study.optimize(objective, n_trials=options.budget)
    wall_s, evaluated_s = time.perf_counter() - begin, world.spent_s - before
    feasible = [(top1, plan) for holds, top1, plan in found if holds]
    best = max(feasible, key=lambda pair: pair[0], default=None)
    row = {
        "side": PEER,
        "proxy": None if best is None else 100 * best[0],
        "evaluations": len(found),
        "feasible_share": round(len(feasible) / len(found), 3),
        # Proxies known from an earlier search count at what they cost then.
        "search_s": round(max(wall_s, evaluated_s), 1),
        "best_plan": None if best is None else best[1].to_json(),
    }
    return row, None


def optuna_rows(contest: Contest) -> list[Row]:
    """Return one row for each sampler."""
    rows = []
    for name in _samplers(0):
        found = contest.bench.rows.row(
            "optuna",
            f"optuna {name}",
            contest.searching,
            functools.partial(optuna_search, contest, name),
        )
        plan = found["best_plan"]
        # The key is that of the search; a network has its own.
        row = {k: v for k, v in found.items() if k not in ("best_plan", "key")}
        if plan is None:
            rows.append({**row, "failed": "no plan within the bound"})
        else:
            rows.append(contest.recover_plan(row, Plan.from_json(plan)))
    return rows


def torch_pruning_row(contest: Contest, peer: PeerPruner) -> Row:
    """Return a ranking's network, recovered."""
    dense, start = contest.bench.engine.dense, time.perf_counter()
    assert isinstance(dense, CifarResNet)
    limit = int(MAX_MACS * contest.bench.engine.context.survey.summary["macs"])
    row: Row = {"name": peer.name, "side": PEER, "evaluations": 0}
    try:
        made = pruned_to(dense, peer, limit, contest.bench.engine.context.module.batches)
    except (RuntimeError, ValueError, IndexError) as error:
        return {**row, "failed": str(error).split("\n", 1)[0][:200]}
    row["search_s"] = round(time.perf_counter() - start, 1)
    row["misaligned_channels"] = made.misaligned
    row["proxy"] = contest.proxy_top1(made.model)
    return contest.recover_network(row, made.model)


def torch_pruning_rows(contest: Contest) -> list[Row]:
    """Return one row for each ranking of the inner widths."""
    if not peer_pruners.installed():
        return [{"name": "torch_pruning", "side": PEER, "failed": "it is not installed"}]
    return [torch_pruning_row(contest, peer) for peer in CONTENDERS if peer.keeps_stream]


def with_state(dense: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Return the network with the weights, and the widths, of `state`."""
    model = copy.deepcopy(dense)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            weight = state[f"{name}.weight"]
            module.out_channels, module.in_channels = weight.shape[:2]
            module.weight = nn.Parameter(weight.clone())
        elif isinstance(module, nn.BatchNorm2d):
            module.num_features = len(state[f"{name}.weight"])
            for key in ("weight", "bias"):
                setattr(module, key, nn.Parameter(state[f"{name}.{key}"].clone()))
            for key in ("running_mean", "running_var"):
                setattr(module, key, state[f"{name}.{key}"].clone())
    model.load_state_dict(dict(state))
    return model.eval()


def modelopt_rows(contest: Contest) -> list[Row]:
    """Return FastNAS's row; why there is none, where there is none."""
    options = contest.options
    row: Row = {"name": "modelopt FastNAS", "side": PEER}
    if options.modelopt_python is None:
        return [{**row, "failed": "skipped: --modelopt-python names no interpreter"}]
    limit = int(MAX_MACS * contest.bench.engine.context.survey.summary["macs"])
    out = options.work / f"modelopt-{options.depth}-{limit}"
    note, weights = out / "found.json", out / "weights.safetensors"
    if not note.exists():
        order = [
            str(options.modelopt_python), "-m", "tests.benchmarks.modelopt_fastnas",
            "--macs", str(limit), "--depth", str(options.depth), "--threads", str(options.threads),
            "--work", str(options.work.resolve()), "--out", str(out.resolve()),
        ]  # fmt: skip
        done = subprocess.run(order, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().rsplit("\n", 1)[-1][:300]
            return [{**row, "failed": said}]
    told = json.loads(note.read_text())
    model = with_state(contest.bench.engine.dense, load_file(str(weights)))
    row |= {
        "version": told["version"],
        "proxy": contest.proxy_top1(model),
        "evaluations": told["scores"],
        "search_s": round(told["search_s"], 1),
    }
    return [contest.recover_network(row, model)]


PARTS: Mapping[str, Callable[[Contest], list[Row]]] = {
    "ours": ours,
    "torch_pruning": torch_pruning_rows,
    "optuna": optuna_rows,
    "modelopt": modelopt_rows,
}


def compared(contest: Contest, rows: Sequence[Row]) -> Verdict:
    """Return our best network on search-validation against each peer's, on held-out data."""
    verdict = Verdict()
    logits, known = contest.bench.rows.logits, contest.bench.engine.test[1]
    own = [row for row in rows if row["side"] == OURS and "key" in row]
    if own:
        best = max(own, key=lambda row: row["search_top1_recovered"])
        for row in rows:
            if row["side"] == PEER and "key" in row:
                gain = top1_gain(logits(best), logits(row), known)
                verdict.gain(f"points of top-1, {best['name']} against {row['name']}", gain)
    return verdict


def main() -> None:
    """Run the parts that were asked for and set them side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_recovery(parser)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--agents", nargs="+", default=list(OUR_AGENTS))
    parser.add_argument("--search-seed", type=int, default=0)
    parser.add_argument("--budget", type=int, default=60)
    parser.add_argument("--modelopt-python", type=Path, default=None)
    options = parser.parse_args()
    bench, folder = bench_of(options), real_data_folder()
    assert folder is not None
    torch.set_num_threads(options.threads)
    contest = Contest(bench, World(folder, options.work, options.depth, SETTING, train_files=1))
    rows: list[Row] = []
    for part in options.parts:
        for row in PARTS[part](contest):
            rows.append(row)
            print(row["name"], shown(row), flush=True)
    verdict = compared(contest, rows)
    said: dict[str, Any] = {**verdict.to_json()}
    print(said, flush=True)
    if not options.dry:
        record(
            "agents_peers",
            passed=not verdict.loses,
            max_macs=MAX_MACS,
            search=contest.searching,
            **conditions(options),
            rows={row["name"]: shown(row) for row in rows},
            torch_pruning=metadata.version("torch-pruning") if peer_pruners.installed() else None,
            **said,
        )


if __name__ == "__main__":
    main()
