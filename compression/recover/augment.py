"""Random crops and flips of a whole batch at once.

Reference:
    He et al. (2015), "Deep Residual Learning for Image Recognition", section 4.2: 4 pixels of
    padding on each side, a random crop of the original size, a random horizontal flip.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

PADDING_PIXELS = 4


def crop_and_flip(
    images: Tensor, generator: torch.Generator, *, padding: int = PADDING_PIXELS
) -> Tensor:
    """Return a random crop of each image after zero padding, every other one mirrored.

    Padding comes after normalisation, so that the border is zero to the network: black before
    normalisation would be a strong signal that no test image has.

    Args:
        images: `B x C x H x W` float32, normalised.
        generator: Source of all randomness; draws the same numbers whatever the images are.
        padding: Pixels on each side.

    Returns:
        `B x C x H x W` float32, in channels-last memory order (the gather yields it for free).
    """
    batch, _, height, width = images.shape
    padded = functional.pad(images, (padding, padding, padding, padding))
    offsets = torch.randint(0, 2 * padding + 1, (2, batch, 1), generator=generator)
    flip = torch.randint(0, 2, (batch, 1), generator=generator).bool()
    rows = offsets[0] + torch.arange(height)
    columns = torch.arange(width).expand(batch, width)
    columns = offsets[1] + torch.where(flip, width - 1 - columns, columns)
    index = torch.arange(batch).view(-1, 1, 1)
    # Indices around a slice move to the front: the result is B x H x W x C.
    crops = padded[index, :, rows.unsqueeze(2), columns.unsqueeze(1)]
    return crops.permute(0, 3, 1, 2)
