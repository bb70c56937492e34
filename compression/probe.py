"""Trying a removal before believing it: which couplings can be pruned, and why others cannot.

Every coupling has an uneven half of its channels removed from a copy of the model, and the result
must equal the masked dense copy (`compression.equivalence`). The copy has random weights, so that
the answer is one about the structure: a fault cannot hide behind a trained weight that happens to
be zero, such as the last scale of a residual block.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compression.counting import count_params
from compression.coupling import Coupling, Indices
from compression.equivalence import FORWARD_ERRORS, TOLERANCE, equivalence_gap
from compression.errors import NotCertified
from compression.surgery import cuts_of, thin

IS_OUTPUT = "its channels are the model's outputs"
"""The reason of a coupling that no user would call a site."""


class Probe:
    """Tries couplings on a copy of one model, with its own random weights and inputs."""

    def __init__(self, model: nn.Module, input_shape: tuple[int, int, int]) -> None:
        generator = torch.Generator().manual_seed(0)
        self._x = torch.randn(2, *input_shape, generator=generator)
        self._model = copy.deepcopy(model)
        _randomize(self._model, torch.randn(4, *input_shape, generator=generator), generator)
        with torch.no_grad():
            self._shape = self._model(self._x).shape
        self._rng = np.random.default_rng(0)

    def reasons(self, couplings: Sequence[Coupling]) -> dict[str, str]:
        """Return why each coupling that cannot be pruned cannot, by name."""
        reasons = {}
        for coupling in couplings:
            obstacle = coupling.obstacle
            if obstacle is None and coupling.channels < 2:
                obstacle = "it has one channel only"
            if obstacle is not None:
                reasons[coupling.name] = obstacle
        free = [c for c in couplings if c.name not in reasons]
        reasons.update(self._search(free))
        # Couplings that are sound alone may still clash: add one at a time until all fit.
        free = [c for c in free if c.name not in reasons]
        if free and self._fault(free) is not None:
            accepted: list[Coupling] = []
            for coupling in free:
                if self._fault([*accepted, coupling]) is None:
                    accepted.append(coupling)
                else:
                    reasons[coupling.name] = "it cannot be pruned together with other sites"
        return reasons

    def _search(self, couplings: Sequence[Coupling]) -> dict[str, str]:
        """Find the faulty ones by halving: a sound model needs one trial, not one per site."""
        fault = self._fault(couplings) if couplings else None
        if fault is None:
            return {}
        if len(couplings) == 1:
            return {couplings[0].name: fault}
        middle = len(couplings) // 2
        return {**self._search(couplings[:middle]), **self._search(couplings[middle:])}

    def _fault(self, couplings: Sequence[Coupling]) -> str | None:
        """Prune all of them at once; return what is wrong with the result, or None."""
        # A random half is uneven: no symmetry of the network can hide a wrong index.
        kept: dict[str, Indices] = {
            c.name: np.sort(self._rng.permutation(c.channels)[: c.channels - c.channels // 2])
            for c in couplings
        }
        cuts = cuts_of(self._model, couplings, kept)
        thinned = thin(self._model, cuts)
        if count_params(thinned) >= count_params(self._model):
            return "removing its channels removes no parameters"
        try:
            gap = equivalence_gap(self._model, thinned, cuts, self._x)
        except NotCertified as error:
            if self._changes_outputs(thinned):
                return IS_OUTPUT
            fault = f"the model's code relies on its width ({error})"
        else:
            if gap <= TOLERANCE:
                return None
            fault = (
                "without these channels the model is not the same model with these channels "
                f"ignored (outputs differ by {gap:.2g} of their scale)"
            )
        return fault

    def _changes_outputs(self, thinned: nn.Module) -> bool:
        try:
            with torch.no_grad():
                shape = thinned(self._x).shape
        except FORWARD_ERRORS:
            return False
        return len(shape) == len(self._shape) and shape[0] == self._shape[0]


def _randomize(model: nn.Module, x: Tensor, generator: torch.Generator) -> None:
    """Give `model` weights that let every channel be seen in the outputs.

    Weights are Gaussian with variance 2 / fan-in (He et al., 2015), scales uniform in
    [0.5, 1.5], biases small; BatchNorm statistics are those of `x`.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.3, generator=generator)
            else:
                parameter.uniform_(0.5, 1.5, generator=generator)
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        momenta = [norm.momentum for norm in norms]
        hooks = [norm.register_forward_pre_hook(_train_where_possible) for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = 1.0
        model(x)
        for norm, momentum, hook in zip(norms, momenta, hooks, strict=True):
            hook.remove()
            norm.momentum = momentum
            norm.eval()
            if norm.running_var is not None:
                norm.running_var.clamp_(min=0.1)


def _train_where_possible(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    # One value per channel has no variance: such a layer keeps the statistics of its reset.
    module.train(inputs[0].numel() > inputs[0].shape[1])
