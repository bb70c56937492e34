"""A random order of channels: what every criterion must beat.

Reference:
    Mittal et al. (2018), "Recovering from Random Pruning: On the Plasticity of Deep Convolutional
    Neural Networks", https://arxiv.org/abs/1801.10447: after long training random channels come
    close to chosen ones; before it they do not.

Deviations:
    None.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from torch import nn

from compression.coupling import Coupling
from compression.selectors.selector import Evidence, Scores


class Random:
    """Uniform random numbers, by seed and name of the coupling."""

    needs_labels = False
    needs_inputs = False

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], evidence: Evidence) -> Scores:
        """Score every channel of every coupling; of the evidence only the seed is looked at."""
        del model
        return {
            coupling.name: np.random.default_rng(
                [evidence.seed, zlib.crc32(coupling.name.encode())]
            ).random(coupling.channels)
            for coupling in couplings
        }
