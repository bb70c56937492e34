"""The one training loop: fine-tuning by labels, by the original model's outputs, or by both.

Reference:
    Hinton et al. (2015), "Distilling the Knowledge in a Neural Network", section 2,
    https://arxiv.org/abs/1503.02531: `(1 - a) CE(y, s) + a T^2 KL(softmax(t/T) || softmax(s/T))`
    for logits t of the teacher and s of the student.
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
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from compression.artifact import Preprocessing
from compression.backend import Backend
from compression.errors import CompressionError
from compression.preprocess import Images, preprocess
from compression.recover.augment import crop_and_flip

PROGRESS_STEPS = 20
"""Steps between two progress reports, and the width of one point of the loss curve."""

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
        augment: Random crop and flip.
        weight_decay: L2 penalty on the weights of convolutions and linear layers only:
            normalisation scales and all biases are free.
        momentum: Of SGD with Nesterov's correction.
    """

    epochs: float = 3.0
    steps: int | None = None
    learning_rate: float = 0.05
    batch_size: int = 128
    temperature: float = 4.0
    distill_weight: float = 0.9
    augment: bool = True
    weight_decay: float = 5e-4
    momentum: float = 0.9

    def __post_init__(self) -> None:
        limits = {
            "epochs": (self.epochs >= 0, "at least 0"),
            "steps": (self.steps is None or self.steps >= 0, "at least 0"),
            "learning_rate": (self.learning_rate > 0, "greater than 0"),
            "batch_size": (self.batch_size >= 2, "at least 2"),
            "temperature": (self.temperature > 0, "greater than 0"),
            "distill_weight": (0 <= self.distill_weight <= 1, "in [0, 1]"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "momentum": (0 < self.momentum < 1, "in (0, 1)"),
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
) -> Curve:
    """Train a model in place.

    Same model, data, recipe, backend, generator state and number of threads: same weights.

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

    Returns:
        The course of the loss.

    Raises:
        CompressionError: There are neither labels nor a teacher, or the loss is not finite.
    """
    if data.labels is None and teacher is None:
        raise CompressionError("Training has neither labels nor a teacher to learn from")
    total = recipe.total_steps(len(data.images))
    backend.prepare(model).train()
    if teacher is not None:
        backend.prepare(teacher).eval()
    optimizer = _optimizer(model, recipe)
    points: list[tuple[int, float]] = []
    recent: list[float] = []
    images_seen = 0
    batches = _batches(len(data.images), min(recipe.batch_size, len(data.images)), generator)
    # Dropout layers read torch's global generator: it is seeded from ours inside a fork, and
    # whatever others draw before or after stays as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        for step in range(total):
            breathe()
            for group in optimizer.param_groups:
                group["lr"] = one_cycle(step, total, recipe.learning_rate)
            rows = next(batches)
            inputs = preprocess(data.images[rows], data.preprocessing)
            if recipe.augment:
                inputs = crop_and_flip(inputs, generator)
            labels = None if data.labels is None else torch.from_numpy(data.labels[rows])
            loss = _loss(model, teacher, inputs, labels, recipe, backend)
            value = loss.item()
            if not math.isfinite(value):
                raise CompressionError(
                    f"The training loss is {value} at step {step + 1} of {total}; "
                    f"learning_rate is {recipe.learning_rate}"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
            optimizer.step()
            recent.append(value)
            images_seen += len(rows)
            if len(recent) == PROGRESS_STEPS or step + 1 == total:
                points.append((step + 1, sum(recent) / len(recent)))
                recent.clear()
                epoch = images_seen / len(data.images)
                progress({"step": step + 1, "of": total, "loss": points[-1][1], "epoch": epoch})
    model.eval()
    return Curve(steps=total, images=images_seen, points=tuple(points))


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


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return `T^2 KL(softmax(teacher/T) || softmax(student/T))`, the mean over the batch.

    Args:
        student: Logits, `B x classes`.
        teacher: Logits, `B x classes`.
        temperature: T; the factor T^2 keeps gradients of the size of cross-entropy's.
    """
    divergence = functional.kl_div(
        functional.log_softmax(student / temperature, 1),
        functional.log_softmax(teacher / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2


def _loss(
    model: nn.Module,
    teacher: nn.Module | None,
    inputs: Tensor,
    labels: Tensor | None,
    recipe: Recipe,
    backend: Backend,
) -> Tensor:
    logits = backend.forward(model, inputs)
    if teacher is None:
        assert labels is not None
        return functional.cross_entropy(logits, labels)
    with torch.inference_mode():
        wanted = backend.forward(teacher, inputs)
    # Inference tensors may not be saved for backward; a clone outside the mode may.
    imitation = distillation_loss(logits, wanted.clone(), recipe.temperature)
    if labels is None:
        return imitation
    hard = functional.cross_entropy(logits, labels)
    return (1 - recipe.distill_weight) * hard + recipe.distill_weight * imitation


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


def _batches(images: int, size: int, generator: torch.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield rows of full batches, a new order every epoch, without end."""
    while True:
        order = torch.randperm(images, generator=generator).numpy()
        for start in range(0, images - size + 1, size):
            yield order[start : start + size]
