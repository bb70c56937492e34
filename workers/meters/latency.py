"""Latency and throughput of a deployed file on a device, beside the dense baseline."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import time
from collections.abc import Callable, Iterator

import numpy as np

from search.device import DeviceSpec
from workers.meters import RUNTIMES, Runtime, open_runtime
from workers.meters.block import BlockPlan, BlockTimes
from workers.meters.block_process import ProcessBlocks, timed_block
from workers.meters.core_load import Neighbours
from workers.meters.latency_result import LatencyResult, result_of
from workers.meters.stopwatch import RunBlock, StoppingRule, compare

DEFAULT = StoppingRule()

Files = tuple[bytes, bytes]
"""Candidate and baseline as the runtime loads them."""


def time_onnx(
    candidate: bytes,
    baseline: bytes,
    device: DeviceSpec,
    *,
    seed: int,
    max_seconds: float = DEFAULT.max_seconds,
    width: float = DEFAULT.width,
    rounds: int = DEFAULT.rounds,
    min_seconds: float = DEFAULT.min_seconds,
    processes: bool = False,
) -> LatencyResult:
    """Time a candidate beside the dense baseline; the node must be quiet (`QuietNode.alone`).

    One fixed random input for each, garbage collection off. A 95 % interval that excludes 1 means
    that the two differ.

    Args:
        candidate: ONNX bytes.
        baseline: ONNX bytes of the dense model.
        device: Runtime, threads and batch.
        seed: Of the input and of the order of calls.
        max_seconds: At most this much timing, loading and warm-up included; where a runtime's
            threads need a process of their own, starting it is not.
        width: Wanted (high - low) / value of the interval of the ratio.
        rounds: Per block; a p99 asks for more than a ratio does.
        min_seconds: At least this much timing, to outlast what disturbs the machine.
        processes: Whether every block has a process of its own, and so another layout of memory
            altogether; each costs what importing the runtime takes.

    Raises:
        DeviceUnknown: The runtime is unknown or the machine has too few cores.
        ValueError: The runtime cannot run a model.
    """
    rule = StoppingRule(
        width=width, max_seconds=max_seconds, rounds=rounds, min_seconds=min_seconds
    )

    def files(runtime: Runtime) -> Files:
        return runtime.build(candidate, device.batch), runtime.build(baseline, device.batch)

    def once(runtime: Runtime) -> Files:
        # What is one model stays one file, whatever building adds of its own.
        return (runtime.build(baseline, device.batch),) * 2

    build = once if candidate == baseline else files
    return _beside(build, device, rule, seed=seed, processes=processes, same=False)


def time_baseline(
    baseline: bytes,
    device: DeviceSpec,
    *,
    seed: int,
    max_seconds: float = DEFAULT.max_seconds,
    width: float = DEFAULT.width,
    rounds: int = DEFAULT.rounds,
    min_seconds: float = DEFAULT.min_seconds,
    processes: bool = False,
) -> LatencyResult:
    """Time the baseline beside a second load of itself (A/A).

    Its readings are of both loads' times together and have the ratio 1 by definition; `ratio` is
    what the stopwatch said, and a warning is given when that interval excludes 1. Arguments and
    errors as for `time_onnx`.
    """
    rule = StoppingRule(
        width=width, max_seconds=max_seconds, rounds=rounds, min_seconds=min_seconds
    )

    def once(runtime: Runtime) -> Files:
        return (runtime.build(baseline, device.batch),) * 2

    return _beside(once, device, rule, seed=seed, processes=processes, same=True)


def time_files(
    candidate: bytes,
    baseline: bytes,
    device: DeviceSpec,
    *,
    seed: int,
    max_seconds: float = DEFAULT.max_seconds,
    width: float = DEFAULT.width,
    rounds: int = DEFAULT.rounds,
    min_seconds: float = DEFAULT.min_seconds,
    processes: bool = False,
) -> LatencyResult:
    """Time files as the runtime loads them, for where nothing can be built.

    Equal files are taken for the baseline and itself, as in `time_baseline`. Arguments and errors
    as for `time_onnx`.
    """
    rule = StoppingRule(
        width=width, max_seconds=max_seconds, rounds=rounds, min_seconds=min_seconds
    )
    same = candidate == baseline
    return _beside(
        lambda _: (candidate, baseline), device, rule, seed=seed, processes=processes, same=same
    )


def _beside(
    build: Callable[[Runtime], Files],
    device: DeviceSpec,
    rule: StoppingRule,
    *,
    seed: int,
    processes: bool,
    same: bool,
) -> LatencyResult:
    """Compare the files that `build` returns, candidate and baseline."""
    start = time.monotonic()
    with open_runtime(device.runtime, threads=device.threads, seed=seed) as runtime:
        files = build(runtime)
        neighbours = Neighbours.watch(os.sched_getaffinity(0))
        with _blocks(runtime, files, device, seed=seed, processes=processes) as run:
            seen = compare(run, np.random.default_rng([seed, 0]), rule)
        # Only processes that have ended are counted as ours.
        warnings = (*seen.warnings, *neighbours.warnings())
    seen = dataclasses.replace(seen, warnings=warnings)
    return result_of(seen, device, same=same, seed=seed, seconds=time.monotonic() - start)


@contextlib.contextmanager
def _blocks(
    runtime: Runtime, files: Files, device: DeviceSpec, *, seed: int, processes: bool
) -> Iterator[RunBlock]:
    """Yield how blocks are timed: here, in one process, or in one process each."""
    candidate, baseline = files
    if processes or (device.threads > 1 and RUNTIMES[device.runtime].process_of_threads):
        with ProcessBlocks(candidate, baseline, device, seed, each=processes) as run:
            yield run
        return

    def here(plan: BlockPlan) -> BlockTimes:
        block = timed_block(runtime, candidate, baseline, device.batch, plan)
        # With the collector off, whatever the block left in cycles is young.
        gc.collect(0)
        return block

    with _no_collection():
        yield here


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of the times."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
