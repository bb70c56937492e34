"""Made-up machines for the stopwatch: noise, drift, and loads that are not alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from workers.meters.block import BlockPlan, BlockTimes, Load, Timed, run_block


class Machine:
    """A machine whose speed changes while it works; its clock goes by the work done.

    Args:
        noise: Factor of the next call, given the time in ms at which it starts.
        placement: Factor of a load for as long as it lives, given how many were before it.
        load_ms: What a load takes.
    """

    def __init__(
        self,
        noise: Callable[[float], float] = lambda now_ms: 1.0,
        placement: Callable[[int], float] = lambda count: 1.0,
        load_ms: float = 10.0,
    ) -> None:
        self.now_ms = 0.0
        self.order: list[str] = []
        self._noise = noise
        self._placement = placement
        self._load_ms = load_ms
        self._loads = 0

    def model(self, name: str, ms: float) -> Load:
        def load() -> Timed:
            factor = self._placement(self._loads)
            self._loads += 1
            self.now_ms += self._load_ms
            self.order.append(f"load {name}")

            def once() -> float:
                took = ms * factor * self._noise(self.now_ms)
                self.now_ms += took
                self.order.append(name)
                return took

            return once

        return load

    def blocks(self, ratio: float) -> Callable[[BlockPlan], BlockTimes]:
        """Return how a candidate is timed beside a baseline of 1 ms."""
        candidate, baseline = self.model("candidate", ratio), self.model("baseline", 1.0)
        return lambda plan: run_block(candidate, baseline, plan, clock=self.clock)

    def clock(self) -> float:
        return self.now_ms / 1e3


# Each with a seed of its own.


def quiet(rng: np.random.Generator) -> Machine:
    return Machine(
        lambda _: float(np.exp(0.05 * rng.standard_normal())),
        lambda _: float(np.exp(0.01 * rng.standard_normal())),
    )


def heavy_tailed(rng: np.random.Generator) -> Machine:
    return Machine(
        lambda _: float(np.exp(0.1 * min(40.0, abs(rng.standard_t(2))))),
        lambda _: float(np.exp(0.03 * rng.standard_t(3))),
    )


def drifting(rng: np.random.Generator) -> Machine:
    """Half as fast after a second, like a thermally limited core; the second load is worse."""
    return Machine(
        lambda now: float((1 + now / 1e3) * np.exp(0.05 * rng.standard_normal())),
        lambda count: 1.0 + 0.04 * (count % 2),
    )


def beside_a_hog(rng: np.random.Generator) -> Machine:
    """Another process takes the core for some milliseconds now and then."""
    state = {"until": 0.0, "hogged": False}

    def noise(now_ms: float) -> float:
        while now_ms >= state["until"]:
            state["hogged"] = not state["hogged"]
            state["until"] += float(rng.exponential(6.0))
        return float((2.2 if state["hogged"] else 1.0) * np.exp(0.04 * rng.standard_normal()))

    return Machine(noise, lambda _: float(np.exp(0.03 * rng.standard_normal())))


NOISES = [quiet, heavy_tailed, drifting, beside_a_hog]
