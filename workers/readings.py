"""What is read of a compressed model beside its accuracy: arithmetic, sizes, times."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from compression.container import encode_onnx
from compression.plan import Plan
from search.device import DeviceSpec
from search.measurement import Reading
from search.trial import Trial
from workers.board_report import TIMES_ROLE
from workers.context import JobContext
from workers.handover import hand_over
from workers.meters.energy import energy_readings
from workers.meters.latency import DEFAULT, time_baseline, time_onnx
from workers.meters.latency_result import LatencyResult, times_npz
from workers.meters.size import download_bytes, resident_bytes, runtime_bytes
from workers.meters.startup import METRICS_OF, startup_readings
from workers.meters.virtual import virtual_readings
from workers.steps import Steps

ROUNDS = 40
"""Per block where every reading counts: with thirty blocks, enough to see a p99."""

MIN_TIMING_S = 12.0
"""Where every reading counts: other work disturbs for seconds at a time."""


def arithmetic(plan: Plan, context: JobContext) -> list[Reading]:
    """Return the readings that the cost table gives exactly."""
    costs = context.survey.costs
    cost, dense = costs.cost(plan), costs.cost(Plan())
    return [
        Reading.exact("macs", cost.macs, dense.macs),
        Reading.exact("flops", 2 * cost.macs, 2 * dense.macs),
        Reading.exact("params", cost.params, dense.params),
    ]


def sizes(
    deployed: bytes, container: bytes | None, context: JobContext, steps: Steps, *, every: bool
) -> list[Reading]:
    """Return the sizes of the deployed file beside the dense model's.

    Args:
        deployed: The file that the runtime loads.
        container: Its coded form, where there is one already.
        context: Of the job.
        steps: Takes the wall time.
        every: All three sizes; otherwise the file's and those that the job bounds.
    """
    dense = context.dense_onnx
    is_dense = deployed == dense
    readings = [runtime_bytes(deployed, runtime_bytes(dense))]
    if every or context.named("download_bytes"):
        with steps.step("encode"):
            container = container or encode_onnx(deployed)
            readings.append(download_bytes(container, context.dense_download_bytes))
    if every or context.named("resident_bytes"):
        with context.quiet.alone(), steps.step("load"):
            reference = context.dense_resident_bytes
            readings.append(reference if is_dense else resident_bytes(deployed, reference))
    return readings


def timings(
    deployed: bytes,
    trial: Trial,
    context: JobContext,
    steps: Steps,
    *,
    devices: Sequence[DeviceSpec],
    width: float,
    max_seconds: float,
    rounds: int = DEFAULT.rounds,
    min_seconds: float = DEFAULT.min_seconds,
) -> list[LatencyResult]:
    """Time a file on devices, each time beside the dense model on a quiet node.

    Args:
        deployed: The file; the dense model's own is timed against itself.
        trial: Gives the seed.
        context: Of the job.
        steps: Takes the wall time, as `time`.
        devices: Where; on this machine.
        width: Relative width of the ratio's interval that is wanted.
        max_seconds: Longest timing per device.
        rounds: Per block.
        min_seconds: Shortest timing per device.
    """
    dense = context.dense_onnx
    time = partial(time_baseline if deployed == dense else partial(time_onnx, deployed), dense)
    results = []
    for device in devices:
        with context.quiet.alone(), steps.step("time"):
            result = time(
                device,
                seed=trial.seed,
                max_seconds=max_seconds,
                width=width,
                rounds=rounds,
                min_seconds=min_seconds,
            )
        results.append(result)
    return results


def startups(
    deployed: bytes,
    trial: Trial,
    context: JobContext,
    steps: Steps,
    *,
    devices: Sequence[DeviceSpec],
    every: bool,
) -> list[Reading]:
    """Return what fresh processes pay on devices, and energy where a counter tells.

    Arguments as for `timings`; all of it with `every`, otherwise what the job names.
    """
    dense = context.dense_onnx
    readings: list[Reading] = []
    for device in devices:
        if every or any(context.named(metric) for metric in METRICS_OF):
            with context.quiet.alone(), steps.step("load"):
                readings += startup_readings(deployed, dense, device, seed=trial.seed)
        if every or context.named("energy_mj"):
            with context.quiet.alone(), steps.step("energy"):
                readings += energy_readings(deployed, dense, device, seed=trial.seed)
    return readings


def deployed_readings(
    deployed: bytes,
    trial: Trial,
    context: JobContext,
    steps: Steps,
    *,
    devices: Sequence[DeviceSpec],
    width: float,
    max_seconds: float,
    container: bytes | None = None,
    every: bool = False,
) -> list[Reading]:
    """Return sizes and times of a deployed file; see `sizes`, `timings` and `startups`.

    Files for boards are handed over to those who measure there. With `every` the raw times are
    stored, role `TIMES_ROLE`.
    """
    if any(device.place == "agent" for device in devices):
        hand_over(deployed, trial, context, steps, width=width, max_seconds=max_seconds)
    local = [device for device in devices if device.place == "local"]
    timed = timings(
        deployed,
        trial,
        context,
        steps,
        devices=local,
        width=width,
        max_seconds=max_seconds,
        rounds=ROUNDS if every else DEFAULT.rounds,
        min_seconds=min(MIN_TIMING_S, max_seconds) if every else 0.0,
    )
    if every and timed:
        steps.artifacts[TIMES_ROLE] = context.store.put(times_npz(timed))
    return [
        *sizes(deployed, container, context, steps, every=every),
        *(reading for result in timed for reading in result.readings),
        *startups(deployed, trial, context, steps, devices=local, every=every),
        *virtual_readings(trial.plan, context),
    ]
