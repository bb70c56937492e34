"""What one request costs the agents, beside the trial it is for.

Processor time of one `ask` on one core, after a told trial, so that surrogates are fitted anew; the
wall clock beside it says how busy the machine was. Target: at most 1 s for 55 sites and 200
observations with every form of `cbo`; the other agents stand beside it. The share is of a trial
of one second.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from typing import Any

from search.catalogue import create
from search.objective import Objective
from search.trial import Trial
from tests.benchmarks.record import record
from tests.synthetic import LATENCY, TOP1, Loop, Net, latency_at_most, macs_at_most

SITES = (9, 27, 55)
OBSERVATIONS = (50, 200)
TARGET_S = 1.0
TRIAL_S = 1.0
SEED = 0
BOUNDS = (macs_at_most(0.3), latency_at_most(0.35))

AGENTS: Mapping[str, tuple[str, Mapping[str, Any], tuple[Objective, ...]]] = {
    "cbo, improvement": ("cbo", {"trust_region": "off", "parametrisation": "full"}, (TOP1,)),
    "cbo, trust region": ("cbo", {"trust_region": "on", "parametrisation": "full"}, (TOP1,)),
    "cbo, three numbers": ("cbo", {"parametrisation": "three"}, (TOP1,)),
    "cbo, two objectives": ("cbo", {"front": "nehvi", "trust_region": "off"}, (TOP1, LATENCY)),
    "tpe": ("tpe", {}, (TOP1,)),
    "gp": ("gp", {}, (TOP1,)),
    "nsga2": ("nsga2", {}, (TOP1,)),
    "random": ("random", {}, (TOP1,)),
}


def told(net: Net, count: int) -> list[Trial]:
    """Return finished trials of a random search."""
    problem = net.problem(BOUNDS, budget=count, seed=SEED)
    return Loop(net, create("random", problem, {}), seed=SEED).run(count)


def cost(name: str, sites: int, trials: list[Trial], asks: int) -> dict[str, Any]:
    """Return seconds per request of one agent that knows `trials` but the last few."""
    agent_name, options, objectives = AGENTS[name]
    net = Net(d=sites, noise=0.02)
    known = len(trials) - asks
    problem = net.problem(BOUNDS, objectives, budget=len(trials), seed=SEED)
    agent = create(agent_name, problem, options)
    agent.tell(trials[:known])
    agent.ask(3)
    cpu_s, wall_s = [], []
    for trial in trials[known:]:
        agent.tell([trial])
        cpu, wall = time.process_time(), time.perf_counter()
        agent.ask(1)
        cpu_s.append(time.process_time() - cpu)
        wall_s.append(time.perf_counter() - wall)
    return {
        "agent": name,
        "sites": sites,
        "observations": len(trials),
        "cpu_s": round(statistics.median(cpu_s), 4),
        "cpu_s_max": round(max(cpu_s), 4),
        "wall_s": round(statistics.median(wall_s), 4),
        "share_of_trial": round(statistics.median(cpu_s) / TRIAL_S, 4),
    }


def main() -> None:
    """Measure every agent at every size and record the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--asks", type=int, default=5, help="timed requests per row")
    asks = parser.parse_args().asks
    rows = []
    for sites in SITES:
        for count in OBSERVATIONS:
            trials = told(Net(d=sites, noise=0.02), count)
            for name in AGENTS:
                rows.append(cost(name, sites, trials, asks))
                print(rows[-1], flush=True)
    hardest = [r for r in rows if r["sites"] == max(SITES) and r["observations"] == 200]
    slowest = max(row["cpu_s"] for row in hardest if AGENTS[row["agent"]][0] == "cbo")
    record(
        "agents_cost",
        passed=slowest <= TARGET_S,
        seed=SEED,
        target_s=TARGET_S,
        slowest_s=slowest,
        trial_s=TRIAL_S,
        rows=rows,
    )


if __name__ == "__main__":
    main()
