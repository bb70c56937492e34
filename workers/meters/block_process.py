"""Process: one block of a comparison. Usage: see `workers.meters.fresh_process`.

Loads the runtime and nothing else of ours, so that it runs on devices that have no more.
"""

from __future__ import annotations

import dataclasses
import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from search.device import DeviceSpec
from workers.meters import LoadedModel, Runtime, open_runtime
from workers.meters.block import BlockPlan, BlockTimes, Timed, run_block
from workers.meters.fresh_process import ask, serve

MODULE = "workers.meters.block_process"

TIMEOUT_S = 120.0
"""What a block may take beyond the time that is planned for it."""

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
    """Times each block in a process of its own, one after the other.

    A context manager, which keeps the files where the processes find them.

    Args:
        candidate: As the runtime loads it.
        baseline: Likewise.
        device: Runtime, threads and batch.
        seed: Of the input.
    """

    def __init__(self, candidate: bytes, baseline: bytes, device: DeviceSpec, seed: int) -> None:
        self._files = {"candidate": candidate, "baseline": baseline}
        self._device = device
        self._seed = seed
        self._folder = tempfile.TemporaryDirectory()

    def __enter__(self) -> ProcessBlocks:
        """Write the files."""
        for name, file in self._files.items():
            (Path(self._folder.name) / name).write_bytes(file)
        return self

    def __exit__(self, *exception: object) -> None:
        """Remove them."""
        self._folder.cleanup()

    def __call__(self, plan: BlockPlan) -> BlockTimes:
        """Time a block.

        Raises:
            ProcessFailed: Its process failed.
        """
        start = time.monotonic()
        question = {
            "folder": self._folder.name,
            "runtime": self._device.runtime,
            "threads": self._device.threads,
            "batch": self._device.batch,
            "seed": self._seed,
            # The monotonic clock is the machine's: `until` means the same there.
            "plan": dataclasses.asdict(plan),
        }
        timeout_s = TIMEOUT_S + max(0.0, plan.until - start)
        found = ask(MODULE, question, threads=self._device.threads, timeout_s=timeout_s)
        started_s = time.monotonic() - start - found.pop("inside_s")
        arrays = {name: np.array(found.pop(name), np.float64) for name in ARRAYS}
        return BlockTimes(
            **arrays, load_s=found["load_s"] + started_s, warmup_calls=found["warmup_calls"]
        )


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    """Time the block that is asked for."""
    folder = Path(question["folder"])
    candidate, baseline = ((folder / name).read_bytes() for name in ("candidate", "baseline"))
    runtime = open_runtime(question["runtime"], threads=question["threads"], seed=question["seed"])
    with runtime:
        gc.collect()
        gc.disable()
        start = time.monotonic()
        plan = BlockPlan(**question["plan"])
        block = timed_block(runtime, candidate, baseline, question["batch"], plan)
        inside_s = time.monotonic() - start
    return {
        **{name: getattr(block, name).tolist() for name in ARRAYS},
        "load_s": block.load_s,
        "warmup_calls": block.warmup_calls,
        "inside_s": inside_s,
    }


if __name__ == "__main__":
    serve(_answer)
