"""One plan as an episode: a decision per step, and what the agent sees before each.

Reference:
    Y. He et al.: AMC, ECCV 2018, section 3.1, equation 1: (t, n, c, h, w, stride, k, FLOPs[t],
    reduced, rest, a[t-1]), each within [0, 1]. Bits as further actions: K. Wang et al.: HAQ,
    CVPR 2019, section 3.3.

Deviations:
    * A step decides a site: all layers whose channels are coupled share width and indices. The
      features are of the first layer that produces the site's channels.
    * `reduced` and `rest` are exact shares of the dense model's MACs by the cost table.
    * Where the space has choices for the whole model that no step decides (a selector, a
      precision), they are further features; likewise whether the step is one of bits.
    * `one_hot` adds one feature per step. Neighbouring layers of a stage look alike in all of the
      paper's features but t, and may still differ most in how much they can spare.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from compression.decisions import QuantizeWeights
from compression.layer_cost import WEIGHTED, LayerCost
from compression.plan import Plan
from compression.site import MODEL_SITE
from compression.space import DENSE, Knob, Point
from search.amc.clamp import Clamp
from search.arithmetic import Floats, as_points
from search.problem import Problem
from search.repair import Repair

PRECISION = "precision"
BITS = (PRECISION, QuantizeWeights.kind)
"""Fields of knobs that say in how many bits weights are kept."""

NAMES = ("t", "n", "c", "h", "w", "stride", "k", "flops", "reduced", "rest", "before")
"""The paper's features, in its order."""

FIXED = 8
"""How many of them do not depend on what was decided."""


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One action of an episode.

    Attributes:
        column: The knob that it decides.
        kind: `keep`: the action is a share of channels. `bits`: a place among the choices.
        order: Indices of the choices from the strongest to the mildest.
    """

    column: int
    kind: Literal["keep", "bits"]
    order: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Walked:
    """A finished episode without its reward: `n` steps with `f` features.

    Attributes:
        states: `n x f`.
        actions: `n`, as applied.
    """

    states: Floats
    actions: Floats


@dataclasses.dataclass(frozen=True, slots=True)
class Episode:
    """What a told trial teaches.

    Attributes:
        key: The trial's id.
        walked: States and actions of its steps.
        reward: Of the whole episode.
    """

    key: str
    walked: Walked
    reward: float


class Walk:
    """The steps of every episode of a problem, in forward order.

    Attributes:
        steps: Bits of the whole model first, then widths in forward order, then bits of layers.
        settings: Columns of the choices for the whole model that no step decides.
        features: Numbers per state.
    """

    def __init__(
        self,
        problem: Problem,
        repair: Repair,
        clamp: Clamp,
        *,
        bits: bool = False,
        one_hot: bool = False,
    ) -> None:
        """Lay out the steps.

        Args:
            problem: Space and costs.
            repair: Of the problem.
            clamp: Limits the widths.
            bits: Whether precisions are actions.
            one_hot: Whether states name their step by one further feature per step.
        """
        self._space = problem.space
        self._arithmetic = repair.arithmetic
        self._clamp = clamp
        free = [(i, k) for i, k in enumerate(problem.space.knobs) if len(k.choices) > 1]
        of_bits = [(i, k) for i, k in free if bits and k.field in BITS]
        whole = [_step(i, k) for i, k in of_bits if k.site == MODEL_SITE]
        layers = [_step(i, k) for i, k in of_bits if k.site != MODEL_SITE]
        widths = [_step(i, k) for i, k in free if k.field == "keep_channels"]
        self.steps = (*whole, *widths, *layers)
        taken = {step.column for step in self.steps}
        self.settings = tuple(
            i
            for i, k in free
            if i not in taken and (k.field == "selector" or k.site == MODEL_SITE)
            if k.field in ("selector", *BITS)
        )
        fixed = np.array([_fixed(n, s, problem) for n, s in enumerate(self.steps)])
        fixed = fixed.reshape(-1, FIXED)
        flops = fixed[:, -1]
        self._dense = problem.costs.cost(Plan()).macs or 1
        self._rest = (flops.sum() - flops.cumsum()) / self._dense
        span = np.ptp(fixed, axis=0) if len(fixed) else np.ones(FIXED)
        low = fixed.min(axis=0) if len(fixed) else np.zeros(FIXED)
        self._fixed: Floats = np.where(span > 0, (fixed - low) / np.where(span > 0, span, 1), 0.0)
        is_bits = np.array([step.kind == "bits" for step in self.steps], dtype=np.float64)
        mixed = any(step.kind == "bits" for step in self.steps)
        own = np.eye(len(self.steps)) if one_hot else np.zeros((len(self.steps), 0))
        also = is_bits[:, None] if mixed else np.zeros((len(self.steps), 0))
        self._also: Floats = np.hstack([also, own])
        self.features = len(NAMES) + len(self.settings) + self._also.shape[1]

    def start(self, setting: Sequence[int]) -> list[int]:
        """Return the point of a setting before the first step: all untouched, widths at floors."""
        point = list(self._space.dense())
        for column, index in zip(self.settings, setting, strict=True):
            point[column] = index
        return self._clamp.at_floors(point)

    def decide(self, point: Sequence[int], t: int, action: float, *, clamped: bool = True) -> int:
        """Return the choice that step `t` applies for an action in [0, 1].

        Args:
            point: Earlier steps decided, later widths at their floors.
            t: Number of the step.
            action: A share of channels, never below the floor, or a place among the choices.
            clamped: Whether the width is limited to what the bounds allow.
        """
        step = self.steps[t]
        if step.kind == "bits":
            place = round(action * len(step.order) - 0.5)
            return step.order[min(max(place, 0), len(step.order) - 1)]
        widths = np.array(self._space.knobs[step.column].choices, dtype=np.float64)
        nearest = int(np.argmin(np.abs(widths - action * widths[-1])))
        if clamped:
            return self._clamp.highest(point, step.column, nearest)
        return max(nearest, self._clamp.floors[step.column])

    def applied(self, point: Sequence[int]) -> Floats:
        """Return the actions, one per step, that stand for a point."""
        return np.array([self._action(step, point[step.column]) for step in self.steps])

    def state(self, point: Sequence[int], t: int) -> Floats:
        """Return what the agent sees before step `t`: only earlier steps of the point count."""
        return np.asarray(self._states(point, [t])[0])

    def walked(self, point: Sequence[int]) -> Walked:
        """Return the episode that leads to a point, by whomever it was proposed."""
        return Walked(self._states(point, range(len(self.steps))), self.applied(point))

    def is_walkable(self, point: Sequence[int]) -> bool:
        """Whether steps and settings alone lead to a point."""
        free = {step.column for step in self.steps} | set(self.settings)
        dense = self._space.dense()
        return all(i in free or index == dense[i] for i, index in enumerate(point))

    def _action(self, step: Step, index: int) -> float:
        if step.kind == "bits":
            return (step.order.index(index) + 0.5) / len(step.order)
        choices = self._space.knobs[step.column].choices
        return float(choices[index]) / float(choices[-1])

    def _states(self, point: Sequence[int], times: Sequence[int]) -> Floats:
        rows = []
        for t in times:
            row = list(point)
            for step in self.steps[t:]:
                row[step.column] = step.order[-1]
            rows.append(row)
        macs = self._arithmetic.costs(as_points(rows, len(point))).macs
        setting = [
            point[column] / (len(self._space.knobs[column].choices) - 1) for column in self.settings
        ]
        out = np.empty((len(rows), self.features))
        for number, t in enumerate(times):
            # Before the first step nothing was taken away: the action that keeps everything.
            before = self._action(self.steps[t - 1], point[self.steps[t - 1].column]) if t else 1.0
            reduced = 1.0 - float(macs[number]) / self._dense
            seen = [*self._fixed[t], reduced, self._rest[t], before, *setting]
            out[number] = [*seen, *self._also[t]]
        return out


def _step(column: int, knob: Knob) -> Step:
    if knob.field == "keep_channels":
        return Step(column, "keep", tuple(range(len(knob.choices))))
    order = sorted(range(len(knob.choices)), key=lambda i: (_bits(knob.choices[i]), -i))
    return Step(column, "bits", tuple(order))


def _bits(choice: int | str) -> int:
    """Return the nominal bits of a choice of precision."""
    text = str(choice)
    if text == DENSE:
        return 32
    return 8 if text == "int8" else int(text.split()[0])


def _fixed(t: int, step: Step, problem: Problem) -> list[float]:
    """Return t, n, c, h, w, stride, k and FLOPs of a step, not yet scaled."""
    knob = problem.space.knobs[step.column]
    layers = [layer for layer in problem.costs.layers if layer.op in WEIGHTED]
    made = [row for row in layers if any(site == knob.site for site, _ in row.out_ties)]
    read = [row for row in layers if any(site == knob.site for site, _ in row.in_ties)]
    named = [row for row in layers if row.name == knob.site]
    own = made or read or named
    if knob.site == MODEL_SITE:
        own = layers
    if not own:
        return [float(t)] + [0.0] * (FIXED - 1)
    # A layer with several sites is counted at the first of them.
    counted = [row for row in own if not made or row.out_ties[0][0] == knob.site]
    shown = own[0]
    h, w = _grid(shown)
    stride = h / shown.grid_out[0] if shown.grid_out and shown.grid_in else 1.0
    kernel = float(shown.window[0]) if shown.window else math.sqrt(shown.kernel)
    flops = 0.0 if step.kind == "bits" else float(sum(_macs(row) for row in counted))
    return [
        float(t),
        float(shown.out_channels),
        float(shown.in_channels),
        h,
        w,
        float(round(stride)),
        kernel,
        flops,
    ]


def _grid(layer: LayerCost) -> tuple[float, float]:
    """Return H and W of the layer's input; of an equal square where they are not known."""
    if len(layer.grid_in) == 2:
        return float(layer.grid_in[0]), float(layer.grid_in[1])
    side = math.sqrt(layer.positions)
    return side, side


def _macs(layer: LayerCost) -> int:
    """Return the dense model's MACs of a layer."""
    return layer.out_channels * (layer.in_channels // layer.groups) * layer.kernel * layer.positions


def tried_settings(walk: Walk, problem: Problem) -> list[Point]:
    """Return settings to compare: all untouched, then each other choice alone.

    One index per column of `walk.settings`.
    """
    knobs = [problem.space.knobs[column] for column in walk.settings]
    dense = problem.space.dense()
    first = tuple(dense[column] for column in walk.settings)
    return [first] + [
        (*first[:place], index, *first[place + 1 :])
        for place, knob in enumerate(knobs)
        for index in range(len(knob.choices))
        if index != first[place]
    ]
