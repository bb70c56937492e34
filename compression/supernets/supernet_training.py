"""The training of supernets: every step is of networks of other widths."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.backend import Backend
from compression.errors import CompressionError
from compression.preprocess import black, preprocess
from compression.recover.augment import crop_and_flip
from compression.recover.averaging import WeightAverage
from compression.recover.training import MAX_GRADIENT_NORM, Curve, TrainingData, one_cycle
from compression.recover.training_state import Batches, Course, Moving, TrainingState
from compression.supernets.supernet import Batch, Supernet


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SupernetRecipe:
    """How a supernet is trained.

    Attributes:
        steps: Batches, at least 1.
        learning_rate: Peak of the one-cycle schedule.
        batch_size: Images per step, at least 2.
        momentum: Of SGD, in (0, 1).
        weight_decay: L2 penalty on weights of more than one axis, at least 0.
        label_smoothing: Share of a target that is spread over all classes, in [0, 1).
        augment: Random crop and flip.
        checkpoint_steps: Steps between two checkpoints, at least 1.
    """

    steps: int = 1500
    learning_rate: float = 0.05
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_smoothing: float = 0.1
    augment: bool = True
    checkpoint_steps: int = 100

    def __post_init__(self) -> None:
        limits = {
            "steps": (self.steps >= 1, "at least 1"),
            "learning_rate": (self.learning_rate > 0, "greater than 0"),
            "batch_size": (self.batch_size >= 2, "at least 2"),
            "momentum": (0 < self.momentum < 1, "in (0, 1)"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "in [0, 1)"),
            "checkpoint_steps": (self.checkpoint_steps >= 1, "at least 1"),
        }
        for name, (holds, limit) in limits.items():
            if not holds:
                raise CompressionError(
                    f"SupernetRecipe's {name} is {getattr(self, name)}; it must be {limit}"
                )


def train_supernet(
    supernet: Supernet,
    data: TrainingData,
    recipe: SupernetRecipe,
    *,
    generator: torch.Generator,
    backend: Backend,
    progress: Callable[[Mapping[str, float]], None],
    breathe: Callable[[], None],
    keep: Callable[[bytes], None] = lambda _: None,
    resume: bytes | None = None,
) -> Curve:
    """Train a supernet in place; it is in eval mode afterwards.

    Same supernet, data, recipe, backend, generator state and number of threads: same weights,
    interrupted or not. Where there are no labels, the targets are the outputs of the dense
    network that the supernet began with.

    Args:
        supernet: Trained in place; as it was made, also where the training goes on.
        data: What to learn from.
        recipe: How.
        generator: Of the order of images, augmentation, widths and dropout.
        backend: How to compute.
        progress: Called about every 20 steps with `step`, `of`, `loss` and `epoch`.
        breathe: Called before every step; may block as long as it likes.
        keep: Takes a checkpoint every `recipe.checkpoint_steps` steps.
        resume: A checkpoint of an interrupted training of the same arguments.

    Raises:
        CompressionError: The loss is not finite, or `resume` belongs to another training.
        CheckpointInvalid: `resume` is damaged.
    """
    terms = {
        **dataclasses.asdict(recipe),
        **supernet.terms(),
        "images": len(data.images),
        "labelled": data.labels is not None,
    }
    teacher = None
    if data.labels is None:
        teacher = backend.prepare(copy.deepcopy(supernet.model)).eval()
    backend.prepare(supernet).train()
    moving = Moving(
        model=supernet,
        optimizer=_optimizer(supernet, recipe),
        batches=Batches(len(data.images), min(recipe.batch_size, len(data.images)), generator),
        average=WeightAverage("none", decay=0.99, first_step=recipe.steps),
        generator=generator,
        hooks=(),
    )
    course = Course()
    # Dropout layers read torch's global generator, which is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        if resume is not None:
            state = TrainingState.from_bytes(resume)
            _require_same(state.terms, terms)
            moving.load(state)
            course = state.course()
        while course.step < recipe.steps:
            breathe()
            batch = _batch(data, recipe, moving.batches, generator, teacher, backend,
                           supernet.classes)  # fmt: skip
            value = _step(supernet, moving.optimizer, batch, course.step, recipe, generator,
                          backend)  # fmt: skip
            course.record(value, len(batch.inputs), last=course.step + 1 == recipe.steps)
            if not course.recent:
                progress(
                    {
                        "step": course.step,
                        "of": recipe.steps,
                        "loss": course.points[-1][1],
                        "epoch": course.images / len(data.images),
                    }
                )
            if course.step % recipe.checkpoint_steps == 0:
                keep(TrainingState.of(course, terms, moving.tensors()).to_bytes())
    supernet.eval()
    return Curve(steps=course.step, images=course.images, points=tuple(course.points))


def _batch(
    data: TrainingData,
    recipe: SupernetRecipe,
    batches: Batches,
    generator: torch.Generator,
    teacher: nn.Module | None,
    backend: Backend,
    classes: int,
) -> Batch:
    rows = batches.take().numpy()
    inputs = preprocess(data.images[rows], data.preprocessing)
    if recipe.augment:
        border = black(data.preprocessing, inputs.shape[1])
        inputs = crop_and_flip(inputs, generator, border=border)
    if teacher is not None:
        with torch.no_grad():
            return Batch(inputs, backend.forward(teacher, inputs).softmax(1))
    assert data.labels is not None
    labels = torch.from_numpy(data.labels[rows])
    return Batch(inputs, smoothed(labels, classes, recipe.label_smoothing))


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Return `B x classes` target probabilities of labels (Szegedy et al., 2016, section 7)."""
    targets = functional.one_hot(labels, classes).float()
    return (1 - smoothing) * targets + smoothing / classes


def _step(
    supernet: Supernet,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    step: int,
    recipe: SupernetRecipe,
    generator: torch.Generator,
    backend: Backend,
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = one_cycle(step, recipe.steps, recipe.learning_rate)
    optimizer.zero_grad(set_to_none=True)
    value = supernet.accumulate(batch, generator, backend)
    if not math.isfinite(value):
        raise CompressionError(
            f"The supernet's loss is {value} at step {step + 1} of {recipe.steps}; "
            f"learning_rate is {recipe.learning_rate}"
        )
    nn.utils.clip_grad_norm_(supernet.parameters(), MAX_GRADIENT_NORM)
    optimizer.step()
    return value


def _optimizer(supernet: Supernet, recipe: SupernetRecipe) -> torch.optim.SGD:
    trainable = [p for p in supernet.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
    )


def _require_same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name, value in wanted.items():
        if found.get(name) != value:
            raise CompressionError(
                f"The checkpoint is of a supernet whose {name} is {found.get(name)}; "
                f"here it is {value}"
            )
