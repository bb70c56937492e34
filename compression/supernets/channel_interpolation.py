"""Channel-wise interpolation: features of one width brought to another, without parameters.

Reference:
    Dong & Yang (2019), "Network Pruning via Transformable Architecture Search", NeurIPS 2019,
    section 3.1, https://arxiv.org/abs/1905.09717: adaptive average pooling along the channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def interpolate_channels(features: Tensor, channels: int) -> Tensor:
    """Return the features with `channels` channels.

    `out[j] = mean(in[floor(j C / C') : ceil((j + 1) C / C')])` with C channels before and C' after.

    Args:
        features: `B x C x H x W`.
        channels: C', at least 1; it may be smaller or greater than C.
    """
    size = (channels, *features.shape[2:])
    return functional.adaptive_avg_pool3d(features.unsqueeze(1), size).squeeze(1)


def interpolation_matrix(before: int, after: int) -> Tensor:
    """Return what `interpolate_channels` does as a matrix, `after x before` float32.

    Every row sums to one. A layer that reads interpolated features has the same outputs as one
    that reads the features themselves with its weights multiplied by this matrix.
    """
    starts = torch.arange(after) * before // after
    ends = ((torch.arange(after) + 1) * before + after - 1) // after
    places = torch.arange(before)
    inside = (places >= starts.unsqueeze(1)) & (places < ends.unsqueeze(1))
    return inside / inside.sum(1, keepdim=True)
