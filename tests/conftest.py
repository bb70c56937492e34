"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from search.one_thread import one_thread

ROOT = Path(__file__).resolve().parent.parent


def real_data_folder() -> Path | None:
    """Return the folder with CIFAR-10 and trained checkpoints, or None where there is none."""
    folder = Path(os.environ.get("PARETOPRESS_TEST_DATA", ROOT.parent / "shared" / "data"))
    return folder if (folder / "cifar10").is_dir() and (folder / "checkpoints").is_dir() else None


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with CIFAR-10 and trained CIFAR ResNets; skips where it is absent."""
    folder = real_data_folder()
    if folder is None:
        pytest.skip("CIFAR-10 and its checkpoints are absent; set PARETOPRESS_TEST_DATA")
    return folder


@pytest.fixture(name="one_thread")
def _on_one_thread() -> Iterator[None]:
    """Torch on one thread, for tests that compare bits or run beside others."""
    with one_thread():
        yield
