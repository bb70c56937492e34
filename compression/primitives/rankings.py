"""The order of importance of the channels of every coupling, computed once per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor, nn

from compression.coupling import Coupling, Indices
from compression.errors import PlanInvalid
from compression.selectors.selector import Batch, Evidence, Selector


class Rankings:
    """The couplings of a model and the order of importance of their channels.

    The order by a selector is computed on its first use and kept, so a warm worker ranks once.

    Attributes:
        couplings: By site.
    """

    def __init__(
        self,
        couplings: Mapping[str, Coupling],
        selectors: Mapping[str, Selector],
        batches: Sequence[Batch] = (),
        calibration: Sequence[Tensor] = (),
        seed: int = 0,
    ) -> None:
        self.couplings = couplings
        self._selectors = selectors
        self._evidence = Evidence(batches=batches, calibration=calibration, seed=seed)
        self._orders: dict[str, Mapping[str, Indices]] = {}

    def order(self, model: nn.Module, selector: str) -> Mapping[str, Indices]:
        """Return the channels of every site, most important first; equal ones ascending.

        Raises:
            PlanInvalid: The selector is unknown, needs labelled batches or inputs that are
                absent, or cannot score one of the sites.
        """
        if selector not in self._orders:
            chosen = self._selectors.get(selector)
            if chosen is None:
                known = ", ".join(self._selectors)
                raise PlanInvalid(f"Unknown selector {selector!r}; known: {known}")
            if chosen.needs_labels:
                self._evidence.labelled(selector)
            if chosen.needs_inputs:
                self._evidence.inputs(selector)
            scores = chosen.scores(model, tuple(self.couplings.values()), self._evidence)
            self._orders[selector] = {
                site: np.argsort(-score, kind="stable") for site, score in scores.items()
            }
        return self._orders[selector]
