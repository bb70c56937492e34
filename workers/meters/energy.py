"""Energy of an inference by the processor's own counter (RAPL), where it may be read.

Linux shows the counter of each processor package in microjoules under `/sys/class/powercap`
(`intel-rapl:N/energy_uj`; recent AMD processors too), on most systems to root alone and in most
virtual machines not at all: then there is no reading. What is counted is the whole package: idle
cores, shared caches and other processes included. So the ratio to the baseline, timed in turns, is
better than the value. A counter that passes its range starts at 0 again.

Per block, both models run for `BURST_S` in a drawn order; value and ratio are Hodges-Lehmann
estimates over blocks with signed-rank intervals (`workers.meters.signed_rank`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from search.device import DeviceSpec
from search.measurement import Interval, Reading
from workers.meters import open_runtime
from workers.meters.signed_rank import centre
from workers.meters.stopwatch import exponential

POWERCAP = Path("/sys/class/powercap")
BLOCKS = 8
BURST_S = 0.25
"""Far longer than the millisecond in which the counter moves, far shorter than its range."""
WARM_UP = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """The counter of one package.

    Attributes:
        file: Holds microjoules.
        range_uj: Where it starts at 0 again.
    """

    file: Path
    range_uj: int

    def read_uj(self) -> int:
        """Return the counter.

        Raises:
            OSError: It may not be read any more.
        """
        return int(self.file.read_text())


def package_domains(root: Path = POWERCAP) -> tuple[Domain, ...]:
    """Return the counters of all packages; none where one of them may not be read."""
    found = []
    try:
        # `intel-rapl:0:1` and the like are parts of package 0; `psys` is the whole machine.
        for folder in sorted(root.glob("intel-rapl:*")):
            name = (folder / "name").read_text().strip()
            if folder.name.count(":") == 1 and name.startswith("package"):
                top = int((folder / "max_energy_range_uj").read_text())
                domain = Domain(file=folder / "energy_uj", range_uj=top)
                domain.read_uj()
                found.append(domain)
    except (OSError, ValueError):
        return ()
    return tuple(found)


def energy_counter(root: Path = POWERCAP) -> str | None:
    """Return the kind of counter that this machine has; None where nothing can be read."""
    return "rapl" if package_domains(root) else None


def burst_mj(
    run: Callable[[], None],
    domains: Sequence[Domain],
    *,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> float:
    """Return millijoules per call of a burst that lasts about as long as said."""
    before = [domain.read_uj() for domain in domains]
    end, calls = clock() + seconds, 0
    while calls == 0 or clock() < end:
        run()
        calls += 1
    after = [domain.read_uj() for domain in domains]
    spent_uj = sum(
        (now - was) % (domain.range_uj + 1)
        for domain, was, now in zip(domains, before, after, strict=True)
    )
    return spent_uj / 1e3 / calls


def energy_readings(
    candidate: bytes,
    baseline: bytes,
    device: DeviceSpec,
    *,
    seed: int,
    root: Path = POWERCAP,
    burst_s: float = BURST_S,
) -> tuple[Reading, ...]:
    """Return energy_mj beside the baseline's, or nothing where no counter can be read.

    Args:
        candidate: ONNX bytes.
        baseline: ONNX bytes of the dense model.
        device: Runtime, threads and batch.
        seed: Of the order.
        root: Where counters are looked for.
        burst_s: Seconds of each model per block.

    Raises:
        DeviceUnknown: The runtime is unknown or the machine has too few cores.
        ValueError: The runtime cannot load a model.
    """
    domains = package_domains(root)
    if not domains:
        return ()
    rng = np.random.default_rng([seed, 3])
    spent = np.zeros((BLOCKS, 2))
    same = candidate == baseline
    with open_runtime(device.runtime, threads=device.threads, seed=seed) as runtime:
        first = runtime.build(candidate, device.batch)
        files = [first, first if same else runtime.build(baseline, device.batch)]
        for block in range(BLOCKS):
            for index in rng.permutation(2):
                model = runtime.load(files[index], device.batch)
                for _ in range(WARM_UP):
                    model.run()
                spent[block, index] = burst_mj(model.run, domains, seconds=burst_s)
    if spent.min() <= 0:
        # A counter that stands still counts nothing.
        return ()
    value = exponential(centre(np.log(spent[:, 0])))
    ratio = exponential(centre(np.log(spent[:, 0] / spent[:, 1])))
    return (
        Reading(
            metric="energy_mj",
            value=value.value,
            low=value.low,
            high=value.high,
            n=BLOCKS,
            device=device.name,
            statistic="p50",
            ratio=Interval(value=1.0, low=1.0, high=1.0) if same else ratio,
        ),
    )
