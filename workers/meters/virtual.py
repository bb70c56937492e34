"""Estimates for virtual targets, beside what is measured of a trial."""

from __future__ import annotations

from compression.errors import NotCertified
from compression.plan import Plan
from search.measurement import Reading
from search.objective import Constraint, Objective
from search.virtual_target import PROFILES, estimated_readings, misfit
from workers.context import JobContext


class DoesNotFit(NotCertified):
    """A virtual target that the job names cannot run the plan."""


def virtual_readings(plan: Plan, context: JobContext) -> list[Reading]:
    """Return the estimates for every virtual target of the job.

    The dense model is what ratios refer to, so it has an estimate whether or not it fits.

    Raises:
        DoesNotFit: A target has no room for the plan or cannot compute it; naming the figures.
    """
    costs = context.survey.costs
    bounds: list[Objective | Constraint] = [*context.spec.objectives, *context.spec.constraints]
    readings: list[Reading] = []
    for device in context.spec.devices:
        if device.place != "virtual":
            continue
        target = PROFILES[device.name]
        reason = misfit(costs, plan, target) if plan.decisions else None
        if reason is not None:
            raise DoesNotFit(reason)
        named = {b.statistic for b in bounds if b.device == device.name and b.statistic}
        readings += estimated_readings(costs, plan, target, sorted({"p50", *named}))
    return readings
