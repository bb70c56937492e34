"""The one training loop: fine-tuning by labels, by the original model's outputs, or by both.

Reference:
    Smith & Topin (2018), "Super-Convergence", https://arxiv.org/abs/1708.07120: the one-cycle
    schedule.

Deviations:
    The momentum stays constant over the cycle. The last step's weights are taken, not the best
    epoch's: the schedule ends at a learning rate near zero, and choosing by score would read the
    search split during training.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compression.artifact import Preprocessing
from compression.backend import Backend
from compression.errors import CompressionError
from compression.preprocess import Images, black, preprocess
from compression.recover.augment import Mixture, crop_and_flip, mix
from compression.recover.averaging import AVERAGES, Average, WeightAverage
from compression.recover.hook import Hook
from compression.recover.losses import FEATURE_WEIGHTS, KD_LOSSES, FeatureLoss, KdLoss
from compression.recover.objective import Objective
from compression.recover.training_state import (
    Batches,
    Checkpoints,
    Course,
    Moving,
    TrainingState,
)

WARM_UP_SHARE = 0.25
START_DIVISOR = 25.0
END_DIVISOR = 1e4
MAX_GRADIENT_NORM = 5.0
"""Guards short recoveries against single large steps. Distilling ResNet-20 at half width (300
steps, T = 4) norms ranged from 4 to 29 with a median of 7, so that it acts on most steps there."""


@dataclasses.dataclass(frozen=True, slots=True)
class TrainingData:
    """Images to learn from.

    Attributes:
        images: `n x C x H x W` uint8 or float32 stored pixels.
        labels: `n` int64 in [0, classes), or None: then only the teacher is imitated.
        preprocessing: From pixels to inputs.
    """

    images: Images
    labels: NDArray[np.int64] | None
    preprocessing: Preprocessing

    def __post_init__(self) -> None:
        if len(self.images) < 2:
            raise CompressionError(f"Training data has {len(self.images)} images; 2 are required")
        if self.labels is not None and len(self.labels) != len(self.images):
            raise CompressionError(
                f"Training data has {len(self.images)} images and {len(self.labels)} labels"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: Passes over the data, may be a fraction; not read where `steps` is given.
        steps: Exact number of steps, or None.
        learning_rate: Peak of the one-cycle schedule.
        batch_size: Images per step; the rest of an epoch that fills no batch is left out.
        temperature: T of the distillation, > 0.
        distill_weight: Share a of the distillation loss, in [0, 1]; read where there is a
            teacher, and 1 where there are no labels.
        kd_loss: How logits are compared: `kl`, `ce_soft` or `ce_hard` (`losses.imitation_loss`).
        feature_loss: What else is compared with the teacher: `none`, `cckd`, `attention` or
            `nst`; read where there is a teacher.
        feature_weight: Factor of the feature loss, at least 0; None: `losses.FEATURE_WEIGHTS`.
        feature_layers: Dotted paths in both networks, whose losses are added; none: found as
            `objective.Objective` says.
        augment: Random crop and flip.
        mixup: Share of the images that are mixed with another one, in [0, 1].
        weight_decay: L2 penalty on the weights of convolutions and linear layers only:
            normalisation scales and all biases are free.
        momentum: Of SGD with Nesterov's correction.
        average: Which weights are left: `none`, the last step's; `ema`, their exponential moving
            average; `tail`, their mean over the last `average_tail` of the steps. The caller
            recalibrates BatchNorm: averaged weights fit no step's statistics.
        average_decay: Of `ema`, in (0, 1).
        average_tail: Of `tail`, in (0, 1].
        early_stop: Stop when this many points of the loss curve in a row were no better than
            the best before, at least 1; None: never. The schedule is not shortened, so the
            learning rate is still high then.
    """

    epochs: float = 3.0
    steps: int | None = None
    learning_rate: float = 0.05
    batch_size: int = 128
    temperature: float = 4.0
    distill_weight: float = 0.9
    kd_loss: KdLoss = "kl"
    feature_loss: FeatureLoss = "none"
    feature_weight: float | None = None
    feature_layers: tuple[str, ...] = ()
    augment: bool = True
    mixup: float = 0.0
    weight_decay: float = 5e-4
    momentum: float = 0.9
    average: Average = "none"
    average_decay: float = 0.99
    average_tail: float = 0.25
    early_stop: int | None = None

    def __post_init__(self) -> None:
        feature_weight = self.feature_weight
        limits = {
            "epochs": (self.epochs >= 0, "at least 0"),
            "steps": (self.steps is None or self.steps >= 0, "at least 0"),
            "learning_rate": (self.learning_rate > 0, "greater than 0"),
            "batch_size": (self.batch_size >= 2, "at least 2"),
            "temperature": (self.temperature > 0, "greater than 0"),
            "distill_weight": (0 <= self.distill_weight <= 1, "in [0, 1]"),
            "kd_loss": (self.kd_loss in KD_LOSSES, f"one of {KD_LOSSES}"),
            "feature_loss": (
                self.feature_loss in FEATURE_WEIGHTS,
                f"one of {tuple(FEATURE_WEIGHTS)}",
            ),
            "feature_weight": (feature_weight is None or feature_weight >= 0, "at least 0"),
            "mixup": (0 <= self.mixup <= 1, "in [0, 1]"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "momentum": (0 < self.momentum < 1, "in (0, 1)"),
            "average": (self.average in AVERAGES, f"one of {AVERAGES}"),
            "average_decay": (0 < self.average_decay < 1, "in (0, 1)"),
            "average_tail": (0 < self.average_tail <= 1, "in (0, 1]"),
            "early_stop": (self.early_stop is None or self.early_stop >= 1, "at least 1"),
        }
        for name, (holds, limit) in limits.items():
            if not holds:
                raise CompressionError(
                    f"Recipe's {name} is {getattr(self, name)}; it must be {limit}"
                )

    def total_steps(self, images: int) -> int:
        """Return the number of steps over a data set of `images`."""
        if self.steps is not None:
            return self.steps
        return round(self.epochs * max(1, images // self.batch_size))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What happened in training.

    Attributes:
        steps: Steps done, in sum.
        images: Images seen, in sum.
        points: Pairs of the last step (from 1) and the mean loss of up to 20 steps before it.
    """

    steps: int
    images: int
    points: tuple[tuple[int, float], ...]

    def to_json(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {**dataclasses.asdict(self), "points": [list(point) for point in self.points]}


def train(
    model: nn.Module,
    data: TrainingData,
    recipe: Recipe,
    *,
    teacher: nn.Module | None,
    generator: torch.Generator,
    backend: Backend,
    progress: Callable[[Mapping[str, float]], None],
    breathe: Callable[[], None],
    hooks: Sequence[Hook] = (),
    checkpoints: Checkpoints | None = None,
    state: TrainingState | None = None,
) -> Curve:
    """Train a model in place.

    Same model, data, recipe, backend, generator state and number of threads: same weights,
    interrupted or not. What layers keep outside of parameters and persistent buffers is lost by
    an interruption.

    Args:
        model: Trained in place; in eval mode afterwards.
        data: What to learn from.
        recipe: How.
        teacher: The original model, which sees the same augmented images; None without
            distillation. Its weights and mode of layers stay; it is put into eval mode.
        generator: Of the order of images, augmentation and dropout.
        backend: How to compute forward and backward passes.
        progress: Called about every 20 steps with `step`, `of`, `loss` and `epoch`.
        breathe: Called before every step; may block as long as it likes.
        hooks: What else takes part in every step, in this order: first regularisers, then
            invariants.
        checkpoints: When to hand out the state; None: never.
        state: Where an interrupted training of the same arguments goes on; `model` and
            `generator` get their content from it.

    Returns:
        The course of the loss, from the first step on.

    Raises:
        CompressionError: There are neither labels nor a teacher, the loss is not finite, or
            `state` belongs to another training.
    """
    if data.labels is None and teacher is None:
        raise CompressionError("Training has neither labels nor a teacher to learn from")
    total = recipe.total_steps(len(data.images))
    terms = _terms(recipe, data, total)
    if state is not None:
        _require_same(state.terms, terms)
    backend.prepare(model).train()
    if teacher is not None:
        backend.prepare(teacher).eval()
    for hook in hooks:
        hook.start(model, total)
    moving = Moving(
        model=model,
        optimizer=_optimizer(model, recipe),
        batches=Batches(len(data.images), min(recipe.batch_size, len(data.images)), generator),
        average=WeightAverage(
            recipe.average,
            decay=recipe.average_decay,
            first_step=math.ceil(total * (1 - recipe.average_tail)),
        ),
        generator=generator,
        hooks=hooks,
    )
    course = Course()
    # Dropout layers read torch's global generator: it is seeded from ours inside a fork, and
    # whatever others draw before or after stays as it was.
    with (
        torch.random.fork_rng(devices=[]),
        Objective(model, teacher, recipe, backend) as objective,
    ):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        if state is not None:
            moving.load(state)
            course = state.course()
        while course.step < total and not course.stalled(recipe.early_stop):
            breathe()
            step = course.step
            inputs, labels, mixture = _batch(data, recipe, moving.batches, generator)
            loss = objective.loss(inputs, labels, mixture)
            value = _step(moving, loss, step, total, recipe)
            course.record(value, len(inputs), last=step + 1 == total)
            if not course.recent:
                epoch = course.images / len(data.images)
                mean = course.points[-1][1]
                progress({"step": step + 1, "of": total, "loss": mean, "epoch": epoch})
            if checkpoints is not None and course.step % checkpoints.every_steps == 0:
                checkpoints.keep(TrainingState.of(course, terms, moving.tensors()))
    moving.average.write(model)
    for hook in reversed(hooks):
        hook.finish(model)
    model.eval()
    return Curve(steps=course.step, images=course.images, points=tuple(course.points))


def _batch(
    data: TrainingData, recipe: Recipe, batches: Batches, generator: torch.Generator
) -> tuple[Tensor, Tensor | None, Mixture | None]:
    """Return the next batch: inputs, labels and how the inputs were mixed."""
    rows = batches.take().numpy()
    inputs = preprocess(data.images[rows], data.preprocessing)
    if recipe.augment:
        border = black(data.preprocessing, inputs.shape[1])
        inputs = crop_and_flip(inputs, generator, border=border)
    mixture = None
    if recipe.mixup:
        inputs, mixture = mix(inputs, recipe.mixup, generator)
    labels = None if data.labels is None else torch.from_numpy(data.labels[rows])
    return inputs, labels, mixture


def _step(moving: Moving, loss: Tensor, step: int, total: int, recipe: Recipe) -> float:
    """Go down the gradient of the loss and the hooks' penalties; return their sum."""
    model, optimizer = moving.model, moving.optimizer
    for hook in moving.hooks:
        penalty = hook.penalty(model, step)
        loss = loss if penalty is None else loss + penalty
    value = loss.item()
    if not math.isfinite(value):
        raise CompressionError(
            f"The training loss is {value} at step {step + 1} of {total}; "
            f"learning_rate is {recipe.learning_rate}"
        )
    for group in optimizer.param_groups:
        group["lr"] = one_cycle(step, total, recipe.learning_rate)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    for hook in moving.hooks:
        hook.gradients(model, step)
    nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
    optimizer.step()
    for hook in moving.hooks:
        hook.after_step(model, step)
    moving.average.update(model, step)
    return value


def one_cycle(step: int, total: int, peak: float) -> float:
    """Return the learning rate of a step: up to the peak in a quarter of the steps, then to zero.

    Both ways along half a cosine, from `peak / 25` and to `peak / 10000`.

    Args:
        step: From 0 to `total - 1`.
        total: Steps of the whole cycle.
        peak: The greatest learning rate.
    """
    place = (step + 0.5) / total
    if place < WARM_UP_SHARE:
        low, share = peak / START_DIVISOR, place / WARM_UP_SHARE
    else:
        low, share = peak / END_DIVISOR, (1 - place) / (1 - WARM_UP_SHARE)
    return low + (peak - low) * (1 - math.cos(math.pi * share)) / 2


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=True,
    )


def _terms(recipe: Recipe, data: TrainingData, total: int) -> dict[str, Any]:
    """Return what must be the same where a training goes on, as JSON data."""
    settings = dataclasses.asdict(recipe)
    settings["feature_layers"] = list(recipe.feature_layers)
    return {**settings, "total_steps": total, "images": len(data.images)}


def _require_same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name, value in wanted.items():
        if found.get(name) != value:
            raise CompressionError(
                f"The training state is of a training whose {name} is {found.get(name)}; "
                f"here it is {value}"
            )
