"""Process: blocks of a comparison. Usage: see `workers.meters.fresh_process`.

Loads the runtime and nothing else of ours, so that it runs on devices that have no more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import numpy as np

from search.device import DeviceSpec
from workers.errors import FileRefused
from workers.meters import LoadedModel, Runtime, open_runtime
from workers.meters.block import BlockPlan, BlockTimes, Timed, run_block
from workers.meters.fresh_process import FreshProcess, serve

MODULE = "workers.meters.block_process"

TIMEOUT_S = 600.0
"""What a block may take beyond the time that is planned for it: starting a process, and loading,
which for some runtimes is compiling."""

ARRAYS = ("candidate_ms", "baseline_ms", "hot_candidate_ms", "hot_baseline_ms")


def timed_block(
    runtime: Runtime, candidate: bytes, baseline: bytes, batch: int, plan: BlockPlan
) -> BlockTimes:
    """Time one block in this process; the runtime is entered."""
    return run_block(
        lambda: _timed(runtime.load(candidate, batch)),
        lambda: _timed(runtime.load(baseline, batch)),
        plan,
    )


def _timed(model: LoadedModel) -> Timed:
    def once() -> float:
        start = time.perf_counter_ns()
        model.run()
        return (time.perf_counter_ns() - start) / 1e6

    return once


class ProcessBlocks:
    """Times blocks in other processes, one after the other.

    A context manager, which keeps the files where the processes find them.

    Args:
        candidate: As the runtime loads it.
        baseline: Likewise.
        device: Runtime, threads and batch.
        seed: Of the input.
        each: Whether every block has a process of its own; else one, which is ready when this is
            entered, times all of them.

    Raises:
        ProcessFailed: A process failed.
        FileRefused: The runtime cannot run a file.
    """

    def __init__(
        self, candidate: bytes, baseline: bytes, device: DeviceSpec, seed: int, *, each: bool
    ) -> None:
        self._files = {"candidate": candidate, "baseline": baseline}
        self._device = device
        self._seed = seed
        self._each = each
        self._kept: FreshProcess | None = None
        self._ending = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Write the files."""
        with contextlib.ExitStack() as stack:
            self._folder = stack.enter_context(tempfile.TemporaryDirectory())
            for name, file in self._files.items():
                (Path(self._folder) / name).write_bytes(file)
            if not self._each:
                self._kept = stack.enter_context(self._process())
                self._ask(self._kept, None, TIMEOUT_S)
            self._ending = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        """Remove them."""
        self._ending.close()

    def __call__(self, plan: BlockPlan) -> BlockTimes:
        """Time a block."""
        start = time.monotonic()
        timeout_s = TIMEOUT_S + max(0.0, plan.until - start)
        if self._kept is not None:
            found = self._ask(self._kept, plan, timeout_s)
        else:
            with self._process() as process:
                found = self._ask(process, plan, timeout_s)
        started_s = time.monotonic() - start - found.pop("inside_s")
        arrays = {name: np.array(found.pop(name), np.float64) for name in ARRAYS}
        return BlockTimes(
            **arrays, load_s=found["load_s"] + started_s, warmup_calls=found["warmup_calls"]
        )

    def _process(self) -> FreshProcess:
        return FreshProcess(MODULE, threads=self._device.threads)

    def _ask(
        self, process: FreshProcess, plan: BlockPlan | None, timeout_s: float
    ) -> dict[str, Any]:
        question = {
            "folder": self._folder,
            "runtime": self._device.runtime,
            "threads": self._device.threads,
            "batch": self._device.batch,
            "seed": self._seed,
            # The monotonic clock is the machine's: `until` means the same there.
            "plan": None if plan is None else dataclasses.asdict(plan),
        }
        found: dict[str, Any] = process.ask(question, timeout_s=timeout_s)
        if "refused" in found:
            raise FileRefused(found["refused"])
        return found


@functools.cache
def _opened(folder: str, runtime: str, threads: int, seed: int) -> tuple[Runtime, bytes, bytes]:
    """Return the runtime, entered until the process ends, and the files."""
    candidate, baseline = ((Path(folder) / name).read_bytes() for name in ("candidate", "baseline"))
    entered = open_runtime(runtime, threads=threads, seed=seed).__enter__()
    gc.collect()
    gc.disable()
    return entered, candidate, baseline


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    """Time the block that is asked for; without a plan only get ready."""
    planned, batch = question.pop("plan"), question.pop("batch")
    runtime, candidate, baseline = _opened(**question)
    try:
        if planned is None:
            # What is imported or compiled but once is not the first block's.
            runtime.load(baseline, batch).run()
            return {}
        start = time.monotonic()
        block = timed_block(runtime, candidate, baseline, batch, BlockPlan(**planned))
    except FileRefused as error:
        return {"refused": str(error)}
    inside_s = time.monotonic() - start
    # With the collector off, whatever the block left in cycles is young.
    gc.collect(0)
    return {
        **{name: getattr(block, name).tolist() for name in ARRAYS},
        "load_s": block.load_s,
        "warmup_calls": block.warmup_calls,
        "inside_s": inside_s,
    }


if __name__ == "__main__":
    serve(_answer)
