"""A runner that does what the trial's number says; the factory that executors are tested with.

Even numbers measure at once. Odd numbers write their process id to `<folder>/<attempt>.pid` and
wait for `<folder>/<attempt>.go`. Numbers from 100 raise, from 200 report an error of the job.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compression.errors import ModelRefused
from search.measurement import Measured
from tests.workers_tests.works import measured
from workers.executor import Finished, Runner, Work
from workers.job import JobSpec

FACTORY = "tests.workers_tests.scripted:runner"
BROKEN_FACTORY = "tests.workers_tests.scripted:broken"
PATIENCE_S = 60.0


def runner(spec: JobSpec, store_url: str, quiet_folder: str) -> Runner:
    built_in = os.getpid()

    def run(work: Work, report: Callable[[Mapping[str, Any]], None]) -> Finished:
        number, name = work.trial.number, work.attempt.id
        if number >= 200:
            raise ModelRefused(f"{spec.job_id}: weights do not fit")
        if number >= 100:
            raise RuntimeError("the disk is full")
        for done in range(3):
            report({"step": "score", "done": done, "pid": built_in})
        if number % 2:
            folder = Path(quiet_folder)
            # A rename, so that whoever waits for the file never reads half of it.
            (folder / f"{name}.tmp").write_text(str(os.getpid()))
            (folder / f"{name}.tmp").rename(folder / f"{name}.pid")
            deadline = time.monotonic() + PATIENCE_S
            while not (folder / f"{name}.go").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
        threads = float(os.environ.get("OMP_NUM_THREADS", "0"))
        outcome = measured(number / 1000)
        assert isinstance(outcome, Measured)
        return Finished(work=work, outcome=outcome, seconds={"score": 0.5, "threads": threads})

    return run


def broken(spec: JobSpec, store_url: str, quiet_folder: str) -> Runner:
    raise ModelRefused(f"{spec.job_id}: no such architecture")
