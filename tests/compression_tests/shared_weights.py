"""A trained-down-to-nothing setting that the tests of stored weights have in common."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from compression.backend import Backend
from compression.models.digits_training import DIGITS_PREPROCESSING
from compression.preprocess import preprocess
from compression.primitives.context import ModuleContext
from compression.primitives.rankings import Rankings
from compression.recover.hook import Hook
from compression.recover.training import Curve, Recipe, TrainingData, train
from compression.recover.training_state import Checkpoints, TrainingState
from compression.survey import survey
from compression.surveyed import Survey

SHAPE = (1, 8, 8)
RECIPE = Recipe(steps=60, batch_size=32, augment=False, learning_rate=0.05)


def digits(count: int = 640) -> TrainingData:
    """Return handwritten digits to learn from."""
    bunch = load_digits()
    return TrainingData(
        images=bunch.images[:count, None].astype(np.uint8),
        labels=bunch.target[:count].astype(np.int64),
        preprocessing=DIGITS_PREPROCESSING,
    )


def small_net(seed: int = 0) -> nn.Module:
    """Return an untrained network: 3 x 3, depthwise and 1 x 1 convolutions, two linear layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding="same", groups=32, bias=False),
            nn.Conv2d(32, 24, 1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, stride=2, padding=1, groups=2, bias=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(384, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        ).eval()


@functools.cache
def _trained() -> nn.Module:
    model = small_net()
    fine_tune(model, [])
    return model


def trained_net() -> nn.Module:
    """Return a copy of the network after one training."""
    return copy.deepcopy(_trained())


def loss_of(model: nn.Module) -> float:
    """Return the mean cross entropy on the training images, in eval mode."""
    data = digits()
    assert data.labels is not None
    with torch.inference_mode():
        outputs = model.eval()(preprocess(data.images, data.preprocessing))
        return float(functional.cross_entropy(outputs, torch.from_numpy(data.labels)))


@functools.cache
def small_survey() -> Survey:
    """Return the survey of `small_net`."""
    return survey(small_net(), SHAPE)


def context_of(model: nn.Module, calibration: Sequence[Tensor] = ()) -> ModuleContext:
    """Return a context with those calibration inputs and nothing to rank.

    Nothing that works on stored weights reads the survey.
    """
    return ModuleContext(
        dense=model,
        survey=small_survey(),
        rankings=Rankings({}, {}),
        input_shape=SHAPE,
        calibration=calibration,
        seed=3,
    )


def calibration(count: int = 96) -> list[Tensor]:
    """Return preprocessed digits in uneven batches."""
    data = digits(count)
    return list(torch.split(preprocess(data.images, data.preprocessing), 40))


def fine_tune(
    model: nn.Module,
    hooks: Sequence[Hook],
    recipe: Recipe = RECIPE,
    *,
    checkpoints: Checkpoints | None = None,
    state: TrainingState | None = None,
) -> Curve:
    """Train by labels on one thread, the same way each time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train(
            model,
            digits(),
            recipe,
            teacher=None,
            generator=torch.Generator().manual_seed(0),
            backend=Backend(),
            progress=lambda report: None,
            breathe=lambda: None,
            hooks=hooks,
            checkpoints=checkpoints,
            state=state,
        )
    finally:
        torch.set_num_threads(threads)
