"""A job before it runs: its space, what the space reaches, which bounds can hold, what it costs.

Arithmetic on stored data only; no model is built, so the light API process can do it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from compression.methods import resolve_space
from compression.plan import Plan
from compression.site import Site
from compression.space import PlanSpace
from compression.surveyed import Survey
from search.measurement import Measurement, Reading
from service.bounds import Region, Verdict, arithmetic_values, regions, verdict
from service.errors import ConstraintUnreachable, Fault
from service.forecast import Forecast, forecast
from workers.job import JobSpec


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrozenSite:
    """A site that takes no decision in this job, and why."""

    site: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What is known of a job before it runs.

    Attributes:
        space: Admissible plans.
        frozen: Sites without a knob.
        baseline: The dense model: exact MACs, FLOPs and params, and stored readings.
        region: What the space reaches, by metric.
        verdicts: One per constraint, in order.
        forecast: What it takes.
    """

    space: PlanSpace
    frozen: tuple[FrozenSite, ...]
    baseline: Measurement
    region: Mapping[str, Region]
    verdicts: tuple[Verdict, ...]
    forecast: Forecast

    @property
    def warnings(self) -> list[str]:
        """Estimates that speak against the job."""
        return [v.warning for v in self.verdicts if v.warning is not None]

    def region_json(self) -> dict[str, Any]:
        """Return the reachable region as plain JSON data."""
        return {name: region.to_json() for name, region in self.region.items()}


def known_baseline(survey: Survey, stored: Sequence[Reading] = ()) -> Measurement:
    """Return what is known of the dense model: arithmetic first, then stored readings.

    Args:
        survey: Of the model.
        stored: Earlier readings of the same model (and dataset); those of MACs, FLOPs and params
            give way to arithmetic.
    """
    exact = dense_costs(survey)
    readings = [Reading.exact(name, float(value), float(value)) for name, value in exact.items()]
    taken = {(r.metric, r.device, r.statistic) for r in readings}
    for reading in stored:
        key = (reading.metric, reading.device, reading.statistic)
        if key not in taken:
            taken.add(key)
            readings.append(reading)
    return Measurement(tuple(readings))


def dense_costs(survey: Survey) -> dict[str, int]:
    """Return MACs, FLOPs and params of the untouched model."""
    return arithmetic_values(survey.costs.cost(Plan()))


def _frozen(sites: Sequence[Site], spec: JobSpec, space: PlanSpace) -> tuple[FrozenSite, ...]:
    deciding = {knob.site for knob in space.knobs}
    found = []
    for site in sites:
        if site.name in deciding:
            continue
        if site.frozen:
            reason = site.frozen
        elif named := sorted(set(spec.methods.freeze) & {site.name, *site.members}):
            reason = f"methods.freeze names {', '.join(named)}"
        elif site.kind == "channels" and "prune_channels" not in spec.methods.allow:
            reason = "methods.allow leaves out prune_channels"
        elif site.kind == "channels":
            reason = (
                f"{site.channels} channels leave no choice with channel_multiple "
                f"{spec.methods.channel_multiple} and min_keep_ratio {spec.methods.min_keep_ratio}"
            )
        else:
            reason = "methods.allow leaves out what is decided here"
        found.append(FrozenSite(site=site.name, reason=reason))
    return tuple(found)


def dry_run(
    spec: JobSpec,
    survey: Survey,
    baseline: Measurement,
    *,
    forward_ms_per_image: float | None,
    split_images: Mapping[str, int],
) -> DryRun:
    """Return what is known of the job before it runs.

    Args:
        spec: The job.
        survey: Of its model.
        baseline: From `known_baseline`.
        forward_ms_per_image: Of the dense model in a worker; None where it was not timed.
        split_images: Images by split, where known.

    Raises:
        PlanInvalid: Nothing is left to search.
    """
    space = resolve_space(survey.sites, spec.methods)
    region = regions(space, survey.costs)
    return DryRun(
        space=space,
        frozen=_frozen(survey.sites, spec, space),
        baseline=baseline,
        region=region,
        verdicts=tuple(verdict(c, region, baseline) for c in spec.constraints),
        forecast=forecast(spec, forward_ms_per_image, split_images),
    )


def refuse_unreachable(found: DryRun) -> None:
    """Refuse a job with a bound that no plan of its space meets.

    Raises:
        ConstraintUnreachable: There is one; the problem carries the reachable region.
    """
    faults = [
        Fault(f"/constraints/{index}", f"{v.constraint.key} is out of reach: {v.reason}")
        for index, v in enumerate(found.verdicts)
        if v.reachable == "no"
    ]
    if faults:
        raise ConstraintUnreachable(
            faults[0].message,
            faults,
            {
                "reachable": found.region_json(),
                "constraints": [v.to_json() for v in found.verdicts],
            },
        )
