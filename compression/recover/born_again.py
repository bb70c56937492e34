"""Born-again networks: every student is the next one's teacher.

Reference:
    Furlanello et al. (2018), "Born-Again Neural Networks", section 3,
    https://arxiv.org/abs/1805.04770: students of their teacher's architecture, each trained from
    random weights by the outputs of the one before.

Deviations:
    The first teacher may be larger (the original of a compressed network). Students may start
    from given weights instead. The loss is the recipe's.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from compression.backend import Backend
from compression.errors import CompressionError
from compression.recover.hook import Hook
from compression.recover.scratch import reinitialize
from compression.recover.training import Curve, Recipe, TrainingData, train


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generation:
    """One student.

    Attributes:
        model: Trained, in eval mode.
        curve: The course of its training.
    """

    model: nn.Module
    curve: Curve


def _no_hooks() -> Sequence[Hook]:
    return ()


def _no_end(model: nn.Module) -> None:
    del model


def born_again(
    model: nn.Module,
    data: TrainingData,
    recipe: Recipe,
    *,
    teacher: nn.Module | None,
    generations: int,
    inherit: bool,
    generator: torch.Generator,
    backend: Backend,
    progress: Callable[[Mapping[str, float]], None],
    breathe: Callable[[], None],
    hooks: Callable[[], Sequence[Hook]] = _no_hooks,
    trained: Callable[[nn.Module], None] = _no_end,
) -> tuple[Generation, ...]:
    """Train several generations and return them all: which is best, the caller measures.

    Args:
        model: The shape (and, with `inherit`, the first weights) of every generation; left as it
            was.
        data: What to learn from.
        recipe: Of every generation.
        teacher: Of the first; None: it learns from labels alone.
        generations: At least 1.
        inherit: Start each from the weights of `model` instead of from random ones.
        generator: Of everything random.
        backend: How to compute.
        progress: As in `train`, with the number of the `generation` (from 0) beside.
        breathe: As in `train`.
        hooks: Gives fresh hooks for each generation, such as a record's invariants. They do not
            go together with random weights where they hold what the weights were.
        trained: Called with each student before it teaches; recalibrates BatchNorm, say.

    Raises:
        CompressionError: There is no generation, or what `train` and `reinitialize` raise.
    """
    if generations < 1:
        raise CompressionError(f"Born-again: generations is {generations}; at least 1 is required")
    found: list[Generation] = []
    for number in range(generations):
        student = copy.deepcopy(model)
        if not inherit:
            reinitialize(student, generator)
        curve = train(
            student,
            data,
            recipe,
            teacher=teacher,
            generator=generator,
            backend=backend,
            progress=_numbered(progress, number),
            breathe=breathe,
            hooks=hooks(),
        )
        trained(student)
        found.append(Generation(model=student, curve=curve))
        teacher = student
    return tuple(found)


def _numbered(
    progress: Callable[[Mapping[str, float]], None], number: int
) -> Callable[[Mapping[str, float]], None]:
    return lambda report: progress({**report, "generation": number})
