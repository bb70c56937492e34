"""Simulated annealing in numbers: temperatures, acceptance, the size of moves, sorted rates.

Reference:
    Kirkpatrick, Gelatt, Vecchi (1983), "Optimization by Simulated Annealing" (acceptance after
    Metropolis, geometric cooling); a start temperature from the changes of random moves as in
    Ben-Ameur (2004), "Computing the Initial Temperature of Simulated Annealing", here of their
    median. Rates sorted by layer size: Liu et al., AutoCompress, AAAI 2020.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compression.space import Point

FAR, NEAR = 0.2, 0.02
"""Size of the first and of the last move of a chain, in shares of a width."""

SUBSET = (0.3, 0.5)
"""Share of the sites that one move changes, from and to."""


def acceptance(change: float, temperature: float) -> float:
    """Return the probability of moving: 1 downhill, `exp(-change / temperature)` uphill.

    Args:
        change: Energy after minus energy before.
        temperature: At least 0, in the energy's unit; at 0 nothing goes uphill.
    """
    if change <= 0:
        return 1.0
    return math.exp(-change / temperature) if temperature > 0 else 0.0


def start_temperature(changes: Sequence[float], accepted: float) -> float:
    """Return the temperature at which the median change is accepted with probability `accepted`.

    `median |change| / -ln(accepted)`: with 0.8, the median divided by 0.223.

    Args:
        changes: Energies of random moves relative to where they began; 0 for none.
        accepted: In (0, 1).
    """
    if not changes:
        return 0.0
    return statistics.median(abs(change) for change in changes) / -math.log(accepted)


def move_size(step: int, steps: int) -> float:
    """Return the greatest change of a rate at a step: from `FAR` to `NEAR`, geometrically.

    Args:
        step: From 0.
        steps: After so many it is `NEAR`; at least 1.
    """
    share = min(1.0, step / max(1, steps - 1)) if steps > 1 else 0.0
    return float(FAR * (NEAR / FAR) ** share)


def perturbed(
    rates: NDArray[np.float64], size: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return rates of which a random 30 to 50 % moved by up to `size` either way; at least one.

    Args:
        rates: `d` values in [0, 1].
        size: Greatest change, positive.
        rng: Of the choice and the changes.
    """
    d = len(rates)
    count = min(d, max(1, round(float(rng.uniform(*SUBSET)) * d)))
    chosen = rng.choice(d, size=count, replace=False)
    out = rates.copy()
    out[chosen] = np.clip(out[chosen] + rng.uniform(-size, size, size=count), 0.0, 1.0)
    return out


def sorted_by_size(rates: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the same rates dealt out anew: a larger layer gets no lower one.

    Args:
        rates: `d` pruning rates.
        sizes: `d` sizes of what they prune; of equal ones the first gets the lower rate.
    """
    out = np.empty_like(rates)
    out[np.argsort(sizes, kind="stable")] = np.sort(rates)
    return out


@dataclasses.dataclass(frozen=True, slots=True)
class Chain:
    """Where one chain stands.

    Attributes:
        point: Its present plan.
        energy: Of that plan; None until one was measured.
        temperature: In the energy's unit.
    """

    point: Point
    energy: float | None
    temperature: float

    def judged(self, point: Point, energy: float | None, chance: float, cooling: float) -> Chain:
        """Return the chain after a proposal.

        Args:
            point: Proposed.
            energy: Of it; None where it could not be measured, then the chain stays.
            chance: Uniform in [0, 1).
            cooling: Factor of the temperature.
        """
        cooler = dataclasses.replace(self, temperature=cooling * self.temperature)
        if energy is None or (
            self.energy is not None and chance >= acceptance(energy - self.energy, self.temperature)
        ):
            return cooler
        return dataclasses.replace(cooler, point=point, energy=energy)
