"""Channel importance by the scale that BatchNorm gives it; needs no data.

Reference:
    Liu et al. (2017), "Learning Efficient Convolutional Networks through Network Slimming";
    https://arxiv.org/abs/1708.06519. A channel's importance is the absolute value of gamma.

Deviations:
    The paper trains with an L1 penalty on gamma first; here gamma is taken as the user trained
    it. Where several norms scale a channel their absolute gammas are added. A coupling without
    an affine BatchNorm is ranked by the L2 norm of its filters.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compression.coupling import Coupling
from compression.selectors.magnitude import Magnitude
from compression.selectors.selector import Evidence, Scores, sum_over_producers


class BatchNormScale:
    """The absolute value of a channel's gamma, summed over the norms of its coupling."""

    needs_labels = False
    needs_inputs = False

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], evidence: Evidence) -> Scores:
        """Score every channel of every coupling; the evidence is not looked at."""
        scales = {
            name: module.weight.detach().abs()
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.affine
        }
        values = {f"{name}.weight": scale for name, scale in scales.items()}
        bare = [c for c in couplings if not any(tap.layer in scales for tap in c.taps)]
        scores = {c.name: sum_over_producers(values, c) for c in couplings}
        return {**scores, **Magnitude(2).scores(model, bare, evidence)}
