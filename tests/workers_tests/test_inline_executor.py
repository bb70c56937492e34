"""The executor of this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contracts.executor import ExecutorContract, answers_of, collect
from tests.workers_tests import scripted
from tests.workers_tests.works import JOB, work_of
from workers.edge import guarded
from workers.executor import Executor, Finished, InlineExecutor


class TestInlineExecutor(ExecutorContract):
    @pytest.fixture
    def executor(self, folder: Path) -> Executor:
        return InlineExecutor(guarded(lambda: scripted.runner(JOB, "file:///none", str(folder))))


def test_a_build_that_fails_is_tried_again_by_the_next_attempt(tmp_path: Path) -> None:
    builds = 0

    def build() -> object:
        nonlocal builds
        builds += 1
        if builds == 1:
            raise OSError("the network is gone")
        return scripted.runner(JOB, "", str(tmp_path))

    executor = InlineExecutor(guarded(build))  # type: ignore[arg-type]
    kinds = []
    for number in (2, 4, 6):
        executor.submit(work_of(number))
        (answer,) = answers_of(collect(executor, 1))
        assert isinstance(answer, Finished)
        kinds.append(type(answer.outcome).__name__)
    assert kinds == ["Failed", "Measured", "Measured"]
    assert builds == 2
