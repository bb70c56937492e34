"""Vector codebooks: blocks of neighbouring weights of a filter take few values together.

Reference:
    Stock et al. (2020), "And the Bit Goes Down: Revisiting the Quantization of Neural Networks",
    section 3, https://arxiv.org/abs/1907.05686: product quantization that keeps a layer's
    outputs, not its weights: a codeword c stands for a block v at the cost
    `(c - v)^T A (c - v)`, where A are the second moments of the inputs that the block multiplies.
    Arthur & Vassilvitskii (2007), "k-means++", for the start.

Deviations:
    The paper has one A per layer (its inputs stacked over all positions of a row); here every
    position of a row has its own, which is nearer to the error of the outputs and makes the
    M-step a weighted least-squares problem per entry: `(sum A_p) c = sum A_p v_p`. An empty entry
    takes over the block that is represented worst, so that no iteration raises the error; the
    paper splits the largest cluster at random. Moments get a ridge of a hundredth of their mean
    diagonal: inputs that were zero on all calibration images still count a little.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.primitives.weight_layers import WeightLayer, half

ITERATIONS = 40
RIDGE = 0.01
MAX_DISTANCES = 1 << 24
"""Distances that are kept in memory at once."""
IMAGES_PER_STEP = 16
"""Images whose patches are unfolded at once."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clustering:
    """What the alternation found.

    Attributes:
        values: `K x d` float32, every number representable in float16.
        assignments: `m x r` int64.
        errors: The weighted sum of squared distances before every M-step; never rising.
    """

    values: Tensor
    assignments: Tensor
    errors: tuple[float, ...]


def block_size(row_length: int, block: int) -> int:
    """Return the greatest divisor of a filter's length that is at most `block`.

    >>> block_size(144, 9), block_size(64, 9)
    (9, 8)
    """
    return next(size for size in range(min(block, row_length), 0, -1) if row_length % size == 0)


def blocks_by_position(layer: WeightLayer, block: int) -> Tensor:
    """Return the weights as `m x r x block`: m positions of a row, r filters that have them.

    Positions of different groups of a convolution are different.
    """
    rows = layer.weight.detach().reshape(_groups(layer), -1, _row_length(layer) // block, block)
    return rows.transpose(1, 2).reshape(-1, rows.shape[1], block)


def row_major(layer: WeightLayer, per_block: Tensor) -> Tensor:
    """Return what `blocks_by_position` ordered (`m x r`) in the order of the weight, flat."""
    groups = _groups(layer)
    return per_block.reshape(groups, -1, per_block.shape[1]).transpose(1, 2).reshape(-1)


def second_moments(layer: WeightLayer, inputs: Tensor, block: int) -> Tensor | None:
    """Return the mean of `x x^T` over the inputs x that every position of a row multiplies.

    Args:
        layer: A linear layer or a two-dimensional convolution; None is returned for others.
        inputs: As the layer gets them.
        block: A divisor of the length of a row.

    Returns:
        `m x block x block` float32 with the ridge, or None where all inputs are zero.
    """
    if isinstance(layer, nn.Linear):
        moments = _outer(inputs.reshape(-1, inputs.shape[-1] // block, block))
    elif isinstance(layer, nn.Conv2d):
        moments = torch.zeros(())
        for images in torch.split(inputs, IMAGES_PER_STEP):
            moments = moments + _outer(_patches(layer, images, block))
    else:
        return None
    scale = float(moments.diagonal(dim1=1, dim2=2).mean())
    if not scale > 0:
        return None
    return moments / scale + RIDGE * torch.eye(block)


def cluster_blocks(
    blocks: Tensor,
    metrics: Tensor | None,
    entries: int,
    generator: torch.Generator,
    iterations: int = ITERATIONS,
) -> Clustering:
    """Find a codebook by alternating assignments and entries.

    Args:
        blocks: `m x r x d` float32, a filter's blocks along m.
        metrics: `m x d x d`, positive definite; None for squared distances.
        entries: Size of the codebook, at least 1.
        generator: Of the start.
        iterations: At most so many; it ends when no assignment changes.
    """
    flat = blocks.reshape(-1, blocks.shape[2])
    distinct = torch.unique(flat, dim=0)
    if len(distinct) <= entries:
        values, iterations = distinct, 0
    else:
        values = _spread(blocks, metrics, entries, generator)
    pulled = blocks if metrics is None else blocks @ metrics
    norms = (pulled * blocks).sum(2)
    assignments = torch.full(blocks.shape[:2], -1)
    errors: list[float] = []
    for _ in range(iterations):
        found, distances = _assign(pulled, norms, metrics, values)
        errors.append(float(distances.double().sum()))
        if torch.equal(found, assignments):
            break
        assignments = found
        values = _entries(pulled, metrics, assignments, len(values))
        empty = torch.bincount(assignments.reshape(-1), minlength=len(values)) == 0
        if bool(empty.any()):
            worst = distances.reshape(-1).topk(int(empty.sum())).indices
            values[empty] = flat[worst]
    values = half(values)
    assignments, _ = _assign(pulled, norms, metrics, values)
    return Clustering(values=values, assignments=assignments, errors=tuple(errors))


def _assign(
    pulled: Tensor, norms: Tensor, metrics: Tensor | None, values: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the nearest entry of every block and the distance to it (E-step).

    `(c - v)^T A (c - v) = c^T A c - 2 (A v)^T c + v^T A v`.
    """
    squares = values.square().sum(1)[None]
    if metrics is not None:
        squares = torch.einsum("ki,mij,kj->mk", values, metrics, values)
    positions = max(1, MAX_DISTANCES // (pulled.shape[1] * len(values)))
    found, distances = [], []
    for start in range(0, len(pulled), positions):
        rows = slice(start, start + positions)
        own = squares[rows] if metrics is not None else squares
        least = (own[:, None] - 2 * (pulled[rows] @ values.T)).min(2)
        found.append(least.indices)
        distances.append((least.values + norms[rows]).clamp(min=0))
    return torch.cat(found), torch.cat(distances)


def _entries(pulled: Tensor, metrics: Tensor | None, assignments: Tensor, entries: int) -> Tensor:
    """Return the entries that are best for the assignments (M-step); empty ones are zero."""
    positions, _, size = pulled.shape
    sums = pulled.new_zeros(entries, size)
    sums.index_add_(0, assignments.reshape(-1), pulled.reshape(-1, size))
    where = assignments * positions + torch.arange(positions)[:, None]
    counts = torch.bincount(where.reshape(-1), minlength=entries * positions)
    counts = counts.reshape(entries, positions).to(pulled.dtype)
    if metrics is None:
        return sums / counts.sum(1, keepdim=True).clamp(min=1)
    normal = (counts @ metrics.reshape(positions, -1)).reshape(entries, size, size)
    normal[counts.sum(1) == 0] = torch.eye(size)
    best: Tensor = torch.linalg.solve(normal, sums)
    return best


def _spread(
    blocks: Tensor, metrics: Tensor | None, entries: int, generator: torch.Generator
) -> Tensor:
    """Return blocks as a start, each drawn by its distance to the nearest before it."""
    flat = blocks.reshape(-1, blocks.shape[2])
    chosen = [int(torch.randint(len(flat), (), generator=generator))]
    nearest = torch.full(blocks.shape[:2], torch.inf)
    for _ in range(entries - 1):
        gaps = blocks - flat[chosen[-1]]
        pulled = gaps if metrics is None else gaps @ metrics
        nearest = torch.minimum(nearest, (pulled * gaps).sum(2))
        # The inverse of the distribution function: multinomial draws are limited to 2^24.
        mass = nearest.reshape(-1).clamp(min=0).double().cumsum(0)
        draw = torch.rand((), generator=generator, dtype=torch.float64) * mass[-1]
        chosen.append(min(int(torch.searchsorted(mass, draw, right=True)), len(flat) - 1))
    return flat[chosen].clone()


def _groups(layer: WeightLayer) -> int:
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def _row_length(layer: WeightLayer) -> int:
    return layer.weight[0].numel()


def _outer(vectors: Tensor) -> Tensor:
    """Return the sum of outer products of `n x m x d` vectors, `m x d x d`."""
    columns = vectors.permute(1, 2, 0)
    return columns @ columns.transpose(1, 2)


def _patches(layer: nn.Conv2d, images: Tensor, block: int) -> Tensor:
    """Return the inputs of every output, cut as rows of the weight are: `n x m x block`."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = functional.pad(images, layer._reversed_padding_repeated_twice, mode=mode)
    columns = functional.unfold(
        padded, layer.kernel_size, dilation=layer.dilation, stride=layer.stride
    )
    return columns.transpose(1, 2).reshape(-1, columns.shape[1] // block, block)
