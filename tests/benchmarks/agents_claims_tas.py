"""The two claims about TAS, parts of `agents_claims_trained`.

Reference:
    Dong & Yang (2019), "Network Pruning via Transformable Architecture Search", NeurIPS 2019,
    https://arxiv.org/abs/1905.09717.

What a search found is trained twice: from the weights of the dense network, which were never
without any of its blocks, and from those that the search itself trained at all widths and depths,
equally long in every search. The paper trains for 300 epochs from scratch, where neither matters.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from compression.artifact import Digest
from compression.plan import Plan
from search.agent import Prepare
from search.measurement import Interval, Measured
from search.objective import Constraint
from search.trial import PREPARED_ROLE, Trial
from tests.benchmarks.agents_training import TrainingBench, prepared, three, uniform_plans
from tests.benchmarks.agents_world import THIN, Setting, World
from tests.benchmarks.peer_rows import Row

TAS_MACS = 0.55
"""Share of the MACs that TAS left of ResNet-20."""
TOLERATED = 0.05
"""Of the dense network's MACs: the lower slack of the paper's code."""
DEEP = dataclasses.replace(THIN, allow=("prune_channels", "drop_block"))
BOTH = "width and depth"
SEARCHES: Mapping[str, tuple[bool, bool]] = {
    BOTH: (True, True),
    "width": (True, False),
    "depth": (False, True),
}
"""By name, whether widths and depths are searched."""


def _world(bench: TrainingBench) -> World:
    bound = Constraint(metric="macs", at_most=TAS_MACS, relative_to="baseline")
    return bench.world("tas-trained", Setting((bound,), DEEP))


def _search(bench: TrainingBench, world: World, name: str) -> Trial:
    """Return the finished search of that name."""
    width, depth = SEARCHES[name]
    options = {
        "steps": bench.options.tas_steps,
        "macs": int(TAS_MACS * world.context.survey.summary["macs"]),
        "width": width,
        "depth": depth,
        "batch_size": 64,
        # The paper's text allows 5 % above the target as well; its code does not.
        "tolerance": "below",
    }
    return prepared(world, Prepare(kind="tas", options=options))


def _found(search: Trial) -> tuple[Mapping[str, Any], Plan]:
    """Return what a search reports, and its plan."""
    assert isinstance(search.outcome, Measured)
    return search.outcome.found, Plan.from_json(search.outcome.found["plan"])


def _trained(
    bench: TrainingBench, world: World, plan: Plan, base: Digest | None, *, distils: bool = True
) -> Row:
    """Return a plan's short training, from the dense weights where there is no base."""
    name = f"plan {plan.digest}" if base is None else f"plan {plan.digest} of {base}"
    return bench.trained(
        world,
        name,
        functools.partial(world.network, plan, base),
        steps=bench.options.train_steps,
        distils=distils,
    )


def tas(bench: TrainingBench) -> tuple[bool, Row]:
    """Whether the decided network keeps the target, and what depth adds to width.

    The verdict is on trainings from the weights of each search.
    """
    world = _world(bench)
    dense = world.context.survey.summary["macs"]
    rows: dict[str, dict[str, Row]] = {"search": {}, "dense": {}}
    shown: dict[str, Row] = {}
    for name in SEARCHES:
        search = _search(bench, world, name)
        found, plan = _found(search)
        for start, base in (("search", search.artifacts[PREPARED_ROLE]), ("dense", None)):
            rows[start][name] = _trained(bench, world, plan, base)
        shown[name] = {
            "decided": round(found["macs_decided"] / dense, 4),
            "expected": round(found["expected_macs"] / dense, 4),
            "repaired": round(found["macs"] / dense, 4),
            "dropped": sorted(plan.dropped()),
            "top1": {start: row[name]["top1"] for start, row in rows.items()},
        }
    gains: dict[str, dict[str, Interval]] = {
        start: {name: bench.gain(world, row[BOTH], row[name]) for name in SEARCHES if name != BOTH}
        for start, row in rows.items()
    }
    decided = shown[BOTH]["decided"]
    hit = TAS_MACS - TOLERATED <= decided <= TAS_MACS
    figures = {
        "target": TAS_MACS,
        "hit": hit,
        "steps": [bench.options.tas_steps, bench.options.train_steps],
        "searches": shown,
        "gain_over": {
            start: {name: three(gain) for name, gain in of.items()} for start, of in gains.items()
        },
    }
    return hit and all(gain.high >= 0 for gain in gains["search"].values()), figures


def distillation(bench: TrainingBench) -> tuple[bool, Row]:
    """Four cells: TAS's plan and the uniform one, with and without the dense teacher.

    All start from the weights that the search trained at all widths and depths.
    """
    world = _world(bench)
    search = _search(bench, world, BOTH)
    base = search.artifacts[PREPARED_ROLE]
    costs = world.context.survey.costs
    macs = TAS_MACS * world.context.survey.summary["macs"]
    plans = {
        "tas": _found(search)[1],
        "uniform": next(
            uniform for uniform in uniform_plans(world, "l2") if costs.cost(uniform).macs <= macs
        ),
    }
    cells = {
        (name, distils): _trained(bench, world, plan, base, distils=distils)
        for name, plan in plans.items()
        for distils in (True, False)
    }
    teacher = {name: bench.gain(world, cells[name, True], cells[name, False]) for name in plans}
    shape = {d: bench.gain(world, cells["tas", d], cells["uniform", d]) for d in (True, False)}
    figures = {
        "steps": [bench.options.tas_steps, bench.options.train_steps],
        "start": "search",
        "macs": {name: costs.cost(found).macs for name, found in plans.items()},
        "top1": {f"{n}, {'taught' if d else 'labels'}": r["top1"] for (n, d), r in cells.items()},
        "gain_of_teacher": {name: three(gain) for name, gain in teacher.items()},
        "gain_of_plan": {
            "taught" if distils else "labels": three(gain) for distils, gain in shape.items()
        },
    }
    return all(gain.low > 0 for gain in teacher.values()), figures
