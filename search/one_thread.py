"""Agents' own arithmetic on one thread: sums in one order, and stopwatches left alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch and the BLAS of numpy and scipy compute on one thread; afterwards as before.

    Matrices of some hundred rows gain nothing by more: on two busy cores, threads of BLAS that
    waited for each other took two thirds of the processor time of a search by `auto`.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _blas().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def _blas() -> Any:
    """Return what controls the BLAS libraries; looking for them takes milliseconds."""
    import scipy.linalg  # noqa: F401  # Only loaded libraries are found.
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
