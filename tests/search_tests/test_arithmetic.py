"""Array arithmetic against the cost table, on a real network's survey."""

from __future__ import annotations

import numpy as np
import pytest

from compression.decisions import DECISIONS
from compression.methods import Methods, resolve_space
from compression.plan import Plan
from search.arithmetic import Arithmetic
from search.measurement import Measurement, Reading
from search.problem import Problem
from search.repair import as_point
from search.sampling import draw
from tests.builders import surveyed_resnet
from tests.synthetic import TOP1, macs_at_most

SPACES = {
    "blocks": Methods(allow=("drop_block",)),
    "blocks and channels": Methods(allow=("drop_block", "prune_channels", "quantize")),
    "every kind": Methods(allow=tuple(DECISIONS)),
}


def problem_of(methods: Methods) -> Problem:
    _, survey = surveyed_resnet(20)
    dense = float(survey.costs.cost(Plan()).macs)
    return Problem(
        space=resolve_space(survey.sites, methods, survey.costs),
        costs=survey.costs,
        objectives=(TOP1,),
        constraints=(macs_at_most(0.6),),
        baseline=Measurement((Reading.exact("macs", dense, dense),)),
    )


@pytest.mark.parametrize("name", list(SPACES))
def test_dropped_blocks_cost_nothing_whatever_is_decided_inside_of_them(name: str) -> None:
    problem = problem_of(SPACES[name])
    points = draw(problem.space, np.random.default_rng(0), 120)
    drops = [i for i, knob in enumerate(problem.space.knobs) if knob.field == "drop_block"]
    assert (points[:, drops] > 0).any(axis=1).mean() > 0.5
    costs = Arithmetic(problem).costs(points)
    for row, point in enumerate(points):
        cost = problem.costs.cost(problem.space.decode(as_point(point)))
        assert costs.macs[row] == cost.macs
        assert costs.params[row] == cost.params
        assert costs.weight_bytes[row] == cost.weight_bytes


def test_plans_of_channels_and_blocks_are_not_looked_up_one_by_one() -> None:
    problem = problem_of(SPACES["blocks and channels"])
    arithmetic = Arithmetic(problem)
    arithmetic.costs(draw(problem.space, np.random.default_rng(1), 50))
    assert not arithmetic._known
