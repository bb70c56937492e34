"""Every agent and every control on the same budget of real proxy trials.

    make bench NAME=agents_equal_budget

Three settings on the trained CIFAR-10 ResNet-20: MACs at most a half; measured latency at most 0.6
of the dense network's; both and the download at most a quarter. Evaluations are kept in `--work`
and never paid for twice, finished searches neither, so that the table can be made in parts.

The accuracy is of proxies on search-validation images: held-out data take no part.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from search.catalogue import AGENTS
from search.front import hypervolume
from search.measurement import Measured
from search.trial import Trial
from tests.benchmarks.agents_world import SETTINGS, Searched, World
from tests.benchmarks.record import record
from tests.conftest import real_data_folder

Row = dict[str, Any]

CHANCE = 10.0
"""Top-1 in per cent of ten classes, for a search that found nothing within its bounds."""

OPTIONS: Mapping[str, Mapping[str, Any]] = {}
"""Options that differ from an agent's defaults, by agent."""


def row_of(found: Searched) -> Row:
    """Return the columns of one search."""
    problem = found.problem
    measured = [t for t in found.trials if isinstance(t.outcome, Measured)]
    feasible = [t for t in measured if problem.rank_key(t)[0] <= 0]
    best = min(feasible, key=problem.rank_key, default=None)
    return {
        "trials": len(found.trials),
        "best": None if best is None else 100 * _value(best, "top1"),
        "best_plan": None if best is None else best.plan.to_json(),
        "best_base": None if best is None else best.base,
        "feasible_share": len(feasible) / max(1, len(found.trials)),
        "hypervolume": volume(found, feasible),
        "agent_s": found.agent_s,
        "trial_s": found.trial_s,
        "agent_share": found.agent_s / max(1e-9, found.agent_s + found.trial_s),
    }


def _value(trial: Trial, metric: str) -> float:
    assert isinstance(trial.outcome, Measured)
    reading = trial.outcome.measurement.get(metric)
    assert reading is not None
    return reading.value


def volume(found: Searched, trials: Sequence[Trial], worst: float = CHANCE) -> float:
    """Return the volume of top-1 against the share of MACs, from `worst` and the dense network.

    Args:
        found: The search.
        trials: Some of it.
        worst: Top-1 in per cent.
    """
    dense = found.problem.baseline.get("macs")
    assert dense is not None
    losses = [(-_value(trial, "top1"), _value(trial, "macs") / dense.value) for trial in trials]
    return hypervolume(losses, (-worst / 100, 1.0))


def table(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """Return, by setting and agent, means over the seeds."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        found.setdefault(row["setting"], {}).setdefault(row["agent"], []).append(row)
    return {
        setting: {agent: _mean(seeds) for agent, seeds in agents.items()}
        for setting, agents in found.items()
    }


def _mean(rows: Sequence[Row]) -> Row:
    rows = sorted(rows, key=lambda row: row["seed"])
    best = [CHANCE if row["best"] is None else row["best"] for row in rows]
    error = float(np.std(best, ddof=1) / math.sqrt(len(best))) if len(best) > 1 else None
    means = {
        key: round(float(np.mean([row[key] for row in rows])), 4)
        for key in ("feasible_share", "hypervolume", "agent_s", "trial_s", "agent_share")
    }
    return {
        "seeds": [row["seed"] for row in rows],
        "bests": [round(value, 3) for value in best],
        "best": round(float(np.mean(best)), 3),
        "standard_error": None if error is None else round(error, 3),
        "on_trained_weights": any(row.get("best_base") is not None for row in rows),
        **means,
    }


def verdict(means: Mapping[str, Mapping[str, Row]]) -> dict[str, Any]:
    """Say in which settings `auto` has the best mean, and where a control beats it.

    Proxies with weights that an agent trained compare with nobody's.
    """
    first, below = [], []
    for setting, agents in means.items():
        if "auto" not in agents:
            continue
        alike = [name for name, row in agents.items() if not row["on_trained_weights"]]
        best = max(alike, key=lambda name: agents[name]["best"])
        first += [setting] if best == "auto" else []
        auto = agents["auto"]
        for control in ("uniform", "random"):
            row = agents.get(control)
            margin = max(auto["standard_error"] or 0.0, (row or {}).get("standard_error") or 0.0)
            if row is not None and auto["best"] < row["best"] - margin:
                below.append(f"{setting}: {control} {row['best']} against {auto['best']}")
    return {"auto_first_in": first, "auto_below_control": below}


def main() -> None:
    """Search what is missing, then record the table of everything in the folder.

    Only a table with `auto` in all settings is judged; others are parts.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--agents", nargs="+", default=list(AGENTS), choices=list(AGENTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="where the seeds start")
    parser.add_argument("--budget", type=int, default=60)
    parser.add_argument("--depth", type=int, default=20, choices=(20, 56))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path(".work"))
    parser.add_argument("--kept", action="store_true", help="search nothing that is missing")
    parser.add_argument("--dry", action="store_true", help="print the table, record nothing")
    options = parser.parse_args()
    folder = real_data_folder()
    if folder is None:
        raise SystemExit("CIFAR-10 and its checkpoints are absent; set PARETOPRESS_TEST_DATA")
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    book = options.work / f"searches-{options.depth}.jsonl"
    known = [json.loads(line) for line in book.read_text().splitlines()] if book.exists() else []
    rows = {(r["setting"], r["agent"], r["seed"], r["budget"]): r for r in known}
    for setting in [] if options.kept else options.settings:
        world = World(folder, options.work, options.depth, setting)
        for seed in seeds:
            for agent in options.agents:
                key = (setting, agent, seed, options.budget)
                if key in rows:
                    continue
                found = world.search(agent, seed, options.budget, OPTIONS.get(agent))
                row = dict(zip(("setting", "agent", "seed", "budget"), key, strict=True))
                rows[key] = {**row, **row_of(found)}
                with book.open("a") as file:
                    file.write(json.dumps(rows[key]) + "\n")
                shown = {k: v for k, v in rows[key].items() if k not in ("best_plan", "best_base")}
                print(json.dumps(shown), flush=True)
    wanted = [
        row
        for (setting, agent, seed, budget), row in rows.items()
        if setting in options.settings and agent in options.agents
        and seed in seeds and budget == options.budget
    ]  # fmt: skip
    means = table(wanted)
    said = verdict(means)
    for setting, agents in means.items():
        for agent, mean in sorted(agents.items(), key=lambda pair: -pair[1]["best"]):
            print(setting, agent, mean, flush=True)
    print(said, flush=True)
    if not options.dry:
        whole = all("auto" in means.get(setting, {}) for setting in SETTINGS)
        passed = len(said["auto_first_in"]) >= 2 and not said["auto_below_control"]
        record(
            "agents_equal_budget",
            passed=passed if whole else None,
            seed=0,
            depth=options.depth,
            budget=options.budget,
            table=means,
            **said,
        )


if __name__ == "__main__":
    main()
