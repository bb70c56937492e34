"""Foretells the latency of a plan relative to the dense network, from what was measured before.

A network that was measured is looked up; any other is predicted from its shapes, with an interval.
A prediction saves measurements that cannot help. It never stands for one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from compression.cost import CostTable
from compression.plan import Plan
from search.latency.conformal import jackknife_plus
from search.latency.features import Feature, features
from search.latency.fit import Array, Design, weights, without_each
from search.latency.observation import Observation, pooled
from search.latency.shape import Signature, deployed_shapes, signature
from search.measurement import Interval

ALPHA = 0.025
"""Share of readings that may fall outside of a predicted interval."""

LEAST = 15
"""Observations below which nothing but what was measured is told."""

MOST = 200
"""Observations that are kept, the newest: machines change."""

REACHES = (0.1, 0.2, 0.3)
"""Slow-downs of the dense network, log scale, that are tried as that of the loaded machine."""

WORTH = 0.95
"""Error with the load known, relative to that without, above which load is not looked at."""

TINY = 1e-6


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Foretold:
    """A predicted ratio.

    Attributes:
        ratio: Latency over the dense network's, with its 97.5 % predictive interval.
        measured: How many readings of this very network it is pooled from; 0 for a prediction.
        calibrated: Whether the interval comes from the errors of at least `LEAST` observations.
    """

    ratio: Interval
    measured: int
    calibrated: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """A fitted model.

    Attributes:
        design: Its columns.
        whole: Weights from all observations.
        left_out: `n x columns`, weights without each one.
        residuals: Error of each of these on the observation it misses, log scale, absolute.
        reach: Slow-down of the dense network that means a loaded machine; 0: load is not used.
        loads: Smallest, median and largest load of the observations that depend on it.
    """

    design: Design
    whole: Array
    left_out: Array
    residuals: Array
    reach: float
    loads: tuple[float, float, float]


class LatencyModel:
    """Of one model on one device; equal observations in equal order give equal answers."""

    def __init__(self, costs: CostTable, observations: Sequence[Observation]) -> None:
        """Fit.

        Args:
            costs: Of the dense network.
            observations: In the order in which they were recorded; the dense network's own tell
                nothing, as its ratio is 1 by definition.
        """
        self._costs = costs
        kept = [o for o in observations if o.plan.decisions][-MOST:]
        self._same: dict[Signature, list[Observation]] = {}
        for observation in kept:
            self._same.setdefault(signature(costs, observation.plan), []).append(observation)
        self._fastest_ms = min((o.dense_ms for o in kept), default=math.inf)
        self._curve = self._fit(kept) if len(kept) >= LEAST else None

    @property
    def calibrated(self) -> bool:
        """Whether enough is known to predict."""
        return self._curve is not None

    @property
    def fastest_dense_ms(self) -> float:
        """Shortest time of the dense network that was seen; infinite before any."""
        return self._fastest_ms

    def foretell(self, plan: Plan, dense_ms: float | None = None) -> Foretold | None:
        """Return what a plan will take; None where nothing is known.

        Nothing is known before `LEAST` observations unless the very network was measured, and of
        plans that compute in a way that none before did, for instance the first one in INT8.

        Args:
            plan: What is asked about.
            dense_ms: The dense network's latency at that time, for a prediction at that load.
                Without, the interval spans all loads that were seen.
        """
        known = self._same.get(signature(self._costs, plan), [])
        guess = self._predict(plan, dense_ms)
        if not known:
            return None if guess is None else Foretold(ratio=guess, measured=0, calibrated=True)
        ratio = pooled(known)
        if guess is not None:
            low, high = min(ratio.low, guess.low), max(ratio.high, guess.high)
            ratio = Interval(value=ratio.value, low=low, high=high)
        return Foretold(ratio=ratio, measured=len(known), calibrated=guess is not None)

    def _predict(self, plan: Plan, dense_ms: float | None) -> Interval | None:
        curve = self._curve
        if curve is None:
            return None
        found = features(deployed_shapes(self._costs, plan))
        if not curve.design.covers(found):
            return None
        if dense_ms is None:
            least, load, most = curve.loads
            loads = [least, load, most]
        else:
            load = _load(dense_ms, self._fastest_ms, curve.reach)
            loads = [load]
        value = float(curve.design.row(found, load) @ curve.whole)
        ends = [value]
        for at in loads:
            logs = np.log(np.maximum(curve.left_out @ curve.design.row(found, at), TINY))
            ends += [math.exp(end) for end in jackknife_plus(logs, curve.residuals, ALPHA)]
        return Interval(value=value, low=min(ends), high=max(ends))

    def _fit(self, kept: Sequence[Observation]) -> Curve:
        dense = features(deployed_shapes(self._costs, Plan()))
        known = [features(deployed_shapes(self._costs, o.plan)) for o in kept]
        design = Design.of(dense, known)
        ratios = np.array([o.ratio.value for o in kept])
        slowest = max(o.dense_ms for o in kept)
        curves = []
        for reach in (0.0, *REACHES) if design.new and slowest > self._fastest_ms else (0.0,):
            loads = np.array([_load(o.dense_ms, self._fastest_ms, reach) for o in kept])
            curves.append(_curve(design, known, ratios, loads, reach))
        plain, *loaded = curves
        best = min(loaded, key=lambda c: float(c.residuals.mean()), default=plain)
        return best if best.residuals.mean() < WORTH * plain.residuals.mean() else plain


def _curve(
    design: Design,
    known: Sequence[dict[Feature, float]],
    ratios: Array,
    loads: Array,
    reach: float,
) -> Curve:
    rows = np.array([design.row(f, load) for f, load in zip(known, loads, strict=True)])
    left_out = without_each(design, rows, ratios)
    told = loads[[any(f in found for f in design.new) for found in known]] if design.new else loads
    missed = np.maximum((left_out * rows).sum(axis=1), TINY)
    return Curve(
        design=design,
        whole=weights(design, rows, ratios),
        left_out=left_out,
        residuals=np.abs(np.log(ratios / missed)),
        reach=reach,
        loads=(float(np.min(told)), float(np.median(told)), float(np.max(told))),
    )


def _load(dense_ms: float, fastest_ms: float, reach: float) -> float:
    """Return how loaded the machine was, from 0 (idle) to 1."""
    if reach == 0.0:
        return 0.0
    return min(1.0, max(0.0, math.log(dense_ms / fastest_ms) / reach))
