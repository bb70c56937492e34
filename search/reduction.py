"""Plans of one cost on a network that may be narrower already, and random moves between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from compression.decisions import DropBlock
from compression.plan import Plan
from compression.space import PlanSpace, Point
from search.annealing import perturbed, sorted_by_size
from search.arithmetic import Floats, Points, as_points
from search.objective import Constraint
from search.problem import Problem
from search.repair import Repair, as_point

FILLINGS = 4
"""Rounds of growing to the bound and cutting back to the network's widths."""

MOST_OTHERS = 0.5
"""Chance that a decision on anything but channels moves; less where there are several."""

STRUCTURE = ("keep_channels", DropBlock.kind)
"""Fields of knobs that a prepared network has carried out for good."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What plans must keep to.

    Attributes:
        slack: Violation still allowed, one per arithmetic constraint of the problem.
        share: MACs allowed, as a share of the dense model's, positive.
    """

    slack: Floats
    share: float


class Reduction:
    """Fits points to a target cost and to the widths that a network has reached."""

    def __init__(self, problem: Problem, *, guided: bool) -> None:
        """Prepare the tables.

        Args:
            problem: With channel knobs; without any, only the other decisions move.
            guided: Deal rates so that sites with more weights are pruned no less.
        """
        self.space: PlanSpace = problem.space
        self._dense_macs = problem.costs.cost(Plan()).macs
        on_macs = Constraint(metric="macs", at_most=float(max(1, self._dense_macs)))
        self._repair = Repair(
            dataclasses.replace(problem, constraints=(*problem.constraints, on_macs))
        )
        self._guided = guided
        knobs = problem.space.knobs
        self._keeps = [i for i, knob in enumerate(knobs) if knob.field == "keep_channels"]
        self._others = [i for i in range(len(knobs)) if i not in set(self._keeps)]
        self._widths = [np.array(knobs[i].choices, dtype=np.float64) for i in self._keeps]
        self._sizes = np.array([_weights(problem, knobs[i].site) for i in self._keeps])

    def settings(self, point: Sequence[int]) -> Point:
        """Return the choices of everything but channels."""
        return tuple(point[i] for i in self._others)

    def macs_share(self, point: Sequence[int]) -> float:
        """Return the plan's MACs as a share of the dense model's."""
        rows = as_points([point], len(self.space.knobs))
        macs = int(self._repair.arithmetic.costs(rows).macs[0])
        return macs / max(1, self._dense_macs)

    def structure(self, point: Sequence[int]) -> Plan:
        """Return the part of the plan that a prepared network carries out."""
        keep = (*STRUCTURE, "selector")
        dense = self.space.dense()
        return self.space.decode(
            [
                index if knob.field in keep else untouched
                for index, untouched, knob in zip(point, dense, self.space.knobs, strict=True)
            ]
        )

    def within(self, point: Sequence[int], reached: Sequence[int]) -> Point:
        """Return the point with no more channels, and no fewer blocks dropped, than `reached`."""
        out = list(point)
        dense = self.space.dense()
        for i, knob in enumerate(self.space.knobs):
            if knob.field == "keep_channels":
                out[i] = min(out[i], reached[i])
            elif knob.field == DropBlock.kind and reached[i] != dense[i]:
                out[i] = reached[i]
        return self.space.canonical(out)

    def is_within(self, point: Sequence[int], reached: Sequence[int]) -> bool:
        """Whether a network of the widths `reached` can become the plan's."""
        return self.within(point, reached) == self.space.canonical(point)

    def fitted(self, point: Sequence[int], reached: Point, target: Target, *, fill: bool) -> Point:
        """Return the point shrunk by one factor to the target, below `reached` everywhere.

        Args:
            point: Any.
            reached: Widths that the network has.
            target: What must hold.
            fill: Grow to the target as well, where there is room.
        """
        slack = np.append(target.slack, target.share - 1.0)
        found = self._shrunk(self.within(point, reached), slack)
        if fill:
            for _ in range(FILLINGS):
                grown = self._repair.fill(self._row(found), slack)
                before, found = found, self.within(as_point(grown[0]), reached)
                if found == before:
                    break
        return self.space.canonical(found)

    def _shrunk(self, point: Point, slack: Floats) -> Point:
        return as_point(self._repair.shrink(self._row(point), slack)[0])

    def _row(self, point: Point) -> Points:
        return as_points([point], len(self.space.knobs))

    def moved(self, point: Point, reached: Point, size: float, rng: np.random.Generator) -> Point:
        """Return a random neighbour, not yet fitted to a target.

        A random subset of the sites changes its pruning rate, relative to the width reached, by
        up to `size`; every other decision moves with a small chance of its own.
        """
        out = list(point)
        if self._keeps:
            base = np.array([w[reached[i]] for w, i in zip(self._widths, self._keeps, strict=True)])
            kept = np.array([w[point[i]] for w, i in zip(self._widths, self._keeps, strict=True)])
            rates = perturbed(np.clip(1.0 - kept / base, 0.0, 1.0), size, rng)
            if self._guided:
                rates = sorted_by_size(rates, self._sizes)
            for column, width, wanted in zip(
                self._keeps, self._widths, (1.0 - rates) * base, strict=True
            ):
                out[column] = int(np.abs(width - wanted).argmin())
        chance = min(MOST_OTHERS, 1.0 / max(1, len(self._others)))
        for i in self._others:
            knob, here = self.space.knobs[i], out[i]
            around = (
                [here - 1, here + 1]
                if knob.ordered
                else [index for index in range(len(knob.choices)) if index != here]
            )
            around = [index for index in around if 0 <= index < len(knob.choices)]
            # Without channels to move, something else must.
            if around and (rng.random() < chance or not self._keeps):
                out[i] = around[int(rng.integers(len(around)))]
        return tuple(out)


def _weights(problem: Problem, site: str) -> float:
    """Return the parameters of all layers that a site's channels pass through."""
    dense = problem.costs.layer_costs(Plan())
    return float(
        sum(
            dense[layer.name].params
            for layer in problem.costs.layers
            if any(name == site for name, _ in (*layer.in_ties, *layer.out_ties))
        )
    )
