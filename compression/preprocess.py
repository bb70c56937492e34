"""From stored pixels to the network's input: the one place where pixels are scaled."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compression.artifact import Preprocessing

Images = NDArray[np.uint8] | NDArray[np.float32]
"""`n x C x H x W`, uint8 pixels or float32 values."""


def preprocess(images: Images | Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return `(pixel / scale - mean) / std` per channel.

    Args:
        images: `B x C x H x W`, uint8 or float32, as datasets keep them: `preprocessing.layout`
            speaks of the uploaded file and was honoured when that was read.
        preprocessing: Scale, mean and std; one mean and std stand for all channels.

    Returns:
        `B x C x H x W` float32, newly allocated.
    """
    # np.array copies: torch must not alias arrays that are read-only or shared with other
    # processes.
    pixels = images if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
    mean = torch.tensor(preprocessing.mean, dtype=torch.float32).view(1, -1, 1, 1)
    std = torch.tensor(preprocessing.std, dtype=torch.float32).view(1, -1, 1, 1)
    return (pixels.to(torch.float32) / preprocessing.scale - mean) / std


def black(preprocessing: Preprocessing, channels: int) -> Tensor:
    """Return what a stored pixel of 0 is to the network: `channels` float32 values."""
    pixel = torch.zeros(1, channels, 1, 1)
    return preprocess(pixel, preprocessing).view(-1)
