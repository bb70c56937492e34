"""Random crops, flips and mixtures of a whole batch at once.

Reference:
    He et al. (2015), "Deep Residual Learning for Image Recognition", section 4.2: 4 pixels of
    padding on each side, a random crop of the original size, a random horizontal flip.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional

PADDING_PIXELS = 4


def crop_and_flip(
    images: Tensor,
    generator: torch.Generator,
    *,
    border: Tensor | None = None,
    padding: int = PADDING_PIXELS,
) -> Tensor:
    """Return a random crop of each image after padding, every other one mirrored.

    Args:
        images: `B x C x H x W` float32, normalised.
        generator: Source of all randomness; draws the same numbers whatever the images are.
        border: `C` normalised values of the padding, `compression.preprocess.black` as a rule:
            networks are trained on crops of images that were padded before they were normalised.
            None pads with zeros, the mean colour.
        padding: Pixels on each side.

    Returns:
        `B x C x H x W` float32, in channels-last memory order (the gather yields it for free).
    """
    batch, _, height, width = images.shape
    around = (padding, padding, padding, padding)
    if border is None:
        padded = functional.pad(images, around)
    else:
        colour = border.view(1, -1, 1, 1)
        padded = functional.pad(images - colour, around) + colour
    offsets = torch.randint(0, 2 * padding + 1, (2, batch, 1), generator=generator)
    flip = torch.randint(0, 2, (batch, 1), generator=generator).bool()
    rows = offsets[0] + torch.arange(height)
    columns = torch.arange(width).expand(batch, width)
    columns = offsets[1] + torch.where(flip, width - 1 - columns, columns)
    index = torch.arange(batch).view(-1, 1, 1)
    # Indices around a slice move to the front: the result is B x H x W x C.
    crops = padded[index, :, rows.unsqueeze(2), columns.unsqueeze(1)]
    return crops.permute(0, 3, 1, 2)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """Which two images each image of a batch was made of.

    Attributes:
        partners: `B` int64, the row that was mixed in.
        weights: `B` float32 in [0, 1], the share of the image itself; 1 where it stayed alone.
    """

    partners: Tensor
    weights: Tensor


def mix(images: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Mixture]:
    """Return each image, with the chance `share`, blended with another one of its batch.

    `x_i' = w_i x_i + (1 - w_i) x_p(i)` with p a random permutation and w_i uniform in [0, 1].

    Reference:
        Beyer et al. (2022), "Knowledge distillation: A good teacher is patient and consistent",
        section 3, https://arxiv.org/abs/2106.05237: teacher and student see the same mixture,
        its coefficient uniform in [0, 1]. Zhang et al. (2018), "mixup: Beyond Empirical Risk
        Minimization", https://arxiv.org/abs/1710.09412. Deviation: a coefficient per image, and
        a share of images that stay alone.

    Args:
        images: `B x C x H x W` float32.
        share: In [0, 1], how many images are mixed.
        generator: Source of all randomness.

    Returns:
        The images in the memory order they had, and how they were mixed.
    """
    batch = len(images)
    partners = torch.randperm(batch, generator=generator)
    weights = torch.rand(batch, generator=generator)
    alone = torch.rand(batch, generator=generator) >= share
    weights[alone] = 1.0
    blend = torch.lerp(images[partners], images, weights.view(-1, 1, 1, 1))
    return blend, Mixture(partners, weights)
