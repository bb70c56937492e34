"""Whether a dataset is one that a model can be searched with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from typing import Any

from compression.afford import Means
from compression.artifact import ModelArtifact
from service.errors import Fault
from workers.job import DatasetArtifact

LABELLED_METRICS = frozenset({"top1", "top5"})
"""Metrics that need labels; `agreement` compares with the original model instead."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """What a scan found of a dataset; None where it did not say.

    Attributes:
        image_shape: Of one stored image, C, H, W.
        num_classes: One more than the largest label; None without labels.
        labelled: Whether there are labels.
        images: Images by split.
    """

    image_shape: tuple[int, ...] | None
    num_classes: int | None
    labelled: bool | None
    images: Mapping[str, int]

    @property
    def means(self) -> Means:
        """What a job on these data can afford; what is not known is taken to be there."""
        return Means(
            labels=self.labelled is not False,
            calibration=self.images.get("calibration", 1),
            training=self.images.get("train", 1),
        )

    @staticmethod
    def of(summary: Mapping[str, Any] | None) -> DatasetFacts:
        """Return the facts in a stored summary."""
        found = summary or {}
        shape = found.get("image_shape")
        return DatasetFacts(
            image_shape=None if shape is None else tuple(int(side) for side in shape),
            num_classes=found.get("num_classes"),
            labelled=found.get("labelled"),
            images={str(k): int(v) for k, v in (found.get("splits") or {}).items()},
        )


def fit_faults(
    model: ModelArtifact,
    num_classes: int,
    dataset: DatasetArtifact,
    facts: DatasetFacts,
    metrics: Set[str],
) -> list[Fault]:
    """Return why the model cannot be searched with the data, as far as the scans tell.

    Args:
        model: The dense model.
        num_classes: Width of its output; 0 where unknown.
        dataset: The data.
        facts: What its scan found.
        metrics: Names in objectives and constraints.
    """
    faults = []
    shape = tuple(model.input_shape)
    if facts.image_shape is not None and tuple(facts.image_shape) != shape:
        message = (
            f"The dataset's images are {list(facts.image_shape)} (C, H, W) and the model takes "
            f"{list(shape)}"
        )
        faults.append(Fault("/dataset_id", message))
    if facts.num_classes is not None and num_classes and facts.num_classes > num_classes:
        message = (
            f"The dataset has labels up to {facts.num_classes - 1} and the model tells "
            f"{num_classes} classes apart"
        )
        faults.append(Fault("/dataset_id", message))
    wanting = sorted(LABELLED_METRICS & metrics)
    if facts.labelled is False and wanting:
        message = f"The dataset has no labels, which {', '.join(wanting)} need; use agreement"
        faults.append(Fault("/dataset_id", message))
    return faults
