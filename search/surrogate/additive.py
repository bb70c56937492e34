"""Damages that add up over knobs, and loads that follow the exact costs: models for few trials.

With fewer trials than knobs a general surrogate knows nothing; these know that a plan's damage is
a sum of one convex curve per knob, and that time and bytes go with MACs, parameters and bits.

Reference:
    The additive value of channel groups is that of M. Shen et al.: Structural Pruning via
    Latency-Saliency Knapsack (HALP), NeurIPS 2022. Draws from the posterior by fitting perturbed
    data: G. Papandreou, A. Yuille, ICCV 2011.

Deviations:
    * Values come from trials, not from gradients of the user's model.
    * Damage adds up under a root: what two sites lose together is more than the sum (the cliff).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from compression.space import DENSE, Knob
from search.arithmetic import Arithmetic, Floats, Points, as_points
from search.history import History
from search.measurement import Measurement, Reading
from search.metric import ACCURACIES, METRICS
from search.objective import Constraint, Objective
from search.problem import Problem

ROOTS = (0.5, 0.75, 1.0)
"""Powers of the damage under which curves may add up; cross-validation picks one."""

NOISE = 0.08
"""Standard deviation of what the sum of curves leaves unexplained, in roots of log-odds."""

BEYOND = 3.0
"""Loss of log-odds beyond which differences matter little: such plans are near chance."""

FOLDS = 5
"""Of the cross-validation."""

LOAD_NOISE = 0.03
"""The same for the logarithm of a load: timing noise and odd widths."""


def log_odds(share: float) -> float:
    """Return `log(p / (1 - p))`, p held within 0.002..0.998."""
    held = min(0.998, max(0.002, share))
    return float(np.log(held / (1 - held)))


def curves(knob: Knob) -> Floats:
    """Return `choices x b` basis values of one knob, 0 at the untouched choice.

    With x the share taken away: x and x^2 / (1.25 - x), both growing and convex, for a knob whose
    choices are ordered; else one column per other choice.
    """
    count = len(knob.choices)
    if knob.field == "selector" or not knob.ordered:
        first = knob.choices.index(DENSE) if DENSE in knob.choices else 0
        return np.asarray(np.delete(np.eye(count), first, axis=1))
    if knob.field == "keep_channels":
        kept = np.array([float(choice) for choice in knob.choices])
        x = 1 - kept / kept[-1]
    else:
        x = np.arange(count) / count
    return np.stack([x, x**2 / (1.25 - x)], axis=1)


def damage_of(problem: Problem, measurement: Measurement) -> float | None:
    """Return what a plan loses against the dense model, in log-odds of its accuracy.

    The accuracy is that of the first objective or else the first constraint on one; without any,
    the relative growth of the main loss. None where the reading is missing.
    """
    wanted: list[Objective | Constraint] = [*problem.objectives, *problem.constraints]
    for want in wanted:
        if want.metric in ACCURACIES:
            reading, dense = want.reading(measurement), want.reading(problem.baseline)
            if reading is None or dense is None:
                return None
            return log_odds(dense.value) - log_odds(reading.value)
    loss, reference = problem.losses(measurement)[0], problem.losses(problem.baseline)[0]
    return (loss - reference) / (abs(reference) or 1.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Damages:
    """Fitted curves: predicted damage per knob and choice, in the power under which they add up.

    Attributes:
        tables: One array of damages over choices per knob.
    """

    tables: tuple[Floats, ...]

    def of(self, points: Points) -> Floats:
        """Return the predicted damages of `t x d` points."""
        total = np.zeros(len(points))
        for column, table in enumerate(self.tables):
            total += table[points[:, column]]
        return total


class Additive:
    """Fits both models to the told trials of a problem."""

    def __init__(self, problem: Problem) -> None:
        """Prepare bases, priors and costs."""
        self._problem = problem
        self._bases = [curves(knob) for knob in problem.space.knobs]
        channels = sum(k.field == "keep_channels" for k in problem.space.knobs) or 1
        # Half the channels everywhere costs about one unit under the root.
        self._prior = np.concatenate(
            [
                np.array([0.2, 3.0]) / channels
                if knob.ordered and knob.field != "selector"
                else np.full(basis.shape[1], 0.1)
                for knob, basis in zip(problem.space.knobs, self._bases, strict=True)
            ]
        )
        self._arithmetic = Arithmetic(problem)
        dense = as_points([problem.space.dense()], len(problem.space.knobs))
        self._dense_costs = self._logs(dense)
        wanted: list[Objective | Constraint] = [*problem.constraints, *problem.objectives]
        self._wants = [
            want
            for want in wanted
            if want.metric not in ACCURACIES and want.reading(problem.baseline) is not None
        ]
        self._key: object = None
        self._coefficients: list[tuple[Floats, float] | None] = []
        self._rows, self._values = np.zeros((0, len(self._prior))), np.zeros(0)
        self._root = 1.0
        self._knobs = problem.space.knobs

    def learn(self, history: History) -> None:
        """Take in all told trials; free when nothing was told since."""
        told = history.told
        key = tuple(t.trial.id for t in told)
        if key == self._key:
            return
        self._key = key
        known = [
            (t.point, damage)
            for t in told
            if t.measurement is not None
            and (damage := damage_of(self._problem, t.measurement)) is not None
        ]
        worst = max((damage for _, damage in known), default=1.0) + 1.0
        known += [(t.point, worst) for t in told if t.impossible]
        self._rows = self._design(as_points([p for p, _ in known], len(self._knobs)))
        self._values = np.array([damage for _, damage in known])
        self._root = self._best_root()
        points = as_points([p for p, _ in history.measured], len(self._knobs))
        readings = [m for _, m in history.measured]
        self._coefficients = [self._fit_load(want, points, readings) for want in self._wants]

    def _design(self, points: Points) -> Floats:
        return np.hstack([basis[points[:, i]] for i, basis in enumerate(self._bases)])

    def _best_root(self) -> float:
        if len(self._values) < 2 * FOLDS:
            return ROOTS[0]
        fold = np.arange(len(self._values)) % FOLDS
        errors = []
        for root in ROOTS:
            error = 0.0
            for held in range(FOLDS):
                rest = fold != held
                beta = self._solve(self._rows[rest], self._values[rest], root)
                guess = np.maximum(self._rows[~rest] @ beta, 0.0) ** (1 / root)
                # Ranks among good plans matter, not how far beyond repair a bad one is.
                seen = np.minimum(self._values[~rest], BEYOND)
                error += float(np.abs(np.minimum(guess, BEYOND) - seen).sum())
            errors.append(error)
        return ROOTS[int(np.argmin(errors))]

    def _solve(
        self, rows: Floats, values: Floats, root: float, rng: np.random.Generator | None = None
    ) -> Floats:
        """Return non-negative coefficients: ridge around a prior whose scale the data set."""
        from scipy.optimize import nnls

        if not len(self._prior):
            return np.zeros(0)
        target = np.sign(values) * np.abs(values) ** root
        plain = rows @ self._prior
        scale = 1.0
        if len(values):
            scale = float(np.clip((plain @ target + 0.1) / (plain @ plain + 0.1), 0.05, 20.0))
        prior = scale * self._prior
        # Near chance, damage says little of how far beyond repair a plan is.
        noise = NOISE * (1 + np.maximum(values - BEYOND, 0.0))
        spread = prior
        if rng is not None:
            target = target + noise * rng.standard_normal(len(target))
            prior = prior + spread * rng.standard_normal(len(prior))
        stacked = np.vstack([rows / noise[:, None], np.diag(1 / spread)])
        solution, _ = nnls(
            stacked, np.concatenate([target / noise, prior / spread]), maxiter=50 * len(prior)
        )
        return np.asarray(solution)

    def damages(self, rng: np.random.Generator | None = None) -> Damages:
        """Return the fitted curves, or with `rng` a draw of what else they may be."""
        beta = self._solve(self._rows, self._values, self._root, rng)
        tables, start = [], 0
        for basis in self._bases:
            tables.append(np.asarray(basis @ beta[start : start + basis.shape[1]]))
            start += basis.shape[1]
        return Damages(tuple(tables))

    def _logs(self, points: Points) -> Floats:
        costs = self._arithmetic.costs(points)
        table = np.stack([costs.macs, costs.params, costs.weight_bytes], axis=1)
        return np.asarray(np.log(np.maximum(table, 1).astype(np.float64)))

    def _load_features(self, points: Points) -> Floats:
        costs = self._logs(points) - self._dense_costs
        switches = [
            self._bases[i][points[:, i]]
            for i, knob in enumerate(self._knobs)
            if knob.field != "keep_channels"
        ]
        return np.hstack([costs, *switches])

    @staticmethod
    def _log_load(reading: Reading, dense: Reading, sign: float) -> float:
        ratio = reading.ratio.value if reading.ratio is not None else reading.value / dense.value
        return sign * float(np.log(max(ratio, 1e-9)))

    def _fit_load(
        self, want: Objective | Constraint, points: Points, measured: list[Measurement]
    ) -> tuple[Floats, float] | None:
        """Return coefficients and residual deviation of one measured load; None if exact."""
        if METRICS[want.metric].by_cost_table:
            return None
        dense = want.reading(self._problem.baseline)
        assert dense is not None
        sign = 1.0 if METRICS[want.metric].direction == "minimize" else -1.0
        found = [(i, r) for i, m in enumerate(measured) if (r := want.reading(m)) is not None]
        rows = self._load_features(points)[[i for i, _ in found]]
        target = np.array([self._log_load(r, dense, sign) for _, r in found])
        prior, spread = np.zeros(rows.shape[1]), np.full(rows.shape[1], 0.5)
        prior[0 if METRICS[want.metric].timed else 2] = 0.8
        stacked = np.vstack([rows / LOAD_NOISE, np.diag(1 / spread)])
        answer = np.concatenate([target / LOAD_NOISE, prior / spread])
        beta = np.linalg.lstsq(stacked, answer, rcond=None)[0]
        residual = target - rows @ beta if len(target) else np.array([0.1])
        deviation = max(0.005, float(np.sqrt((residual**2).mean())))
        return np.asarray(beta), deviation

    def loads(
        self, points: Points, *, level: float = 1.0, caution: float = 0.0, relax: float = 1.0
    ) -> Floats:
        """Return `t x k` loads: each bounded quantity over its limit; at most 1 is allowed.

        Bounds on macs, flops and params are exact; others are predicted. Objectives other than
        accuracies are loads, too, with `level` times the dense model's value as their limit.

        Args:
            points: `t x d`.
            level: Share of the dense model's value that objectives are held to.
            caution: Residual deviations that are added to predicted loads.
            relax: Factor on every limit of a constraint, at least 1.
        """
        exact = self._logs(points) - self._dense_costs
        features: Floats | None = None
        columns = []
        for number, want in enumerate(self._wants):
            limit = np.log(level)
            if isinstance(want, Constraint):
                limit = self._log_limit(want) + np.log(relax)
            if METRICS[want.metric].by_cost_table:
                value = exact[:, 1 if want.metric == "params" else 0]
            else:
                if features is None:
                    features = self._load_features(points)
                fitted = self._coefficients[number] if self._coefficients else None
                if fitted is None:
                    none = np.zeros(0, dtype=np.int64).reshape(0, len(self._knobs))
                    fitted = self._fit_load(want, none, [])
                assert fitted is not None
                value = features @ fitted[0] + caution * fitted[1]
            columns.append(np.exp(np.clip(value - limit, -20.0, 20.0)))
        return np.stack(columns, axis=1) if columns else np.zeros((len(points), 0))

    def _log_limit(self, constraint: Constraint) -> float:
        """Return the limit as a logarithm of the share of the dense model's value."""
        baseline = self._problem.baseline
        dense = constraint.reading(baseline)
        assert dense is not None
        share = constraint.limit(baseline) / dense.value if dense.value else 1.0
        sign = 1.0 if METRICS[constraint.metric].direction == "minimize" else -1.0
        return sign * float(np.log(max(share, 1e-9)))


def allowed(loads: Floats) -> NDArray[np.bool_]:
    """Return which of `t x k` loads are within all limits."""
    return np.asarray((loads <= 1 + 1e-9).all(axis=1))
