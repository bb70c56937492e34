"""What the surrogates see of a plan and of its readings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compression.space import DENSE
from search.arithmetic import Arithmetic, Floats, Points, as_points
from search.problem import Problem
from search.surrogate.three import Three

HELD = (0.002, 0.998)
"""Range of accuracies whose odds are finite."""


class Features:
    """Coordinates of points for Gaussian processes, in about [0, 1]."""

    def __init__(self, problem: Problem, three: Three | None = None) -> None:
        """Prepare the scales; costs are scaled between the smallest and the dense plan.

        Args:
            problem: Its space names the points.
            three: What stands for the channel knobs; None for one column each.
        """
        space = problem.space
        self._three = three
        self._knobs = space.knobs
        self._arithmetic = Arithmetic(problem)
        ends = as_points([space.smallest(), space.dense()], len(space.knobs))
        low, high = self._log_costs(ends)
        self._offset = low
        self._range = np.where(high > low, high - low, 1.0)

    def _log_costs(self, points: Points) -> Floats:
        costs = self._arithmetic.costs(points)
        table = np.stack([costs.macs, costs.params, costs.weight_bytes], axis=1)
        return np.asarray(np.log(np.maximum(table, 1).astype(np.float64)))

    @property
    def channel_columns(self) -> list[int]:
        """Columns of `decisions` that are one channel knob each, in knob order."""
        columns, column = [], 0
        for knob in self._knobs:
            if knob.field == "keep_channels":
                columns.append(column)
                column += 1
            else:
                column += len(knob.choices) - 1
        return columns

    def decisions(self, points: Points) -> Floats:
        """Return what was decided: `t x f` for `t x d` points.

        Per channel knob the share of its range that is kept, as applied, or three columns for all
        of them; per other knob one column a choice but the first.
        """
        columns: list[NDArray[np.float64]] = []
        if self._three is not None:
            columns = list(self._three.coordinates(points).T)
        for number, knob in enumerate(self._knobs):
            index = points[:, number]
            if knob.field == "keep_channels":
                if self._three is not None:
                    continue
                kept = np.array([float(choice) for choice in knob.choices])
                columns.append((kept[index] - kept[0]) / ((kept[-1] - kept[0]) or 1.0))
            else:
                first = knob.choices.index(DENSE) if DENSE in knob.choices else 0
                columns += [
                    (index == choice).astype(np.float64)
                    for choice in range(len(knob.choices))
                    if choice != first
                ]
        return np.stack(columns, axis=1) if columns else np.empty((len(points), 0))

    def with_costs(self, points: Points) -> Floats:
        """Return the decisions and the logarithms of MACs, params and weight bytes.

        These are exact and free, and time and size follow them closely, so the surrogates of
        measured bounds need not learn from many trials what arithmetic knows. For accuracies they
        mislead: within a bound on MACs all good plans have the same, and what matters is where.
        """
        costs = (self._log_costs(points) - self._offset) / self._range
        return np.column_stack([self.decisions(points), costs])


def bilog(values: Floats) -> Floats:
    """Return `sign(v) log(1 + |v|)`: resolves violations near 0 and tames large ones.

    From D. Eriksson, M. Poloczek: Scalable Constrained Bayesian Optimization, AISTATS 2021.
    """
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)))


def as_log_odds(losses: Floats) -> Floats:
    """Return losses `-p` of accuracies as `-log(p / (1 - p))`, p held within 0.002..0.998.

    Widths add up better under it than in shares, and near chance it does not flatten.
    """
    share = np.clip(-losses, *HELD)
    return np.asarray(-np.log(share / (1 - share)))


def chebyshev(losses: Floats, weights: Floats) -> Floats:
    """Return one loss for several: the augmented Chebyshev norm of ParEGO.

    `max_i(w_i z_i) + 0.05 sum_i(w_i z_i)`, z scaled to [0, 1] over the given trials (J. Knowles,
    ParEGO, IEEE Transactions on Evolutionary Computation 10(1), 2006, equation 2).

    Args:
        losses: `t x m`, smaller is better.
        weights: `m`, non-negative, sum 1.
    """
    low, high = losses.min(axis=0), losses.max(axis=0)
    weighted = weights * (losses - low) / np.where(high > low, high - low, 1.0)
    return np.asarray(weighted.max(axis=1) + 0.05 * weighted.sum(axis=1))
