"""Exact MACs, parameters and bytes of many points at once, and the bounds that they decide.

The same integers as `CostTable.cost`, as array arithmetic over a batch: a search weighs some
thousand candidates per request. Decisions other than channels, dropped blocks and INT8 change what
a layer is; plans that take one are looked up in the table itself, one by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compression.choices import KINDS
from compression.cost import PlanCost
from compression.decisions import DropBlock
from compression.space import DENSE
from search.metric import METRICS
from search.objective import Constraint
from search.problem import Problem

Points = NDArray[np.int64]
"""`t x d` choice indices."""
Floats = NDArray[np.float64]

MOST_KNOWN = 100_000
"""Plans whose exact costs are remembered."""


@dataclasses.dataclass(frozen=True, slots=True)
class Costs:
    """Costs of `t` points: three int64 arrays of length `t`."""

    macs: NDArray[np.int64]
    params: NDArray[np.int64]
    weight_bytes: NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Drop:
    """The knob of a block that may be dropped.

    Attributes:
        column: Of the knob.
        dense: Its choice that keeps the block.
        layers: Which rows of the cost table are inside of it.
        sites: Which of the knobs of channels are.
    """

    column: int
    dense: int
    layers: NDArray[np.bool_]
    sites: NDArray[np.bool_]


class Arithmetic:
    """What arithmetic knows of the points of a problem's space.

    Attributes:
        constraints: The constraints that arithmetic decides, in the problem's order.
    """

    def __init__(self, problem: Problem) -> None:
        """Compile the cost table into arrays over layers."""
        layers = problem.costs.layers
        self._table = problem.costs
        self._space = problem.space
        self._known: dict[tuple[int, ...], PlanCost] = {}
        self._reshaping = [
            (column, knob.choices.index(DENSE))
            for column, knob in enumerate(problem.space.knobs)
            if knob.field in KINDS and knob.field != DropBlock.kind
        ]
        self._baseline = problem.baseline
        self.constraints: tuple[Constraint, ...] = tuple(
            c for c in problem.constraints if METRICS[c.metric].by_cost_table
        )
        self._keep = [
            (column, knob.site, np.array(knob.choices, dtype=np.int64))
            for column, knob in enumerate(problem.space.knobs)
            if knob.field == "keep_channels"
        ]
        self._precision = [
            (column, np.array([choice != DENSE for choice in knob.choices]))
            for column, knob in enumerate(problem.space.knobs)
            if knob.field == "precision"
        ]
        self._drops = [
            _Drop(
                column=column,
                dense=knob.choices.index(DENSE),
                layers=_inside(knob.site, [layer.name for layer in layers]),
                sites=_inside(knob.site, [site for _, site, _ in self._keep]),
            )
            for column, knob in enumerate(problem.space.knobs)
            if knob.field == DropBlock.kind
        ]
        self._channels = np.array(
            [problem.costs.site_channels[site] for _, site, _ in self._keep], dtype=np.int64
        )
        row = {site: number for number, (_, site, _) in enumerate(self._keep)}
        # Products of integers below 2**53 are exact in float64, whose matmul is fast.
        self._in_ties = np.zeros((len(self._keep), len(layers)))
        self._out_ties = np.zeros((len(self._keep), len(layers)))
        for number, layer in enumerate(layers):
            for ties, table in ((layer.in_ties, self._in_ties), (layer.out_ties, self._out_ties)):
                for site, multiple in ties:
                    if site in row:
                        table[row[site], number] += multiple

        def column(values: list[int]) -> NDArray[np.int64]:
            return np.array(values, dtype=np.int64)

        multiplies = [layer.op in ("conv", "linear") for layer in layers]
        self._in = column([layer.in_channels for layer in layers])
        self._out = column([layer.out_channels for layer in layers])
        self._groups = column([layer.groups for layer in layers])
        self._depthwise = self._groups > 1
        self._depthwise &= self._groups == self._in
        self._kernel = column(
            [layer.kernel * m for layer, m in zip(layers, multiplies, strict=True)]
        )
        self._positions = column([layer.positions for layer in layers])
        self._per_out = column(
            [
                int(layer.bias) if m else layer.params_per_channel * (layer.op == "norm")
                for layer, m in zip(layers, multiplies, strict=True)
            ]
        )
        self._fixed = column([layer.fixed_params * (layer.op == "fixed") for layer in layers])

    def costs(self, points: Points) -> Costs:
        """Return the costs of `t x d` points."""
        kept = np.empty((len(points), len(self._keep)), dtype=np.int64)
        for row, (column, _, choices) in enumerate(self._keep):
            kept[:, row] = choices[points[:, column]]
        stays = np.ones((len(points), len(self._in)), dtype=np.int64)
        for drop in self._drops:
            gone = points[:, drop.column] != drop.dense
            # What is decided inside a dropped block is not decided: it touches nothing outside.
            kept[np.ix_(gone, drop.sites)] = self._channels[drop.sites]
            stays[np.ix_(gone, drop.layers)] = 0
        removed = (self._channels - kept).astype(np.float64)
        n_in = self._in - np.rint(removed @ self._in_ties).astype(np.int64)
        n_out = self._out - np.rint(removed @ self._out_ties).astype(np.int64)
        fan_in = np.where(self._depthwise, 1, n_in // self._groups)
        weights = n_out * fan_in * self._kernel * stays
        weight_count = weights.sum(axis=1)
        extra = ((n_out * self._per_out + self._fixed) * stays).sum(axis=1)
        quantized = np.zeros(len(points), dtype=bool)
        for column, is_int in self._precision:
            quantized |= is_int[points[:, column]]
        costs = Costs(
            macs=weights @ self._positions,
            params=weight_count + extra,
            weight_bytes=np.where(quantized, 1, 4) * weight_count + 4 * extra,
        )
        reshaped = np.zeros(len(points), dtype=bool)
        for column, dense in self._reshaping:
            reshaped |= points[:, column] != dense
        for row in np.flatnonzero(reshaped).tolist():
            exact = self._exact(points[row])
            costs.macs[row] = exact.macs
            costs.params[row] = exact.params
            costs.weight_bytes[row] = exact.weight_bytes
        return costs

    def _exact(self, point: NDArray[np.int64]) -> PlanCost:
        key = tuple(point.tolist())
        if key not in self._known:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[key] = self._table.cost(self._space.decode(key))
        return self._known[key]

    def violations(self, points: Points) -> Floats:
        """Return `t x k` violations of the `k` arithmetic constraints; `<= 0` is feasible."""
        out = np.zeros((len(points), len(self.constraints)))
        if not self.constraints or not len(points):
            return out
        costs = self.costs(points)
        values = {"macs": costs.macs, "flops": 2 * costs.macs, "params": costs.params}
        for number, constraint in enumerate(self.constraints):
            value = values[constraint.metric].astype(np.float64)
            bound = constraint.at_most if constraint.at_most is not None else constraint.at_least
            assert bound is not None
            limit = constraint.limit(self._baseline)
            reference = constraint.reading(self._baseline)
            if constraint.relative_to == "baseline" and reference is not None and reference.value:
                value, limit = value / reference.value, bound
            sign = 1.0 if constraint.at_most is not None else -1.0
            out[:, number] = sign * (value - limit) / (abs(limit) or 1.0)
        return out

    def excess(self, points: Points, slack: Floats | float = 0.0) -> Floats:
        """Return by how much each of `t` points misses the bounds in sum; 0 keeps them.

        Args:
            points: `t x d`.
            slack: Violation that is still allowed, one for all or one per constraint.
        """
        return np.asarray(np.maximum(self.violations(points) - slack, 0.0).sum(axis=1))


def _inside(block: str, names: Sequence[str]) -> NDArray[np.bool_]:
    return np.array([name.startswith(f"{block}.") for name in names], dtype=bool)


def as_points(points: object, d: int) -> Points:
    """Return points as a `t x d` int64 array, also when there are none."""
    return np.asarray(points, dtype=np.int64).reshape(-1, d)
