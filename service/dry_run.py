"""A job before it runs: its space, what the space reaches, which bounds can hold, what it costs.

Arithmetic on stored data only; no model is built, so the light API process can do it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from compression.choices import parse
from compression.decisions import Factorize
from compression.factors import refusal
from compression.layer_cost import LayerCost
from compression.methods import Methods, resolve_space
from compression.plan import Plan
from compression.space import PlanSpace
from compression.surveyed import Survey
from search.measurement import Measurement, Reading
from service.bounds import Region, Verdict, arithmetic_values, regions, verdict
from service.db.durations import EarlierTrial
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
        left_out: What the job allows and cannot afford, in words.
    """

    space: PlanSpace
    frozen: tuple[FrozenSite, ...]
    baseline: Measurement
    region: Mapping[str, Region]
    verdicts: tuple[Verdict, ...]
    forecast: Forecast
    left_out: tuple[str, ...] = ()

    @property
    def warnings(self) -> list[str]:
        """What was left out of the methods, and estimates that speak against the job."""
        return [*self.left_out] + [v.warning for v in self.verdicts if v.warning is not None]

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


_DECIDED_AT = {"channels": "prune_channels", "block": "drop_block", "layer": "factorize"}


def _frozen(survey: Survey, spec: JobSpec, space: PlanSpace) -> tuple[FrozenSite, ...]:
    """Return the sites where the job's methods might decide something, but nothing is open."""
    allow = spec.methods.allow
    deciding = {(knob.field, knob.site) for knob in space.knobs}
    rows = {row.name: row for row in survey.costs.layers}
    found = []
    for site in survey.sites:
        method = _DECIDED_AT.get(site.kind)
        field = "keep_channels" if method == "prune_channels" else method
        if method is None:
            if any(name == site.name for _, name in deciding):
                continue
            reason = "methods.allow leaves out what is decided here"
        elif (field, site.name) in deciding or (site.kind != "channels" and method not in allow):
            continue
        elif site.frozen:
            reason = site.frozen
        elif named := sorted(set(spec.methods.freeze) & {site.name, *site.members}):
            reason = f"methods.freeze names {', '.join(named)}"
        elif site.kind == "layer":
            reason = "no way in methods.factorize fits: " + _refusal(spec.methods, rows[site.name])
        elif method not in allow:
            reason = "methods.allow leaves out prune_channels"
        else:
            reason = (
                f"{site.channels} channels leave no choice with channel_multiple "
                f"{spec.methods.channel_multiple} and min_keep_ratio {spec.methods.min_keep_ratio}"
            )
        found.append(FrozenSite(site=site.name, reason=reason))
    return tuple(found)


def _refusal(methods: Methods, row: LayerCost) -> str:
    for text in methods.factorize:
        decision = parse("factorize", text)
        reason = refusal(row, decision) if isinstance(decision, Factorize) else None
        if reason:
            return reason
    return "none is listed"


def dry_run(
    spec: JobSpec,
    survey: Survey,
    baseline: Measurement,
    *,
    forward_ms_per_image: float | None,
    split_images: Mapping[str, int],
    left_out: Sequence[str] = (),
    earlier: Sequence[EarlierTrial] = (),
) -> DryRun:
    """Return what is known of the job before it runs.

    Args:
        spec: The job.
        survey: Of its model.
        baseline: From `known_baseline`.
        forward_ms_per_image: Of the dense model in a worker; None where it was not timed.
        split_images: Images by split, where known.
        left_out: What the job allows and cannot afford, in words.
        earlier: Trials of the same model and data in other jobs.

    Raises:
        PlanInvalid: Nothing is left to search.
    """
    space = resolve_space(survey.sites, spec.methods, survey.costs)
    region = regions(space, survey.costs)
    return DryRun(
        space=space,
        frozen=_frozen(survey, spec, space),
        baseline=baseline,
        region=region,
        verdicts=tuple(verdict(c, region, baseline) for c in spec.constraints),
        forecast=forecast(spec, forward_ms_per_image, split_images, earlier),
        left_out=tuple(left_out),
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
