"""Gaussian processes over plans: one per modelled quantity, fitted together.

BoTorch's `SingleTaskGP` with an ARD Matérn-5/2 kernel, Gaussian noise and dimension-scaled priors
(C. Hvarfner et al.: Vanilla Bayesian Optimization Performs Great in High Dimensions, ICML 2024);
outputs are standardised here, hyper-parameters maximise the posterior by L-BFGS-B.

Seeds and the default dtype are not touched. The number of torch's threads is one within
`one_thread` and as before after it: the matrices are small, other processes may be timing, and
sums in a fixed order make a fit a function of its data alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from botorch.models import SingleTaskGP
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from botorch.optim.fit import fit_gpytorch_mll_scipy
from gpytorch.mlls import ExactMarginalLogLikelihood
from linear_operator.utils.errors import NanError, NotPSDError
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

ITERATIONS, ITERATIONS_LARGE, LARGE = 40, 20, 100
"""Of L-BFGS-B, and beyond `LARGE` observations: many data pin the parameters sooner, each iteration
costs more, and a request should take a second or two."""

CHUNK = 256
"""Inputs per joint posterior: its covariance is square in them."""

FLAT = 1e-9
"""Standard deviation below which an output counts as constant and is not scaled."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread, and on as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclasses.dataclass(frozen=True)
class Surrogate:
    """Fitted processes with `f` inputs and `m` independent outputs.

    Attributes:
        model: BoTorch model of the standardised outputs, in evaluation mode.
        mean: `m` means of the outputs, in their own unit.
        scale: `m` standard deviations that the outputs were divided by.
    """

    model: Any
    mean: Floats
    scale: Floats

    @property
    def outputs(self) -> int:
        """Number of outputs m."""
        return len(self.mean)

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of the noise-free outputs at `t x f` inputs.

        Returns:
            Two `t x m` arrays, in the outputs' own unit.
        """
        inputs = torch.as_tensor(x, dtype=torch.double)
        means, deviations = [np.empty((0, self.outputs))], [np.empty((0, self.outputs))]
        with torch.no_grad():
            for start in range(0, len(inputs), CHUNK):
                posterior = self.model.posterior(inputs[start : start + CHUNK])
                means.append(posterior.mean.numpy())
                deviations.append(posterior.variance.clamp_min(0.0).sqrt().numpy())
        return (
            np.concatenate(means) * self.scale + self.mean,
            np.concatenate(deviations) * self.scale,
        )

    def believing(self, x: Floats) -> Surrogate:
        """Return the surrogate that takes its own means at `q x f` pending inputs for measured.

        The kriging believer (D. Ginsbourger et al., 2010): it lowers the uncertainty where
        something is under way, so that the next proposal goes elsewhere.
        """
        if not len(x):
            return self
        mean, _ = self.predict(x)
        standardised = (mean - self.mean) / self.scale
        old_x, old_y = _data(self.model)
        model = _build(
            torch.cat([old_x, torch.as_tensor(x, dtype=torch.double)]),
            torch.cat([old_y, torch.as_tensor(standardised, dtype=torch.double)]),
        )
        model.load_state_dict(self.model.state_dict())
        return dataclasses.replace(self, model=model.eval())


def _data(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `t x f` inputs and `t x m` outputs of a model; BoTorch keeps m in front."""
    inputs, targets = model.train_inputs[0], model.train_targets
    if model.num_outputs == 1:
        return inputs, targets.unsqueeze(-1)
    return inputs[0], targets.mT


def _build(x: torch.Tensor, y: torch.Tensor) -> Any:
    outputs = y.shape[-1]
    batch = torch.Size([outputs] if outputs > 1 else [])
    kernel = get_covar_module_with_dim_scaled_prior(
        ard_num_dims=x.shape[-1], batch_shape=batch, use_rbf_kernel=False
    )
    with warnings.catch_warnings():
        # Constant outputs cannot be standardised; they are meant here.
        warnings.simplefilter("ignore")
        return SingleTaskGP(x, y, covar_module=kernel, outcome_transform=None)


def fit(x: Floats, y: Floats, *, max_iterations: int | None = None) -> Surrogate:
    """Fit one Gaussian process per column of `y`.

    Constant columns and repeated inputs are allowed. When the optimiser fails numerically, the
    modes of the priors stay in place.

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
    model = _build(
        torch.as_tensor(x, dtype=torch.double),
        torch.as_tensor((y - mean) / scale, dtype=torch.double),
    )
    start = {name: value.clone() for name, value in model.state_dict().items()}
    likelihood = ExactMarginalLogLikelihood(model.likelihood, model)
    try:
        with warnings.catch_warnings():
            # L-BFGS-B reports that the iterations are spent, which is meant.
            warnings.simplefilter("ignore")
            fit_gpytorch_mll_scipy(likelihood, options={"maxiter": max_iterations})
    except (NotPSDError, NanError) as error:
        logger.warning("Gaussian process keeps its prior: %s", error, extra={"action": "gp.fit"})
        model.load_state_dict(start)
    return Surrogate(model.eval(), mean, scale)
