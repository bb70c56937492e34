"""What a student's outputs are compared with: the teacher's logits, features and attention.

Every function returns a scalar that is differentiable in the student's argument, zero (or, for a
cross-entropy, least) where student and teacher agree, and a mean over the batch, so that weights
need no tuning to the batch's size. The teacher's argument never gets a gradient: pass it detached.

Reference:
    Hinton et al. (2015), "Distilling the Knowledge in a Neural Network", section 2,
    https://arxiv.org/abs/1503.02531.
    Peng et al. (2019), "Correlation Congruence for Knowledge Distillation", equations 5 to 9,
    https://arxiv.org/abs/1904.01802.
    Zagoruyko & Komodakis (2017), "Paying More Attention to Attention", section 3.1, equation 2,
    https://arxiv.org/abs/1612.03928.
    Huang & Wang (2017), "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
    section 3.3, https://arxiv.org/abs/1707.01219.

Deviations:
    The attention distance is squared, which keeps its gradient finite where the maps agree, as
    they do at first when little was removed.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from compression.errors import CompressionError

KdLoss = Literal["kl", "ce_soft", "ce_hard"]
FeatureLoss = Literal["none", "cckd", "attention", "nst"]

KD_LOSSES: tuple[KdLoss, ...] = ("kl", "ce_soft", "ce_hard")

FEATURE_WEIGHTS: dict[FeatureLoss, float] = {
    "none": 0.0,
    "cckd": 3e-3,
    "attention": 1.0,
    "nst": 25.0,
}
"""The feature loss's weight where a recipe names none. CCKD: the paper's beta for CIFAR-100. NST:
half the paper's lambda of 50, as there. Attention: the paper's beta / 2 of 500 is per position, so
that it is 0.5 to 8 of ours for maps of 32 x 32 to 8 x 8 positions."""

RBF_GAMMA = 0.4
"""Of the CCKD kernel, the paper's."""


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


def imitation_loss(kind: KdLoss, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return how far the student's logits are from the teacher's, the mean over the batch.

    Args:
        kind: `kl`: `distillation_loss`. `ce_soft`: cross-entropy with the teacher's own
            probabilities, without a temperature (its gradient is that of `kl` at T = 1).
            `ce_hard`: cross-entropy with the teacher's first choice.
        student: Logits, `B x classes`.
        teacher: Logits, `B x classes`.
        temperature: T, read by `kl` only.
    """
    match kind:
        case "kl":
            return distillation_loss(student, teacher, temperature)
        case "ce_soft":
            return functional.cross_entropy(student, functional.softmax(teacher, 1))
        case "ce_hard":
            return functional.cross_entropy(student, teacher.argmax(1))


def correlation(features: Tensor, gamma: float = RBF_GAMMA) -> Tensor:
    """Return the Gram matrix of a batch under an RBF kernel's second-order Taylor polynomial.

    `G_ij = exp(-2g) (1 + 2g s + (2g s)^2 / 2)` with `s = x_i . x_j` and x of unit length
    (equation 9 with P = 2), which approximates `exp(-g |x_i - x_j|^2)`.

    Args:
        features: `B x ...`, of any width; flattened per image.
        gamma: g.

    Returns:
        `B x B` float32.
    """
    units = functional.normalize(features.float().flatten(1), dim=1)
    similarity = 2 * gamma * (units @ units.T)
    decay = torch.exp(torch.tensor(-2 * gamma))
    polynomial: Tensor = decay * (1 + similarity + similarity.square() / 2)
    return polynomial


def cckd_loss(student: Tensor, teacher: Tensor, gamma: float = RBF_GAMMA) -> Tensor:
    """Return `|G_s - G_t|^2 / B^2` of the correlations between the images of a batch.

    Args:
        student: Features `B x ...`.
        teacher: Features `B x ...`; widths may differ from the student's.
        gamma: Of the kernel.
    """
    return (correlation(student, gamma) - correlation(teacher, gamma)).square().mean()


def attention_map(features: Tensor) -> Tensor:
    """Return where a layer is active: `sum_c F_c^2` over positions, scaled to unit length.

    Args:
        features: `B x C x H x W`.

    Returns:
        `B x HW` float32.
    """
    return functional.normalize(features.float().square().mean(1).flatten(1), dim=1)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared distance of the attention maps, from 0 to 2, the mean over the batch.

    Args:
        student: `B x C_s x H x W`.
        teacher: `B x C_t x H x W`.

    Raises:
        CompressionError: The shapes do not fit each other.
    """
    _require_maps(student, teacher, "attention")
    return (attention_map(student) - attention_map(teacher)).square().sum(1).mean()


def nst_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared MMD of two sets of channels, each a unit vector over positions.

    Kernel `k(x, y) = (x . y)^2`; every channel is one sample:
    `mean k(t, t') + mean k(s, s') - 2 mean k(s, t)`, the mean over the batch.

    Args:
        student: `B x C_s x H x W`.
        teacher: `B x C_t x H x W`.

    Raises:
        CompressionError: The shapes do not fit each other.
    """
    _require_maps(student, teacher, "nst")
    s = functional.normalize(student.float().flatten(2), dim=2)
    t = functional.normalize(teacher.float().flatten(2), dim=2)
    return _mean_kernel(t, t) + _mean_kernel(s, s) - 2 * _mean_kernel(s, t)


def _mean_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean of `(x_i . y_j)^2` over images and pairs of channels."""
    return (x @ y.transpose(1, 2)).square().mean()


def _require_maps(student: Tensor, teacher: Tensor, loss: str) -> None:
    shapes = f"{tuple(student.shape)} (student) and {tuple(teacher.shape)} (teacher)"
    if student.dim() != 4 or teacher.dim() != 4:
        raise CompressionError(
            f"Feature loss {loss!r} needs maps of shape B x C x H x W; got {shapes}"
        )
    if student.shape[0] != teacher.shape[0] or student.shape[2:] != teacher.shape[2:]:
        raise CompressionError(
            f"Feature loss {loss!r} compares equal numbers of images and positions; got {shapes}"
        )
