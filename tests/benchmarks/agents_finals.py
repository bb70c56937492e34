"""What the agents' winners are worth after one and the same recovery.

    make bench NAME=agents_finals

Reads the winners that `agents_equal_budget` left in `--work`, applies each to the trained network
and recovers all of them alike: recipe, seed, order of data, dense teacher, BatchNorm recalibration.
Equal plans are recovered once; finished rows are kept in `WORK/finals.jsonl`. A winner that was
scored on what the agent trained (a PruningNet, ADMM) goes on from there, as in a job, and is
recovered from the dense network's weights as well.

The recovery is short: the published drops it is set beside were reached with the epochs that are
stated with them, from checkpoints of other trainings. Only held-out accuracy drops are compared.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compression.apply import apply
from compression.artifact import Digest
from compression.certificate import certify
from compression.decisions import PruneChannels
from compression.plan import Plan
from search.catalogue import AGENTS
from tests.benchmarks.agents_world import SETTINGS, World
from tests.benchmarks.cifar_engine import SHAPE, CifarEngine
from tests.benchmarks.compression_peers import Bench, Logits, recovered
from tests.benchmarks.peer_rows import OURS, FinishedRows, Row, Verdict, top1_gain
from tests.benchmarks.record import record
from tests.conftest import real_data_folder

STEM = "finals"

PUBLISHED: Sequence[Mapping[str, Any]] = (
    {"source": "AMC (He et al., ECCV 2018)", "network": "ResNet-56", "macs": 0.5, "drop": 0.9},
    {
        "source": "AMC, reproduced by Distiller",
        "network": "ResNet-20",
        "macs": 0.5,
        "drop": 0.52,
        "epochs": 60,
    },
    {
        "source": "ModelOpt's FastNAS notebook",
        "network": "ResNet-20",
        "macs": 0.73,
        "drop": 0.69,
        "epochs": 120,
    },
    {
        "source": "TAS (Dong & Yang, NeurIPS 2019), distilled",
        "network": "ResNet-20",
        "macs": 0.55,
        "drop": 0.0,
        "epochs": 300,
    },
)
"""Drops in points of top-1 on CIFAR-10, at the share of the MACs that is left."""

CONTROLS = ("uniform", "random")
DENSE = ", from dense weights"


def winners(book: Path, setting: str, seed: int, budget: int) -> dict[str, Row]:
    """Return the searches of one setting and seed that found something, by agent.

    Args:
        book: What `agents_equal_budget` wrote.
        setting: One of `SETTINGS`.
        seed: Of the searches.
        budget: Their trials.
    """
    found: dict[str, Row] = {}
    for line in book.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # The search that writes it is still at work.
        wanted = (row["setting"], row["seed"], row["budget"]) == (setting, seed, budget)
        if wanted and row["best_plan"] is not None:
            found[row["agent"]] = row
    return found


def with_selector(plan: Plan, selector: str | None) -> Plan:
    """Return the same widths by another selector, least squares behind it; None: the plan itself.

    Refitting needs calibration inputs, which proxies of searches do without.
    """
    if selector is None:
        return plan
    table = {
        site: [
            PruneChannels(
                keep_channels=decision.keep_channels, selector=selector, refit="least_squares"
            )
            if isinstance(decision, PruneChannels)
            else decision
            for decision in decisions
        ]
        for site, decisions in plan.decisions
    }
    return Plan.of(table)


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    """Return what every recovered row depends on beside its plan."""
    return {
        "depth": options.depth,
        "seed": options.seed,
        "epochs": options.epochs,
        "steps": options.steps,
        "learning_rate": options.learning_rate,
        "threads": options.threads,
    }


def final_from(bench: Bench, plan: Plan, base: Digest, world: World) -> Row:
    """Return the figures after recovery of a plan that starts from what a preparation left."""

    def make() -> tuple[Row, Logits]:
        figures: Row = {"side": OURS, "plan": plan.to_json()}
        return recovered(bench, world.network(plan, base), figures, 0.0, (), plan.quantize())

    return bench.rows.row("final", f"{plan.digest} from {base}", conditions(bench.options), make)


def final(bench: Bench, plan: Plan) -> Row:
    """Return the figures of a plan after recovery, from an earlier run where there was one."""

    def make() -> tuple[Row, Logits]:
        start = time.perf_counter()
        applied = apply(plan, bench.engine.context)
        certify(bench.engine.dense, applied, plan, SHAPE)
        seconds = time.perf_counter() - start
        figures: Row = {"side": OURS, "plan": plan.to_json()}
        return recovered(
            bench, applied.model, figures, seconds, applied.invariants(), plan.quantize()
        )

    return bench.rows.row("final", plan.digest, conditions(bench.options), make)


def bench_of(options: argparse.Namespace) -> Bench:
    """Return network, data and finished rows.

    Raises:
        SystemExit: The data are absent.
    """
    folder = real_data_folder()
    if folder is None:
        raise SystemExit("CIFAR-10 and its checkpoints are absent; set PARETOPRESS_TEST_DATA")
    options.work.mkdir(parents=True, exist_ok=True)
    engine = CifarEngine.build(folder, options.depth, options.threads)
    return Bench(engine=engine, options=options, rows=FinishedRows(options.work, STEM))


def world_of(options: argparse.Namespace) -> World:
    """Return the job in which the winners were searched."""
    folder = real_data_folder()
    assert folder is not None
    return World(folder, options.work, options.depth, options.setting)


def add_recovery(parser: argparse.ArgumentParser) -> None:
    """Add the options of the one recovery."""
    parser.add_argument("--depth", type=int, default=20, choices=(20, 56))
    parser.add_argument("--epochs", type=float, default=6.0)
    parser.add_argument("--steps", type=int, default=None, help="instead of epochs")
    parser.add_argument("--learning-rate", type=float, default=0.015)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the recovery")
    parser.add_argument("--work", type=Path, default=Path(".work"))
    parser.add_argument("--dry", action="store_true", help="print the verdicts, record nothing")


def shown(row: Row) -> Row:
    """Return a recovered row without its plan and key."""
    return {k: v for k, v in row.items() if k not in ("key", "plan", "name", "side", "widths")}


def main() -> None:
    """Recover the winners that are there, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_recovery(parser)
    parser.add_argument("--setting", default="macs", choices=list(SETTINGS))
    parser.add_argument("--search-seed", type=int, default=0)
    parser.add_argument("--budget", type=int, default=60)
    parser.add_argument("--agents", nargs="+", default=list(AGENTS), choices=list(AGENTS))
    parser.add_argument("--selector", default=None, help="for all plans, with least squares")
    options = parser.parse_args()
    book = options.work / f"searches-{options.depth}.jsonl"
    if not book.exists():
        raise SystemExit(f"{book} is absent; run agents_equal_budget with the same --work first")
    bench = bench_of(options)
    found = winners(book, options.setting, options.search_seed, options.budget)
    rows: dict[str, Row] = {}
    for agent in options.agents:
        if agent in found:
            plan = Plan.from_json(found[agent]["best_plan"])
            base = found[agent].get("best_base")
            if base is not None:
                rows[agent] = final_from(bench, plan, base, world_of(options))
                print(agent, found[agent]["best"], shown(rows[agent]), flush=True)
            name = agent if base is None else f"{agent}{DENSE}"
            rows[name] = final(bench, with_selector(plan, options.selector))
            print(name, found[agent]["best"], shown(rows[name]), flush=True)
    if not rows:
        raise SystemExit(f"{book} has no winners of setting {options.setting!r}")
    gain = functools.partial(top1_gain, known=bench.engine.test[1])
    verdict = Verdict()
    ours = rows.get("auto")
    for agent, row in rows.items():
        if ours is not None and row["key"] != ours["key"]:
            points = gain(bench.rows.logits(ours), bench.rows.logits(row))
            verdict.gain(f"points of top-1, auto against {agent}", points)
    best = max(rows, key=lambda agent: rows[agent]["search_top1_recovered"])
    said: dict[str, Any] = {**verdict.to_json()}
    print(said, "best on search-validation:", best, flush=True)
    beaten = any(f" {control}:" in text for text in verdict.loses for control in CONTROLS)
    if not options.dry:
        record(
            "agents_finals",
            passed=not beaten,
            setting=options.setting,
            search_seed=options.search_seed,
            budget=options.budget,
            selector=options.selector,
            **conditions(options),
            rows={
                name: {"proxy": found[name.removesuffix(DENSE)]["best"], **shown(row)}
                for name, row in rows.items()
            },
            absent=[agent for agent in options.agents if agent not in rows],
            best=best,
            published=PUBLISHED,
            **said,
        )


if __name__ == "__main__":
    main()
