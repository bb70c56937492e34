"""Weights of the features: non-negative ridge regression on relative errors.

The ratio of a plan is sum_k w_k x_k with w >= 0, where x_k is a feature in units of the dense
network's. The dense network's own ratio, 1, is held as `DENSE_WEIGHT` observations, and `RIDGE`
pulls the weights of few observations towards a prior: every feature of a class costs the same.

A loaded machine slows classes down differently (measured on a machine that others share: a
ResNet-20 in INT8 takes 0.43 of the dense time when it is alone and 0.51 beside others). Each
reading tells its load by the dense network's time beside it, l = clip(log(t / min t) / reach,
0, 1); classes that the dense network does not have get two weights per feature, for l = 0 and
l = 1, and what lies between is mixed. A stronger ridge (`COUPLING`)
pulls the two together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from search.latency.features import Feature, counterpart

Array = NDArray[np.float64]

RIDGE = 0.3
COUPLING = 1.0
FOLDS = 30
"""Fits that leave something out, at most."""

DENSE_WEIGHT = 100.0
PRIOR_OF_NEW = 0.5
"""What a class that the dense network does not have is held to cost before it was timed, as a
share of the dense network."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Design:
    """How features become columns.

    Attributes:
        kept: Features of the classes that the dense network has: one column each.
        new: Features of other classes: a column for the idle machine and one for the loaded one.
        scales: What a feature is counted in.
        dense: Columns of the dense network.
        prior: Weights before any observation.
    """

    kept: tuple[Feature, ...]
    new: tuple[Feature, ...]
    scales: Mapping[Feature, float]
    dense: Array
    prior: Array

    @staticmethod
    def of(dense: Mapping[Feature, float], known: Sequence[Mapping[Feature, float]]) -> Design:
        """Return the columns for the features of the dense network and of observed ones."""
        every = sorted({feature for found in (dense, *known) for feature in found})
        classes = {name for _, name in dense}
        kept = tuple(feature for feature in every if feature[1] in classes)
        new = tuple(feature for feature in every if feature[1] not in classes)
        scales = {
            f: counterpart(f, dense) or max(found.get(f, 0.0) for found in known) for f in every
        }
        shares = np.array([dense.get(f, 0.0) / scales[f] for f in kept])
        row = np.concatenate([shares, np.zeros(2 * len(new))])
        idle = PRIOR_OF_NEW / max(1, len(new))
        prior = np.concatenate([shares / shares.sum(), np.full(2 * len(new), idle)])
        return Design(kept=kept, new=new, scales=scales, dense=row, prior=prior)

    def covers(self, found: Mapping[Feature, float]) -> bool:
        """Whether every feature of a network was seen before."""
        return found.keys() <= self.scales.keys()

    def row(self, found: Mapping[Feature, float], load: float) -> Array:
        """Return the columns of a network at a load in [0, 1]."""
        kept = [found.get(f, 0.0) / self.scales[f] for f in self.kept]
        new = np.array([found.get(f, 0.0) / self.scales[f] for f in self.new])
        return np.concatenate([kept, (1 - load) * new, load * new])


def weights(design: Design, rows: Array, ratios: Array) -> Array:
    """Return the weights, none below 0.

    Args:
        design: The columns.
        rows: `n x columns`, of observed networks.
        ratios: Their n measured ratios, above 0.
    """
    ridge, anchor, bind = (math.sqrt(weight) for weight in (RIDGE, DENSE_WEIGHT, COUPLING))
    columns, new = len(design.dense), len(design.new)
    apart = np.zeros((new, columns))
    idle = len(design.kept) + np.arange(new)
    apart[np.arange(new), idle] = 1
    apart[np.arange(new), idle + new] = -1
    system = np.vstack(
        [rows / ratios[:, None], anchor * design.dense, ridge * np.eye(columns), bind * apart]
    )
    target = np.concatenate(
        [np.ones(len(ratios)), np.array([anchor]), ridge * design.prior, np.zeros(new)]
    )
    found, _ = nnls(system, target)
    return np.asarray(found, dtype=np.float64)


def without_each(design: Design, rows: Array, ratios: Array) -> Array:
    """Return `n x columns`: for each observation weights that it took no part in.

    Up to `FOLDS` observations each is left out alone, above them together with others.
    """
    folds = np.arange(len(ratios)) % FOLDS
    by_fold = [
        weights(design, rows[folds != fold], ratios[folds != fold])
        for fold in range(min(FOLDS, len(ratios)))
    ]
    return np.array(by_fold)[folds]
