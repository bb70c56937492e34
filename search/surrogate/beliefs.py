"""What is believed of plans not yet tried: their losses and the violations that are measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from search.arithmetic import Floats, Points
from search.metric import ACCURACIES, METRICS
from search.problem import Problem
from search.surrogate.features import Features, bilog
from search.surrogate.gp import Surrogate, fit
from search.surrogate.observations import Observations

See = Callable[[Points], Floats]
"""What a surrogate sees of points."""


@dataclasses.dataclass(frozen=True)
class Beliefs:
    """Surrogates of losses, of bounds on accuracy, and of other measured bounds.

    Violations are modelled as bilog: resolved near the bound, tamed far from it. Bounds that
    arithmetic decides are not modelled.

    Attributes:
        losses: Surrogate of m losses and what it sees.
        bounds: Further surrogates and what each sees; k outputs in all.
        columns: Which constraint of the problem each of those k outputs is.
    """

    losses: tuple[Surrogate, See]
    bounds: tuple[tuple[Surrogate, See], ...]
    columns: tuple[int, ...]

    @property
    def parts(self) -> tuple[tuple[Surrogate, See], ...]:
        """All surrogates, that of the losses first."""
        return (self.losses, *self.bounds)

    def limits(self, slack: Floats) -> list[float]:
        """Return the k limits of the modelled outputs for the allowed violation of each bound."""
        return [float(limit) for limit in bilog(slack[list(self.columns)])]

    def predict(self, points: Points) -> tuple[Floats, Floats]:
        """Return `t x (m + k)` means and deviations."""
        parts = [surrogate.predict(see(points)) for surrogate, see in self.parts]
        return np.hstack([mean for mean, _ in parts]), np.hstack([dev for _, dev in parts])

    def sample(self, points: Points, rng: np.random.Generator, count: int = 1) -> Floats:
        """Return `count` joint draws, each `t x (m + k)`."""
        draws = [surrogate.sample(see(points), rng, count) for surrogate, see in self.parts]
        return np.concatenate(draws, axis=2)

    def believing(self, pending: Points) -> Beliefs:
        """Return the beliefs that take their own means at pending points for measured."""
        parts = [(surrogate.believing(see(pending)), see) for surrogate, see in self.parts]
        return dataclasses.replace(self, losses=parts[0], bounds=tuple(parts[1:]))


def believe(
    problem: Problem,
    features: Features,
    losses: Floats,
    seen: Observations,
    of_bounds: Observations,
    *,
    max_iterations: int | None = None,
) -> Beliefs:
    """Fit the surrogates.

    Args:
        problem: Its constraints.
        features: What surrogates see.
        losses: `t x m`, to model at the points of `seen`.
        seen: Whose accuracies are comparable: of one base.
        of_bounds: Whose other measured quantities are comparable: of all bases.
        max_iterations: Of the optimiser.
    """
    measured = [i for i, c in enumerate(problem.constraints) if not METRICS[c.metric].by_cost_table]
    accuracies = [i for i in measured if problem.constraints[i].metric in ACCURACIES]
    others = [i for i in measured if i not in accuracies]
    decided = features.decisions(seen.points)

    def fitted(
        see: See, inputs: Floats, from_: Observations, columns: Sequence[int]
    ) -> tuple[Surrogate, See]:
        outputs = bilog(from_.violations[:, list(columns)])
        return fit(inputs, outputs, max_iterations=max_iterations), see

    bounds = []
    if accuracies:
        bounds.append(fitted(features.decisions, decided, seen, accuracies))
    if others:
        priced = features.with_costs(of_bounds.points)
        bounds.append(fitted(features.with_costs, priced, of_bounds, others))
    return Beliefs(
        (fit(decided, losses, max_iterations=max_iterations), features.decisions),
        tuple(bounds),
        (*accuracies, *others),
    )
