"""Fixtures shared by all tests, and which process runs which tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from search.one_thread import one_thread

ROOT = Path(__file__).resolve().parent.parent


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Gives whole files to test processes; those that start a Ray to one process, one by one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "ray" if starts_ray(file) else file


def starts_ray(file: str) -> bool:
    """Whether a test file starts a Ray, and so several processes of its own."""
    return "/test_ray_" in file or ("/e2e_tests/" in file and "_browser.py" not in file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Share files instead of tests, in the order of `pytest_collection_modifyitems`."""
    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where processes share the tests, begin with what takes long, so that they end together."""
    if hasattr(config, "workerinput"):
        items.sort(
            key=lambda item: (
                not starts_ray(item.nodeid),
                item.get_closest_marker("slow") is None,
            )
        )


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
