"""The loss of one training step: labels, the teacher's logits and the teacher's features.

`(1 - a) CE(labels) + a KD(teacher) + b F(teacher)` with a the recipe's `distill_weight` and b its
`feature_weight`. Without a teacher only the first term is left, whole; without labels a is 1.
"""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.backend import Backend
from compression.recover.augment import Mixture
from compression.recover.features import Capture, penultimate_layer, stage_ends
from compression.recover.losses import (
    FEATURE_WEIGHTS,
    attention_loss,
    cckd_loss,
    imitation_loss,
    nst_loss,
)

if TYPE_CHECKING:
    from compression.recover.training import Recipe


class Objective:
    """Computes the loss of a student; a context manager, since it may listen to layers.

    The feature layers are found on the first batch where the recipe names none: for CCKD the
    input of the last linear layer, for attention transfer and NST the last layer of the teacher at
    each resolution.
    """

    def __init__(
        self, model: nn.Module, teacher: nn.Module | None, recipe: Recipe, backend: Backend
    ) -> None:
        self._model = model
        self._teacher = teacher
        self._recipe = recipe
        self._backend = backend
        self._captures: tuple[Capture, Capture] | None = None
        self._layers: tuple[str, ...] = ()
        self._listening = contextlib.ExitStack()

    def __enter__(self) -> Objective:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listening.close()
        self._captures = None

    def loss(self, inputs: Tensor, labels: Tensor | None, mixture: Mixture | None) -> Tensor:
        """Return the loss of a batch, a scalar.

        Args:
            inputs: `B x C x H x W` float32, augmented and mixed; the teacher sees the same.
            labels: `B` int64, or None.
            mixture: How the inputs were mixed, so that labels are mixed alike.

        Raises:
            CompressionError: A feature layer is absent or its shapes do not fit.
        """
        recipe, teacher = self._recipe, self._teacher
        if teacher is None:
            assert labels is not None
            return label_loss(self._backend.forward(self._model, inputs), labels, mixture)
        if recipe.feature_loss != "none" and self._captures is None:
            self._listen(teacher, inputs)
        logits = self._backend.forward(self._model, inputs)
        with torch.no_grad():
            wanted = self._backend.forward(teacher, inputs)
        loss = imitation_loss(recipe.kd_loss, logits, wanted, recipe.temperature)
        if labels is not None:
            hard = label_loss(logits, labels, mixture)
            loss = (1 - recipe.distill_weight) * hard + recipe.distill_weight * loss
        if self._captures is None:
            return loss
        weight = recipe.feature_weight
        weight = FEATURE_WEIGHTS[recipe.feature_loss] if weight is None else weight
        return loss + weight * self._feature_loss(*self._captures)

    def _feature_loss(self, student: Capture, teacher: Capture) -> Tensor:
        """Return the sum over the feature layers."""
        function = {"cckd": cckd_loss, "attention": attention_loss, "nst": nst_loss}[
            self._recipe.feature_loss
        ]
        losses = [function(student.of(name), teacher.of(name)) for name in self._layers]
        return torch.stack(losses).sum()

    def _listen(self, teacher: nn.Module, inputs: Tensor) -> None:
        recipe = self._recipe
        self._layers = recipe.feature_layers
        side: Literal["in", "out"] = "out"
        if not self._layers and recipe.feature_loss == "cckd":
            self._layers = (penultimate_layer(teacher, inputs, self._backend),)
            side = "in"
        elif not self._layers:
            self._layers = stage_ends(teacher, inputs, self._backend)
        self._captures = (
            self._listening.enter_context(Capture(self._model, self._layers, side)),
            self._listening.enter_context(Capture(teacher, self._layers, side)),
        )


def label_loss(logits: Tensor, labels: Tensor, mixture: Mixture | None) -> Tensor:
    """Return the cross-entropy, the mean over the batch, with labels mixed as the images were.

    Args:
        logits: `B x classes`.
        labels: `B` int64.
        mixture: Of the images; None where they were not mixed.
    """
    if mixture is None:
        return functional.cross_entropy(logits, labels)
    own = functional.cross_entropy(logits, labels, reduction="none")
    other = functional.cross_entropy(logits, labels[mixture.partners], reduction="none")
    return torch.lerp(other, own, mixture.weights).mean()
