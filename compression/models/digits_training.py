"""Training the digits network from nothing, in well under a minute on two threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from compression.artifact import Preprocessing
from compression.backend import Backend
from compression.models.digits_cnn import DigitsCnn, digits_cnn
from compression.recover.training import Recipe, TrainingData, train

DIGITS_PREPROCESSING = Preprocessing(scale=16.0, mean=(0.305,), std=(0.376,))
"""scikit-learn's digits have 17 grey levels, 0 to 16; mean and std are those of all 1,797."""

DIGITS_RECIPE = Recipe(epochs=5, learning_rate=0.05, batch_size=32, augment=False)

DIGITS_BACKEND = Backend(channels_last=True)
"""Fixed, not measured, so that a seed means the same weights on every day."""


def _silent(report: Mapping[str, float]) -> None:
    del report


def train_digits(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    seed: int = 0,
    recipe: Recipe = DIGITS_RECIPE,
    backend: Backend = DIGITS_BACKEND,
    progress: Callable[[Mapping[str, float]], None] = _silent,
) -> DigitsCnn:
    """Train a digits network on labelled images.

    Same arguments, backend and number of threads: same weights.

    Args:
        images: `n x 1 x 8 x 8` uint8, grey levels 0 to 16: the training part only.
        labels: `n` int64, 0 to 9.
        seed: Of the first weights, the order of images and everything else random.
        recipe: How to train.
        backend: How to compute.
        progress: Called about every 20 steps with `step`, `of`, `loss` and `epoch`.

    Returns:
        The network in eval mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = digits_cnn(num_classes=10, in_channels=1)
    train(
        model,
        TrainingData(images=images, labels=labels, preprocessing=DIGITS_PREPROCESSING),
        recipe,
        teacher=None,
        generator=torch.Generator().manual_seed(seed),
        backend=backend,
        progress=progress,
        breathe=lambda: None,
    )
    return model
