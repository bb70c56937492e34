"""Labels of channels, and which of them can only go together: a union-find over integers.

A label is a positive integer that stands for one output channel of one layer; 0 stands for what
belongs to no channel. Every activation has a tensor of labels of its own shape, mostly expanded
(stride 0) along batch and pixels, so that it weighs little.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Labels:
    """Hands out labels, remembers which were united, and what stands against removing one."""

    def __init__(self) -> None:
        self._count = 1
        self._pairs: list[NDArray[np.int64]] = []
        self._flags: list[tuple[str, NDArray[np.int64], bool]] = []

    def fresh(self, width: int) -> Tensor:
        """Return `width` new labels, int32."""
        first = self._count
        self._count += width
        return torch.arange(first, self._count, dtype=torch.int32)

    def unite(self, left: Tensor, right: Tensor) -> None:
        """Let labels at equal positions (after broadcasting) go together; 0 unites with none."""
        if left is right:
            return
        left, right = torch.broadcast_tensors(left, right)  # type: ignore[no-untyped-call]
        left, right = compact(left, right)
        differ = (left != right) & (left != 0) & (right != 0)
        if bool(differ.any()):
            pairs = torch.stack([left[differ], right[differ]], 1)
            self._pairs.append(np.unique(pairs.numpy().astype(np.int64), axis=0))

    def unite_all(self, labels: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Unite what differs along `dims` only; return one label for each, `dims` of size 1."""
        (labels,) = compact(labels)
        one = labels.amax(dims, keepdim=True) if dims else labels
        self.unite(labels, one)
        return one

    def flag(self, labels: Tensor, reason: str, *, merge: bool = False) -> None:
        """Note why the channels of these labels must stay.

        Args:
            labels: Of any shape.
            reason: In words for the user.
            merge: Whether all of them are one thing to the user, though they may be removed
                apart.
        """
        (labels,) = compact(labels)
        found = np.unique(labels.numpy().astype(np.int64))
        self._flags.append((reason, found[found != 0], merge))

    def classes(self) -> NDArray[np.int64]:
        """Return the class of every label; equal numbers go together. Position 0 is label 0."""
        parent = list(range(self._count))

        def root(label: int) -> int:
            while parent[label] != label:
                parent[label] = parent[parent[label]]
                label = parent[label]
            return label

        for pairs in self._pairs:
            for left, right in pairs.tolist():
                a, b = root(left), root(right)
                parent[max(a, b)] = min(a, b)
        return np.array([root(label) for label in range(self._count)], dtype=np.int64)

    def flags(self) -> list[tuple[str, NDArray[np.int64], bool]]:
        """Return reason, labels and `merge` of every flag, in the order they were set."""
        return list(self._flags)


def compact(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return views of equally shaped tensors, of size 1 along dimensions where all only repeat."""
    for dim in range(tensors[0].dim()):
        if tensors[0].shape[dim] > 1 and all(t.stride(dim) == 0 for t in tensors):
            tensors = tuple(t.narrow(dim, 0, 1) for t in tensors)
    return tensors


def varies(labels: Tensor, dim: int) -> bool:
    """Whether labels differ along a dimension; padding (0) differs from nothing."""
    dim %= labels.dim()
    (labels,) = compact(labels)
    if labels.shape[dim] < 2:
        return False
    most = labels.amax(dim, keepdim=True)
    return bool(((labels != most) & (labels != 0)).any())
