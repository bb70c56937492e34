"""How much a plan is expected to add to the front: noisy expected hypervolume improvement.

Reference:
    S. Daulton et al.: Parallel Bayesian Optimization of Multiple Noisy Objectives with Expected
    Hypervolume Improvement, NeurIPS 2021; its logarithm from S. Ament et al.: Unexpected
    Improvements to Expected Improvement, NeurIPS 2023. BoTorch's
    `qLogNoisyExpectedHypervolumeImprovement` with outcome constraints.

Deviations:
    * Evaluated on a discrete set, not maximised by gradients: plans are integers.
    * Only the observations that may be on the front, and the candidates that may join it, are
      looked at: by posterior means, and optimistic ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_ndtr

from search.arithmetic import Floats, Points
from search.metric import METRICS
from search.problem import Problem
from search.surrogate.beliefs import Beliefs
from search.surrogate.gp import botorch_model

SAMPLES = 32
"""Of the quasi-Monte Carlo estimate."""

BASELINE, CANDIDATES = 24, 32
"""Observations and candidates that are looked at, at most."""

LEAST_LOG_CHANCE = -3.0
"""Log probability of keeping the bounds below which a candidate comes after all others."""

MARGIN = 0.1
"""Share of the range of a loss by which the reference point is worse than the worst."""

MOST_OBJECTIVES = 3
"""The boxes under a front become too many beyond."""


def reference_point(problem: Problem, losses: Floats) -> Floats:
    """Return one loss per objective that nothing worth having exceeds.

    An upper bound on the same quantity where there is one; the dense model's for what compression
    is to reduce; for what it costs, the worst of the given losses and a tenth of their range.

    Args:
        problem: Objectives, constraints and the dense baseline.
        losses: `t x m` losses of plans that keep the bounds, at least one.
    """
    low, high = losses.min(axis=0), losses.max(axis=0)
    reference = high + MARGIN * np.where(high > low, high - low, np.abs(high) + 1e-9)
    for number, objective in enumerate(problem.objectives):
        bounds = []
        for bound in problem.constraints:
            same = (bound.metric, bound.device, bound.statistic)
            if same != (objective.metric, objective.device, objective.statistic):
                continue
            limit = bound.limit(problem.baseline)
            if bound.at_most is not None and objective.direction == "minimize":
                bounds.append(limit)
            elif bound.at_least is not None and objective.direction == "maximize":
                bounds.append(-limit)
        dense = objective.reading(problem.baseline)
        if bounds:
            reference[number] = min(bounds)
        elif dense is not None and METRICS[objective.metric].direction == "minimize":
            reference[number] = objective.loss(problem.baseline)
    return np.asarray(np.maximum(reference, low + 1e-9))


def undominated(losses: Floats, most: int) -> NDArray[np.int64]:
    """Return up to `most` rows of `t x m` losses: those that fewest others dominate, in order."""
    covers = (losses[:, None] <= losses[None]).all(axis=2)
    dominators = (covers & ~covers.T).sum(axis=0)
    return np.asarray(np.sort(np.argsort(dominators, kind="stable")[:most]))


def log_gain(
    beliefs: Beliefs,
    observed: Points,
    pending: Points,
    *,
    limits: Sequence[float],
    reference: Floats,
    seed: int,
) -> Callable[[Points], Floats]:
    """Return what gives the log expected hypervolume improvement of `t x d` plans.

    It is `-inf` for hopeless ones. Draws of the observations and the boxes under their fronts are
    made here, once for all candidates that are asked about.

    Args:
        beliefs: Of m losses and k bounds.
        observed: `s x d` points that keep the bounds, at least one.
        pending: `q x d` points under way.
        limits: k violations that are allowed, as modelled.
        reference: m losses, the reference point.
        seed: Of the quasi-random numbers.
    """
    from botorch.acquisition.multi_objective import logei
    from botorch.acquisition.multi_objective.objective import WeightedMCMultiOutputObjective
    from botorch.models.model_list_gp_regression import ModelListGP
    from botorch.sampling.normal import SobolQMCNormalSampler

    # Else it compiles C++ at first use, where there is a compiler, and two processes of one search
    # differ in their last digits.
    logei._load_attempted = True
    surrogates, inputs = zip(*beliefs.parts, strict=True)
    m = surrogates[0].outputs
    centre = observed[undominated(beliefs.predict(observed)[0][:, :m], BASELINE)]
    widths = [surrogate.processes[0].x.shape[1] for surrogate in surrogates]

    def together(rows: Points) -> torch.Tensor:
        columns = [see(rows) for see in inputs]
        return torch.as_tensor(np.hstack(columns), dtype=torch.double)

    models = []
    start = 0
    for surrogate, width in zip(surrogates, widths, strict=True):
        models += [
            botorch_model([process], first=start, width=sum(widths))
            for process in surrogate.processes
        ]
        start += width
    scale = np.concatenate([s.scale for s in surrogates])
    middle = np.concatenate([s.mean for s in surrogates])
    allowed = (np.array(limits) - middle[m:]) / scale[m:]
    constraints = [_excess(m + i, float(limit)) for i, limit in enumerate(allowed)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gain = logei.qLogNoisyExpectedHypervolumeImprovement(
            model=ModelListGP(*models),
            ref_point=(-(reference - middle[:m]) / scale[:m]).tolist(),
            X_baseline=together(centre),
            sampler=SobolQMCNormalSampler(torch.Size([SAMPLES]), seed=seed),
            objective=WeightedMCMultiOutputObjective(
                -torch.ones(m, dtype=torch.double), outcomes=list(range(m))
            ),
            constraints=constraints or None,
            X_pending=together(pending) if len(pending) else None,
            cache_root=False,
        )

    def of(points: Points) -> Floats:
        mean, deviation = beliefs.predict(points)
        chance = log_ndtr((np.array(limits) - mean[:, m:]) / np.maximum(deviation[:, m:], 1e-10))
        # A plan that will hardly keep the bounds is as good as dominated.
        hopeless = chance.sum(axis=1) < LEAST_LOG_CHANCE
        optimistic = mean[:, :m] - deviation[:, :m] + np.where(hopeless, 1e9, 0.0)[:, None]
        chosen = undominated(optimistic, CANDIDATES)
        out = np.full(len(points), -np.inf)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            out[chosen] = gain(together(points[chosen]).unsqueeze(1)).numpy()
        return out

    return of


def _excess(output: int, limit: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return by how much one of the outputs exceeds its limit, as a function of all of them."""
    return lambda outputs: outputs[..., output] - limit
