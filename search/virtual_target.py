"""Devices that exist on paper: what a plan would take there by arithmetic. Nothing is measured.

They serve planning without hardware. An estimate may decide a bound, and is labelled wherever it is
shown; it is no objective and puts nothing on a front as if it had been measured.

Time is the roofline's (Williams et al., 2009): a layer takes as long as its multiply-adds or its
memory traffic, whichever is longer, and what a runtime spends per layer on top:

    t = sum over layers of max(MACs / MACs per s, bytes / bytes per s) + overhead

Its lower end leaves the overhead out, its upper end adds compute and traffic instead of overlapping
them. Real runtimes also miss the upper end where they have no good kernel for an operation.

Every figure of a profile has its source beside it. What no document says is an assumption, begins
with `assumed` and is listed as such wherever the device is shown. Where only a peak is known, half
of it is assumed to be reached (`SUSTAINED`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from compression.cost import CostTable
from compression.layer_cost import WEIGHTED, Op
from compression.plan import Plan
from search.device import DeviceSpec
from search.latency.shape import LayerShape, deployed_shapes
from search.measurement import Interval, Reading

PREFIX = "virtual/"
RUNTIME = "roofline"
"""Stands where a measured device names its runtime."""

SUSTAINED = 0.5
"""Share of a core's peak multiply-adds that kernels are assumed to reach."""

ASSUMED = "assumed: "
"""How the source of a figure begins that no document says."""

BIAS_BYTES = 4

ESTIMATED = ("latency_ms", "throughput", "peak_memory_bytes")
"""Timed metrics that a target has estimates of."""

WARNING = "estimated by arithmetic for a device that nothing was measured on"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VirtualTarget:
    """A documented cost profile.

    Attributes:
        name: `virtual/<name>`.
        summary: What it stands for.
        flash_bytes: Room for the weights; None where a disk has room for any.
        ram_bytes: Room for activations.
        int8_macs_per_s: Multiply-adds of 8-bit integers, one core.
        float_macs_per_s: Multiply-adds in float32; also of the dense reference on targets that
            run integers only.
        bytes_per_s: Between core and the memory that activations and weights are in.
        overhead_ms: What a runtime spends per layer.
        sources: By the name of each figure, the document that says it, or `ASSUMED` and why.
        integers_only: Whether plans in float32 do not run.
        ops: Operations that run.
    """

    name: str
    summary: str
    flash_bytes: int | None
    ram_bytes: int
    int8_macs_per_s: float
    float_macs_per_s: float
    bytes_per_s: float
    overhead_ms: float
    sources: Mapping[str, str]
    integers_only: bool = False
    ops: tuple[Op, ...] = ("conv", "linear")

    @property
    def assumed(self) -> tuple[str, ...]:
        """Names of the figures that no document says."""
        return tuple(name for name, source in self.sources.items() if source.startswith(ASSUMED))

    @property
    def device(self) -> DeviceSpec:
        """The target as bounds name it, its profile in place of a fingerprint."""
        shown = {"summary": self.summary, "integers_only": str(self.integers_only)}
        for name, source in self.sources.items():
            shown |= {name: str(getattr(self, name)), f"{name} source": source}
        shown["assumed"] = ", ".join(self.assumed)
        return DeviceSpec(
            name=self.name, runtime=RUNTIME, place="virtual", hardware=tuple(sorted(shown.items()))
        )


_NO_FLASH = "none: weights are read from a disk into RAM"
_PER_LAYER = ASSUMED + "what a runtime spends on a call of a kernel"

PROFILES: Mapping[str, VirtualTarget] = {
    target.name: target
    for target in (
        VirtualTarget(
            name="virtual/cortex-m4",
            summary="Cortex-M4-class microcontroller: 64 MHz, 256 KB SRAM, 1 MB flash, INT8 only.",
            flash_bytes=1 << 20,
            ram_bytes=256 << 10,
            int8_macs_per_s=0.29 * 64e6,
            float_macs_per_s=0.2 * 64e6,
            bytes_per_s=4 * 64e6,
            overhead_ms=0.05,
            sources={
                "flash_bytes": "nRF52840 product specification, Nordic, 2018: 1 MB",
                "ram_bytes": "nRF52840 product specification, Nordic, 2018: 256 KB",
                "int8_macs_per_s": ASSUMED
                + (
                    "0.29 per cycle at 64 MHz (clock: nRF52840 product specification, 2018), half "
                    "of virtual/cortex-m7, which has the same dual 16-bit multiply-add and issues "
                    "two instructions per cycle"
                ),
                "float_macs_per_s": ASSUMED
                + ("0.2 per cycle: two loads, a multiply-add and the loop"),
                "bytes_per_s": ASSUMED + "one 32-bit word per cycle",
                "overhead_ms": _PER_LAYER,
            },
            integers_only=True,
        ),
        VirtualTarget(
            name="virtual/cortex-m7",
            summary="Cortex-M7-class microcontroller: 216 MHz, 512 KB SRAM, 2 MB flash, INT8 only.",
            flash_bytes=2 << 20,
            ram_bytes=512 << 10,
            int8_macs_per_s=24.7e6 / 2 / 99.1e-3,
            float_macs_per_s=0.2 * 216e6,
            bytes_per_s=4 * 216e6,
            overhead_ms=0.02,
            sources={
                "flash_bytes": "STM32F76xxx data sheet DS11532, ST, 2016: up to 2 Mbytes",
                "ram_bytes": (
                    "STM32F76xxx data sheet DS11532, ST, 2016: 512 Kbytes, 128 of them tightly "
                    "coupled"
                ),
                "int8_macs_per_s": (
                    "Lai, Suda & Chandra, CMSIS-NN, 2018, https://arxiv.org/abs/1801.06601: 24.7 "
                    "MOps, two per MAC, in 99.1 ms on a Cortex-M7 at 216 MHz (DS11532: up to 216 "
                    "MHz)"
                ),
                "float_macs_per_s": ASSUMED
                + ("0.2 per cycle: two loads, a multiply-add and the loop"),
                "bytes_per_s": ASSUMED
                + (
                    "one word per cycle of the 32-bit buses to SRAM1 (STM32F76xxx reference manual "
                    "RM0410, ST, 2016, section 2.1); tightly coupled memory is faster"
                ),
                "overhead_ms": _PER_LAYER,
            },
            integers_only=True,
        ),
        VirtualTarget(
            name="virtual/raspberry-pi-4",
            summary="One Cortex-A72 core at 1.5 GHz with LPDDR4, as in a Raspberry Pi 4.",
            flash_bytes=None,
            ram_bytes=1 << 30,
            int8_macs_per_s=SUSTAINED * 8 * 1.5e9,
            float_macs_per_s=SUSTAINED * 4 * 1.5e9,
            bytes_per_s=4.84e9,
            overhead_ms=0.01,
            sources={
                "flash_bytes": _NO_FLASH,
                "ram_bytes": (
                    "The Official Raspberry Pi Beginner's Guide, 3rd edition, 2019, appendix F: "
                    "1 GB, the smallest model"
                ),
                "int8_macs_per_s": ASSUMED
                + (
                    "half of 8 per cycle, without dot-product instructions, at 1.5 GHz (clock: "
                    "Beginner's Guide, 2019, appendix F)"
                ),
                "float_macs_per_s": ASSUMED + "half of 4 per cycle, one 128-bit multiply-add",
                "bytes_per_s": (
                    "STREAM, one core, triad: 4844 MB per s, "
                    "http://www.sci-pi.org.uk/bench/stream.html"
                ),
                "overhead_ms": _PER_LAYER,
            },
        ),
        VirtualTarget(
            name="virtual/phone-core",
            summary="One big core of a phone: Cortex-A76 class at 2.42 GHz with LPDDR4X.",
            flash_bytes=None,
            ram_bytes=1 << 30,
            int8_macs_per_s=SUSTAINED * 32 * 2.42e9,
            float_macs_per_s=SUSTAINED * 8 * 2.42e9,
            bytes_per_s=10e9,
            overhead_ms=0.005,
            sources={
                "flash_bytes": _NO_FLASH,
                "ram_bytes": ASSUMED + "what a phone of 4 GB or more leaves to one program",
                "int8_macs_per_s": ASSUMED
                + (
                    "half of 32 per cycle, a dot product of 16 on each of the two 128-bit vector "
                    "units (AnandTech, Arm's Cortex-A76 CPU unveiled, 2018), at 2.42 GHz "
                    "(WikiChip, Snapdragon 855, 2019)"
                ),
                "float_macs_per_s": ASSUMED
                + ("half of 8 per cycle, a multiply-add of 4 on each of the two vector units"),
                "bytes_per_s": ASSUMED
                + (
                    "for one core, of 34.1 GB per s for all of a Snapdragon 855 (AnandTech, "
                    "Snapdragon 855 performance preview, 2019)"
                ),
                "overhead_ms": _PER_LAYER,
            },
        ),
    )
}
"""Every profile, by name."""

VIRTUAL_TARGETS: Mapping[str, DeviceSpec] = {name: t.device for name, t in PROFILES.items()}
"""The same as devices."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a plan takes of a target.

    Attributes:
        latency_ms: Of one inference.
        weight_bytes: Of the weights as they are computed with, and biases.
        activation_bytes: Of the largest pair of a layer's input and output, at least: what skips
            a block must be kept beside it.
    """

    latency_ms: Interval
    weight_bytes: int
    activation_bytes: int


def estimate(costs: CostTable, plan: Plan, target: VirtualTarget) -> Estimate:
    """Return what a plan takes, whether or not it fits."""
    shapes = [s for s in deployed_shapes(costs, plan) if s.op in WEIGHTED]
    compute = [1e3 * shape.macs / _macs_per_s(shape, target) for shape in shapes]
    traffic = [1e3 * _traffic_bytes(shape) / target.bytes_per_s for shape in shapes]
    bound = sum(max(pair) for pair in zip(compute, traffic, strict=True))
    overhead = len(shapes) * target.overhead_ms
    return Estimate(
        latency_ms=Interval(
            value=bound + overhead, low=bound, high=sum(compute) + sum(traffic) + overhead
        ),
        weight_bytes=sum(_weight_bytes(shape) for shape in shapes),
        activation_bytes=max((s.elements * s.number_bytes for s in shapes), default=0),
    )


def misfit(costs: CostTable, plan: Plan, target: VirtualTarget) -> str | None:
    """Return why a plan does not run on a target, with the figures; None where it does."""
    shapes = [s for s in deployed_shapes(costs, plan) if s.op in WEIGHTED]
    needed = estimate(costs, plan, target)
    if target.integers_only and not all(shape.int8 for shape in shapes):
        count = sum(not shape.int8 for shape in shapes)
        return (
            f"{target.name} computes in 8-bit integers only; {count} of {len(shapes)} layers are "
            "in float32 under this plan: allow `quantize`"
        )
    missing = sorted({shape.op for shape in shapes} - set(target.ops))
    if missing:
        return f"{target.name} has no {', '.join(missing)}; it runs {', '.join(target.ops)}"
    if target.flash_bytes is not None and needed.weight_bytes > target.flash_bytes:
        return (
            f"The weights take {needed.weight_bytes:,} bytes; the flash of {target.name} has "
            f"{target.flash_bytes:,}"
        )
    if needed.activation_bytes > target.ram_bytes:
        return (
            f"A layer's input and output take {needed.activation_bytes:,} bytes; the RAM of "
            f"{target.name} has {target.ram_bytes:,}"
        )
    return None


def estimated_readings(
    costs: CostTable, plan: Plan, target: VirtualTarget, statistics: Sequence[str] = ("p50",)
) -> list[Reading]:
    """Return latency, throughput and peak memory of a plan, all labelled as estimates.

    An estimate has no distribution: every statistic has the same value. Peak memory is that of
    activations, and of the weights where they are not in flash.

    Args:
        costs: Of the dense model.
        plan: What is estimated.
        target: Where.
        statistics: Which are wanted.
    """
    here, dense = (estimate(costs, p, target) for p in (plan, Plan()))
    time, reference = here.latency_ms, dense.latency_ms
    quotients = sorted(
        getattr(time, end) / getattr(reference, end) for end in ("low", "value", "high")
    )
    share = time.value / reference.value
    ratio = Interval(value=share, low=quotients[0], high=quotients[-1])
    inverse = Interval(value=1 / share, low=1 / quotients[-1], high=1 / quotients[0])
    memory, dense_memory = (float(_memory_bytes(e, target)) for e in (here, dense))
    memory_share = memory / dense_memory
    values = {
        "latency_ms": (time, ratio),
        "throughput": (
            Interval(value=1e3 / time.value, low=1e3 / time.high, high=1e3 / time.low),
            inverse,
        ),
        "peak_memory_bytes": (
            Interval(value=memory, low=memory, high=memory),
            Interval(value=memory_share, low=memory_share, high=memory_share),
        ),
    }
    return [
        Reading(
            metric=metric,
            value=value.value,
            low=value.low,
            high=value.high,
            device=target.name,
            statistic=statistic,
            ratio=share_of,
            estimated=True,
            warning=WARNING,
        )
        for metric, (value, share_of) in values.items()
        for statistic in statistics
    ]


def _macs_per_s(shape: LayerShape, target: VirtualTarget) -> float:
    return target.int8_macs_per_s if shape.int8 else target.float_macs_per_s


def _traffic_bytes(shape: LayerShape) -> int:
    return (shape.elements + shape.weights) * shape.number_bytes


def _weight_bytes(shape: LayerShape) -> int:
    return shape.weights * shape.number_bytes + BIAS_BYTES * shape.out_channels


def _memory_bytes(needed: Estimate, target: VirtualTarget) -> int:
    in_ram = needed.weight_bytes if target.flash_bytes is None else 0
    return needed.activation_bytes + in_ram
