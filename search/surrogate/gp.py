"""Gaussian processes over plans: one per modelled quantity.

The model of BoTorch's `SingleTaskGP` with an ARD Matérn-5/2 kernel, Gaussian noise and
dimension-scaled priors (C. Hvarfner et al.: Vanilla Bayesian Optimization Performs Great in High
Dimensions, ICML 2024); outputs are standardised here, parameters maximise the posterior by
L-BFGS-B (`search/surrogate/evidence.py`). Posteriors over a whole candidate set are formulas of one
Cholesky factor; for acquisition functions that are not, `Surrogate.model` is the BoTorch model.

Seeds and the default dtype are not touched. The number of torch's threads is one within
`one_thread` and as before after it: the matrices are small, other processes may be timing, and
sums in a fixed order make a fit a function of its data alone.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from search.surrogate.evidence import Floats, Parameters, best_parameters, matern

ITERATIONS, ITERATIONS_LARGE, LARGE = 40, 25, 100
"""Of L-BFGS-B, and beyond `LARGE` observations: many data pin the parameters sooner and each
iteration costs more."""

CHUNK = 4096
"""Inputs whose covariances with the observations are held at once."""

JITTERS = (1e-8, 1e-6, 1e-4)
"""Added to a covariance of inputs that are nearly the same, until it has a root."""

FLAT = 1e-9
"""Standard deviation below which an output counts as constant and is not scaled."""


@dataclasses.dataclass(frozen=True)
class Process:
    """One fitted process: its parameters and what it was conditioned on, standardised."""

    parameters: Parameters
    x: torch.Tensor
    y: torch.Tensor

    @functools.cached_property
    def _lengths(self) -> torch.Tensor:
        return torch.as_tensor(self.parameters.lengths)

    @functools.cached_property
    def _root(self) -> torch.Tensor:
        covariance = matern(self.x, self.x, self._lengths)
        covariance.diagonal().add_(self.parameters.noise)
        return torch.as_tensor(torch.linalg.cholesky(covariance))

    @functools.cached_property
    def _alpha(self) -> torch.Tensor:
        centred = (self.y - self.parameters.constant)[:, None]
        return torch.cholesky_solve(centred, self._root)[:, 0]

    def predict(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `t` means and deviations of the noise-free output."""
        cross = matern(self.x, x, self._lengths)
        explained = torch.linalg.solve_triangular(self._root, cross, upper=False)
        variance = (1 - explained.square().sum(dim=0)).clamp_min(0.0)
        return self.parameters.constant + self._alpha @ cross, variance.sqrt()

    def sample(self, x: torch.Tensor, normal: torch.Tensor) -> torch.Tensor:
        """Return `s x t` joint draws of the noise-free output, from `s x t` standard normals."""
        cross = matern(self.x, x, self._lengths)
        explained = torch.linalg.solve_triangular(self._root, cross, upper=False)
        mean = self.parameters.constant + self._alpha @ cross
        covariance = matern(x, x, self._lengths) - explained.T @ explained
        for jitter in JITTERS:
            root, failed = torch.linalg.cholesky_ex(
                covariance + jitter * torch.eye(len(x), dtype=torch.double)
            )
            if not failed:
                return torch.as_tensor(mean + normal @ root.T)
        # Rounding left no root at all: draws that ignore the covariances between inputs.
        return torch.as_tensor(mean + normal * covariance.diagonal().clamp_min(0.0).sqrt())


@dataclasses.dataclass(frozen=True)
class Surrogate:
    """Fitted processes with `f` inputs and `m` independent outputs.

    Attributes:
        processes: One per output, of the standardised outputs.
        mean: `m` means of the outputs, in their own unit.
        scale: `m` standard deviations that the outputs were divided by.
    """

    processes: tuple[Process, ...]
    mean: Floats
    scale: Floats

    @property
    def outputs(self) -> int:
        """Number of outputs m."""
        return len(self.mean)

    @functools.cached_property
    def model(self) -> Any:
        """The same processes as a BoTorch model of the standardised outputs."""
        return botorch_model(self.processes)

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of the noise-free outputs at `t x f` inputs.

        Returns:
            Two `t x m` arrays, in the outputs' own unit.
        """
        inputs = torch.as_tensor(x, dtype=torch.double)
        means = np.empty((len(inputs), self.outputs))
        deviations = np.empty((len(inputs), self.outputs))
        with torch.no_grad():
            for start in range(0, len(inputs), CHUNK):
                rows = slice(start, start + CHUNK)
                for number, process in enumerate(self.processes):
                    mean, deviation = process.predict(inputs[rows])
                    means[rows, number] = mean.numpy()
                    deviations[rows, number] = deviation.numpy()
        return means * self.scale + self.mean, deviations * self.scale

    def sample(self, x: Floats, rng: np.random.Generator, count: int = 1) -> Floats:
        """Return `count x t x m` joint draws of the noise-free outputs at `t x f` inputs."""
        inputs = torch.as_tensor(x, dtype=torch.double)
        draws = np.empty((count, len(inputs), self.outputs))
        with torch.no_grad():
            for number, process in enumerate(self.processes):
                normal = torch.as_tensor(rng.standard_normal((count, len(inputs))))
                draws[:, :, number] = process.sample(inputs, normal).numpy()
        return draws * self.scale + self.mean

    def believing(self, x: Floats) -> Surrogate:
        """Return the surrogate that takes its own means at `q x f` pending inputs for measured.

        The kriging believer (D. Ginsbourger et al., 2010): it lowers the uncertainty where
        something is under way, so that the next proposal goes elsewhere.
        """
        if not len(x):
            return self
        inputs = torch.as_tensor(x, dtype=torch.double)
        with torch.no_grad():
            processes = tuple(
                Process(p.parameters, torch.cat([p.x, inputs]),
                        torch.cat([p.y, p.predict(inputs)[0]]))
                for p in self.processes
            )  # fmt: skip
        return dataclasses.replace(self, processes=processes)


def botorch_model(processes: Sequence[Process], *, first: int = 0, width: int | None = None) -> Any:
    """Return processes as one BoTorch model that sees its own among wider inputs.

    Args:
        processes: Conditioned on the same inputs.
        first: Column where theirs begin.
        width: Columns of all inputs; None for theirs alone.
    """
    from botorch.models import SingleTaskGP
    from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior

    own, outputs = processes[0].x, len(processes)
    count, f = own.shape
    x = own.new_zeros(count, width or f)
    x[:, first : first + f] = own
    batch = torch.Size([outputs] if outputs > 1 else [])
    kernel = get_covar_module_with_dim_scaled_prior(
        ard_num_dims=f,
        batch_shape=batch,
        use_rbf_kernel=False,
        active_dims=list(range(first, first + f)),
    )
    y = torch.stack([process.y for process in processes], dim=-1)
    with warnings.catch_warnings():
        # Constant outputs cannot be standardised; they are meant here.
        warnings.simplefilter("ignore")
        model = SingleTaskGP(x, y, covar_module=kernel, outcome_transform=None)
    known = [process.parameters for process in processes]
    lengths = torch.as_tensor(np.stack([p.lengths for p in known]), dtype=torch.double)
    noises = torch.tensor([p.noise for p in known], dtype=torch.double)
    constants = torch.tensor([p.constant for p in known], dtype=torch.double)
    kernel.lengthscale = lengths.reshape(*batch, 1, -1)
    model.likelihood.noise = noises.reshape(*batch, 1)
    model.mean_module.constant.data.copy_(constants.reshape(batch))
    return model.eval()


def fit(x: Floats, y: Floats, *, max_iterations: int | None = None) -> Surrogate:
    """Fit one Gaussian process per column of `y`.

    Constant columns and repeated inputs are allowed.

    Args:
        x: `t x f` inputs, scaled to about [0, 1].
        y: `t x m` outputs, finite.
        max_iterations: Of the optimiser; None chooses by the number of observations.
    """
    if max_iterations is None:
        max_iterations = ITERATIONS if len(x) <= LARGE else ITERATIONS_LARGE
    mean = y.mean(axis=0)
    scale = y.std(axis=0, ddof=1) if len(y) > 1 else np.ones(y.shape[1])
    scale = np.where(scale > FLAT, scale, 1.0)
    inputs = torch.as_tensor(x, dtype=torch.double)
    targets = torch.as_tensor((y - mean) / scale, dtype=torch.double)
    with torch.no_grad():
        processes = tuple(
            Process(best_parameters(inputs, column, max_iterations), inputs, column)
            for column in targets.T.contiguous()
        )
    return Surrogate(processes, mean, scale)
