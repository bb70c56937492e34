"""What runs inside a warm Ray actor: one job's context, one attempt at a time."""

from __future__ import annotations

import dataclasses
import importlib
import os
import threading
from collections.abc import Mapping
from typing import Any

from workers.edge import guarded
from workers.executor import Finished, Runner, Work
from workers.job import JobSpec

ENVIRONMENT: Mapping[str, str] = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Of the actor's process, before it imports torch: more threads in sum than cores are ruinous, and
so are those that spin while they wait."""

PROGRESS_GROUP = "progress"
"""Concurrency group of `drain`, which answers while `run` is at work."""

Progresses = tuple[Mapping[str, Any], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What `run` returns: the result, and the progress that nobody drained."""

    finished: Finished
    progress: Progresses


def runner_of(factory: str, spec: JobSpec, store_url: str, quiet_folder: str) -> Runner:
    """Return a runner that never raises; see `RayWorker` for the arguments."""

    def build() -> Runner:
        module, _, attribute = factory.partition(":")
        make = getattr(importlib.import_module(module), attribute)
        runner: Runner = make(spec, store_url, quiet_folder)
        return runner

    return guarded(build)


class RayWorker:
    """The actor's class. `run` is called once at a time, `drain` and `pid` at any time.

    Args:
        factory: `module:function` with the signature of `workers.evaluate.runner`; called in the
            first `run`, so that a model that cannot be loaded fails its trial, not the actor.
        spec: The job.
        store_url: For `workers.open_store.open_store`.
        quiet_folder: For `workers.quiet.QuietNode`, on the actor's node.
    """

    def __init__(self, factory: str, spec: JobSpec, store_url: str, quiet_folder: str) -> None:
        self._run = runner_of(factory, spec, store_url, quiet_folder)
        self._progress: list[Mapping[str, Any]] = []
        self._lock = threading.Lock()

    def run(self, work: Work) -> Answer:
        """Run an attempt to its end; never raises."""
        finished = self._run(work, self._report)
        return Answer(finished, self.drain())

    def drain(self) -> Progresses:
        """Return the progress since the last call."""
        with self._lock:
            progress, self._progress = tuple(self._progress), []
        return progress

    def pid(self) -> int:
        """Return the process's id; also says that it lives."""
        return os.getpid()

    def _report(self, data: Mapping[str, Any]) -> None:
        with self._lock:
            self._progress.append(data)
