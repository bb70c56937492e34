"""How well kernel parameters explain observations, and the parameters that explain them best.

The logarithm of the posterior density of the parameters of a Gaussian process with unit variance,
an ARD Matérn-5/2 kernel, Gaussian noise and a constant mean, and its gradient in closed form: what
automatic differentiation gives, at a tenth of the time for a few hundred observations.

Reference:
    C. E. Rasmussen, C. K. I. Williams: Gaussian Processes for Machine Learning, 2006, equations
    5.8 and 5.9; priors of C. Hvarfner et al.: Vanilla Bayesian Optimization Performs Great in High
    Dimensions, ICML 2024, as in BoTorch's `get_covar_module_with_dim_scaled_prior`.
"""

from __future__ import annotations

import dataclasses
import logging
import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

SQRT5 = math.sqrt(5.0)

LENGTH_PRIOR = (math.sqrt(2.0), math.sqrt(3.0))
"""Mean, before `log(f) / 2` is added, and deviation of the logarithm of a length scale."""

NOISE_PRIOR = (-4.0, 1.0)
"""Mean and deviation of the logarithm of the variance of the noise."""

LEAST_LENGTH, LEAST_NOISE = 2.5e-2, 1e-4


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Of one process over standardised outputs.

    Attributes:
        lengths: `f` length scales.
        noise: Variance of the noise.
        constant: The mean.
    """

    lengths: Floats
    noise: float
    constant: float


def matern(a: torch.Tensor, b: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return the `s x t` Matérn-5/2 covariances of `s x f` and `t x f` inputs, variance 1."""
    r = SQRT5 * distances(a / lengths, b / lengths)
    return (1 + r + r.square() / 3) * torch.exp(-r)


def distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the `s x t` distances of `s x f` and `t x f` points, equal ones may be 1e-8 apart."""
    squared = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)[None] - 2 * (a @ b.T)
    return squared.clamp_min_(0.0).sqrt_()


def _root(covariance: torch.Tensor) -> torch.Tensor:
    root, failed = torch.linalg.cholesky_ex(covariance)
    if int(failed):
        raise np.linalg.LinAlgError(f"a covariance of {len(covariance)} has no root")
    return torch.as_tensor(root)


def _log_prior(theta: Floats, mean: float, deviation: float) -> tuple[float, Floats]:
    """Return the log density of log-normal parameters and its gradient by their logarithms."""
    z = (np.log(theta) - mean) / deviation
    density = -np.log(theta) - math.log(deviation * math.sqrt(2 * math.pi)) - z**2 / 2
    return float(density.sum()), -1.0 - z / deviation


def log_posterior(x: torch.Tensor, y: torch.Tensor, log_theta: Floats) -> tuple[float, Floats]:
    """Return the log posterior density of parameters, up to the evidence, and its gradient.

    The constant mean is the one that explains the data best under the other parameters.

    Args:
        x: `t x f` inputs.
        y: `t` standardised outputs.
        log_theta: `f` logarithms of length scales and one of the noise; the gradient is by these.

    Raises:
        numpy.linalg.LinAlgError: The covariance is not positive definite.
    """
    theta = np.exp(log_theta)
    lengths, noise = torch.as_tensor(theta[:-1]), float(theta[-1])
    count, f = x.shape
    scaled = x / lengths
    r = SQRT5 * distances(scaled, scaled)
    decay = torch.exp(-r)
    covariance = (1 + r + r.square() / 3) * decay
    covariance.diagonal().add_(noise)
    root = _root(covariance)
    inverse = torch.cholesky_inverse(root)
    ones = inverse.sum(dim=1)
    centred = y - (ones @ y) / ones.sum()
    alpha = inverse @ centred
    value = float(-(centred @ alpha) / 2 - root.diagonal().log().sum())
    value -= count / 2 * math.log(2 * math.pi)
    by_covariance = (alpha[:, None] * alpha[None] - inverse) / 2
    # By the squared distance, times that distance by the logarithm of each length scale.
    weights = by_covariance * (5 / 6 * (1 + r) * decay)
    spread = 2 * (scaled.square().T @ weights.sum(dim=1) - ((weights @ scaled) * scaled).sum(dim=0))
    gradient = np.append(2 * spread.numpy(), noise * float(by_covariance.diagonal().sum()))
    mean, deviation = LENGTH_PRIOR
    prior, slope = _log_prior(theta[:-1], mean + math.log(f) / 2, deviation)
    of_noise, noise_slope = _log_prior(theta[-1:], *NOISE_PRIOR)
    gradient += np.append(slope, noise_slope)
    return value + prior + of_noise, gradient


def constant_mean(x: torch.Tensor, y: torch.Tensor, lengths: Floats, noise: float) -> float:
    """Return the constant mean that explains `t` outputs best."""
    covariance = matern(x, x, torch.as_tensor(lengths))
    covariance.diagonal().add_(noise)
    weights = torch.cholesky_solve(torch.ones(len(x), 1, dtype=torch.double), _root(covariance))[
        :, 0
    ]
    return float((weights @ y) / weights.sum())


def best_parameters(x: torch.Tensor, y: torch.Tensor, max_iterations: int) -> Parameters:
    """Return the parameters of largest posterior density, by L-BFGS-B from the priors' modes.

    When the optimiser fails numerically, the modes stay.
    """
    f = x.shape[1]
    mean, deviation = LENGTH_PRIOR
    modes = np.full(f + 1, mean + math.log(max(f, 1)) / 2 - deviation**2)
    modes[-1] = NOISE_PRIOR[0] - NOISE_PRIOR[1] ** 2
    least = np.full(f + 1, math.log(LEAST_LENGTH))
    least[-1] = math.log(LEAST_NOISE)
    modes = np.maximum(modes, least)

    def loss(log_theta: Floats) -> tuple[float, Floats]:
        value, gradient = log_posterior(x, y, log_theta)
        return -value / len(x), -gradient / len(x)

    try:
        found = minimize(
            loss,
            modes,
            jac=True,
            method="L-BFGS-B",
            bounds=[(low, 12.0) for low in least],
            options={"maxiter": max_iterations},
        ).x
        theta = np.exp(found)
        constant = constant_mean(x, y, theta[:-1], float(theta[-1]))
    except np.linalg.LinAlgError as error:
        logger.warning("Gaussian process keeps its prior: %s", error, extra={"action": "gp.fit"})
        theta, constant = np.exp(modes), 0.0
    return Parameters(lengths=theta[:-1], noise=float(theta[-1]), constant=constant)
