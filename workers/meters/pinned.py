"""What the runtimes share: pinning, one fixed input, and any number of rows through one batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from workers.errors import FileRefused
from workers.meters.cores import choose


class Pinned:
    """Pins the calling thread while it is entered; the threads that it starts inherit it.

    Attributes:
        threads: Threads of one inference.
        seed: Of the fixed random input.
    """

    def __init__(self, threads: int, seed: int) -> None:
        self.threads = threads
        self.seed = seed
        self._cores = choose(threads)
        self._before: set[int] | None = None

    def __enter__(self) -> Self:
        """Pin the calling thread."""
        self._before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self._cores)
        return self

    def __exit__(self, *exception: object) -> None:
        """Give the calling thread the cores that it had."""
        if self._before is not None:
            os.sched_setaffinity(0, self._before)
            self._before = None

    def fixed_input(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """Return the random input; equal seeds and shapes give equal inputs on every runtime."""
        return np.random.default_rng(self.seed).standard_normal(tuple(shape), dtype=np.float32)


def only_input(inputs: Sequence[tuple[str, str]], float32: str) -> None:
    """Check the inputs of a file, `(name, type)` each, where the runtime calls float32 so.

    Raises:
        FileRefused: It has not exactly one float32 input.
    """
    if [kind for _, kind in inputs] != [float32]:
        raise FileRefused(f"The file has inputs {list(inputs)}; one float32 input is required")


def with_batch(sizes: Sequence[int], batch: int) -> tuple[int, ...]:
    """Return sizes with the batch filled in; 0 stands for a free size.

    Raises:
        FileRefused: The first size is fixed to another batch.
    """
    if sizes[0] not in (0, batch):
        raise FileRefused(f"The file has batch {sizes[0]}; {batch} was asked for")
    return (batch, *(size or 1 for size in sizes[1:]))


def through_batches(
    forward: Callable[[NDArray[np.float32]], Any], inputs: NDArray[np.float32], batch: int
) -> NDArray[np.float32]:
    """Return what a forward of exactly `batch` rows makes of any number of rows.

    The last run is filled up with zeros; what comes of them is cut off.
    """
    outputs = []
    for start in range(0, len(inputs), batch):
        rows = np.ascontiguousarray(inputs[start : start + batch])
        missing = batch - len(rows)
        if missing:
            rows = np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), np.float32)])
        outputs.append(np.array(forward(rows), copy=True)[: batch - missing])
    return np.concatenate(outputs)
