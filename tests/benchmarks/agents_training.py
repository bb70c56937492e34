"""Short trainings of ResNets' plans, for benchmarks of agents that train.

All of a benchmark see the same images in the same order; finished ones are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compression.counting import count_params
from compression.decisions import PruneChannels
from compression.plan import Plan
from compression.recover.training import Recipe, TrainingData, train
from search.agent import Prepare
from search.measurement import Interval, Measured
from search.trial import Fidelity, Trial
from tests.benchmarks.agents_world import Setting, World
from tests.benchmarks.peer_rows import FinishedRows, Row, top1_gain
from workers.meters.accuracy import accuracy

RECOVERY_RATE = 0.02
SHARES = 256
"""Uniform plans keep multiples of one of so many parts of the width."""

Logits = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TrainingBench:
    """Data, folder and sizes of a run."""

    folder: Path
    options: argparse.Namespace
    rows: FinishedRows

    def world(self, name: str, setting: Setting, depth: int = 20) -> World:
        """Return a ResNet in a setting."""
        files = self.options.train_files
        # What was trained on other images is not the same evaluation.
        name = f"{name}-{files}"
        work = self.options.work
        return World(self.folder, work, depth, name, train_files=files, setting=setting)

    @property
    def conditions(self) -> dict[str, Any]:
        """What every training depends on."""
        return {"train_files": self.options.train_files, "seed": self.options.seed}

    def trained(
        self,
        world: World,
        name: str,
        make: Callable[[], nn.Module],
        *,
        steps: int,
        rate: float = RECOVERY_RATE,
        distils: bool = True,
    ) -> Row:
        """Return top-1 and parameters of a network after a training, finished ones kept."""

        def run() -> tuple[Row, Logits]:
            model, context = make(), world.context
            images, known = context.data.part("train")
            begin = time.perf_counter()
            if steps:
                train(
                    model,
                    TrainingData(images, known, context.spec.model.preprocessing),
                    Recipe(steps=steps, learning_rate=rate),
                    teacher=context.dense if distils else None,
                    generator=torch.Generator().manual_seed(self.options.seed),
                    backend=context.backend,
                    progress=lambda _: None,
                    breathe=lambda: None,
                )
            context.recalibrate(model)
            images, labels = context.part(Fidelity.FULL)
            logits = context.score_module(model, images)
            reading = accuracy(logits, labels, context.dense_logits(Fidelity.FULL), "search")[0]
            figures = {
                "top1": round(100 * reading.value, 3),
                "params": count_params(model),
                "training_s": round(time.perf_counter() - begin, 1),
            }
            return figures, logits

        terms = {**self.conditions, "steps": steps, "rate": rate, "distils": distils}
        return self.rows.row("trained", name, terms, run)

    def gain(self, world: World, ours: Row, theirs: Row) -> Interval:
        """Return by how many points of top-1 one trained network is better, paired."""
        labels = world.context.part(Fidelity.FULL)[1]
        assert labels is not None
        return top1_gain(self.rows.logits(ours), self.rows.logits(theirs), labels)


def prepared(world: World, order: Prepare) -> Trial:
    trial = world.carry_out(order)
    if not isinstance(trial.outcome, Measured):
        raise RuntimeError(f"Preparation {order.kind!r} came to {trial.outcome}")
    return trial


def three(interval: Interval) -> list[float]:
    return [round(v, 3) for v in (interval.value, interval.low, interval.high)]


def uniform_plans(world: World, selector: str) -> Iterator[Plan]:
    """Yield the plans that keep one share of every inner width, the widest first."""
    for step in range(SHARES - 1, 0, -1):
        keeps = {
            site.name: (max(1, round(step / SHARES * site.channels)), site.channels)
            for site in world.context.survey.prunable()
        }
        yield Plan.of(
            {
                name: [PruneChannels(keep_channels=kept, selector=selector)]
                for name, (kept, whole) in keeps.items()
                if kept < whole
            }
        )
