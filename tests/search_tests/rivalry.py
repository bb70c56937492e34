"""Agents against each other on one made-up problem, where uniform widths are not the answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from search.catalogue import create
from tests.synthetic import Loop, Net, best_feasible, latency_at_most, macs_at_most

NET = Net(d=9, noise=0.02)
BOUNDS = (macs_at_most(0.3), latency_at_most(0.35))
BUDGET = 36


def mean_best(agent: str, seeds: Iterable[int], options: Mapping[str, Any] | None = None) -> float:
    """Return the mean over seeds of the best feasible top1."""
    scores = []
    for seed in seeds:
        problem = NET.problem(BOUNDS, budget=BUDGET, seed=seed)
        loop = Loop(NET, create(agent, problem, options or {}), seed=seed)
        scores.append(-best_feasible(problem, loop.run(BUDGET)))
    return float(np.mean(scores))
