"""Scalar codebooks: a layer's weights take few values, found by optimal one-dimensional k-means.

Reference:
    Han et al. (2016), "Deep Compression", section 3, https://arxiv.org/abs/1510.00149: one
    codebook per layer, equation 2 (sum of squared distances).
    Gronlund et al. (2017), "Fast Exact k-Means, k-Medians and Bregman Divergence Clustering in
    1D", https://arxiv.org/abs/1701.07204: the optimum, by the package `kmeans1d`.

Deviations:
    The optimum instead of Lloyd's iterations from a linear start. Exact zeros are one entry of
    their own, so that sparse layers stay sparse and zeros cost no accuracy. Entries are rounded
    to float16, and no layer gets more entries than a quarter of its blocks (the clamp of Stock
    et al., 2020, section 5), because the table would outweigh the indices.
"""

from __future__ import annotations

import dataclasses

import kmeans1d  # type: ignore[import-untyped, unused-ignore]
import torch
from torch import Tensor

from compression.primitives.weight_layers import half

BLOCKS_PER_ENTRY = 4

EXACT_LIMIT = 4_000_000
"""Values times entries up to which the optimum is computed (about a second). Beyond it, the
optimum of every s-th of the sorted values starts Lloyd's iterations on all of them."""

LLOYD_ITERATIONS = 30


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Codebook:
    """The values that blocks of a layer's weights take.

    Attributes:
        values: `K x block` float32, every number representable in float16.
        assignments: `n` int64, the entry of each block; blocks in row-major order of the weight.
        zero: Whether entry 0 is exactly zero and must stay so.
    """

    values: Tensor
    assignments: Tensor
    zero: bool

    def weight(self, shape: torch.Size) -> Tensor:
        """Return the weights that the codebook stands for."""
        return self.values[self.assignments].reshape(shape)


def clamp_entries(entries: int, blocks: int) -> int:
    """Return how many entries a layer gets that has `blocks` blocks: at least 2.

    >>> clamp_entries(256, 256), clamp_entries(16, 36864)
    (64, 16)
    """
    return max(2, min(entries, blocks // BLOCKS_PER_ENTRY))


def cluster_scalars(weight: Tensor, entries: int) -> Codebook:
    """Return the best codebook of at most `entries` scalars; a zero entry counts as one of them.

    Args:
        weight: Finite numbers of any shape.
        entries: At least 2.
    """
    flat = weight.detach().reshape(-1)
    zeros = flat == 0
    zero = bool(zeros.any())
    rest = flat[~zeros].double()
    if not len(rest):
        assignments = torch.zeros(len(flat), dtype=torch.int64)
        return Codebook(values=torch.zeros(1, 1), assignments=assignments, zero=True)
    centroids = torch.unique(half(optimal_centroids(rest, entries - zero)))
    # Numbers below float16's least may have rounded to zero; they join the zero entry then.
    kept = centroids[centroids != 0] if zero else centroids
    place = torch.zeros(len(centroids), dtype=torch.int64)
    place[torch.isin(centroids, kept)] = torch.arange(len(kept)) + int(zero)
    assignments = torch.zeros(len(flat), dtype=torch.int64)
    assignments[~zeros] = place[nearest(rest, centroids.double())]
    values = torch.cat([centroids.new_zeros(int(zero)), kept])
    return Codebook(values=values[:, None], assignments=assignments, zero=zero)


def optimal_centroids(values: Tensor, entries: int) -> Tensor:
    """Return at most `entries` centroids with the least sum of squared distances, ascending.

    Args:
        values: `n` float64, n > 0.
        entries: At least 1.

    Returns:
        float64. The optimum where `n * entries <= EXACT_LIMIT`; otherwise what Lloyd's
        iterations make of a start that is optimal for an even sample of the sorted values.
    """
    distinct: Tensor = torch.unique(values)
    if len(distinct) <= entries:
        return distinct
    ordered = torch.sort(values).values
    stride = -(-len(ordered) * entries // EXACT_LIMIT)
    sample = ordered[stride // 2 :: stride]
    centroids = torch.tensor(kmeans1d.cluster(sample.tolist(), entries).centroids).double()
    if stride > 1:
        centroids = _lloyd(ordered, centroids)
    return centroids


def nearest(values: Tensor, centroids: Tensor) -> Tensor:
    """Return the index of the centroid nearest to each value; the lower one of two.

    Args:
        values: `n`.
        centroids: `K`, ascending, of the same dtype.
    """
    found: Tensor = torch.searchsorted((centroids[1:] + centroids[:-1]) / 2, values)
    return found


def _lloyd(ordered: Tensor, centroids: Tensor) -> Tensor:
    """Alternate borders and means over sorted values; sums come from one running total."""
    total = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    for _ in range(LLOYD_ITERATIONS):
        inner = torch.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2)
        borders = torch.cat([inner.new_zeros(1), inner, inner.new_tensor([len(ordered)])])
        counts = borders.diff()
        means = total[borders].diff() / counts.clamp(min=1)
        centroids = torch.where(counts > 0, means, centroids)
    return centroids
