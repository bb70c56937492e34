"""Answers of the analyses of a job."""

from __future__ import annotations

import datetime
from typing import Any

from compression.site import SiteKind
from search.trial import Fidelity
from service.api.schemas.strict import Answer
from service.db.sensitivity import ProfileState


class LeftOut(Answer):
    """An option that the profile did not measure, and why."""

    site: str
    option: str
    reason: str


class ProfileOut(Answer):
    """How the options were measured.

    Attributes:
        state: `waiting` until a job on this model and dataset starts, then `computing`, then
            `ready` or `failed`; it is computed once for all jobs.
        problem: Why it failed; None otherwise.
        images: Calibration images on which outputs were compared.
        temperature: T of the damage `T^2 KL(softmax(dense/T) || softmax(changed/T))`.
        selector: Criterion by which channels were removed.
        seconds: Of computing that measuring took.
        left_out: Options beyond the limits of a profile.
        measured_at: Moment it was stored.
    """

    state: ProfileState
    problem: str | None
    images: int | None
    temperature: float | None
    selector: str | None
    seconds: float | None
    left_out: list[LeftOut]
    measured_at: datetime.datetime | None


class OptionOut(Answer):
    """One decision alone, before any training.

    Attributes:
        decision: As in plans.
        option: In words.
        keep_ratio: Share of the channels that stay; None where none are removed.
        damage: How far the outputs move, >= 0; see `ProfileOut.temperature`.
        macs: Multiply-adds of the whole model with it.
        params: Parameters of the whole model with it.
    """

    decision: dict[str, Any]
    option: str
    keep_ratio: float | None
    damage: float
    macs: int
    params: int


class LayerSiteOut(Answer):
    """A site of the model, in the survey's order.

    Attributes:
        name: Dotted path, or `model`.
        kind: What can be decided there.
        channels: In the dense model; 0 where there are none.
        macs: Multiply-adds of all layers that the site touches, in the dense model.
        params: Their parameters.
        macs_share: Of the whole model's; sites overlap, so shares add up to more than 1.
        params_share: Likewise.
        frozen: Why nothing can be decided here; None otherwise.
        options: What the profile measured, the mildest width first.
    """

    name: str
    kind: SiteKind
    channels: int
    macs: int
    params: int
    macs_share: float
    params_share: float
    frozen: str | None
    options: list[OptionOut]


class SiteCost(Answer):
    """What the layers cost that a site touches; `weight_bytes` is an estimate without headers."""

    macs: int
    params: int
    weight_bytes: int


class DecisionOut(Answer):
    """A decision that a plan takes.

    Attributes:
        site: Where.
        kind: Of the site.
        decision: As in plans.
        option: In words.
        before: Of the layers that the site touches, in the dense model.
        after: Of the same layers under the whole plan.
        damage: Of this decision alone: measured, or interpolated between measured widths; None
            where the profile says nothing.
    """

    site: str
    kind: SiteKind
    decision: dict[str, Any]
    option: str
    before: SiteCost
    after: SiteCost
    damage: float | None


class MemberLayers(Answer):
    """What one member of the front decides, site by site."""

    trial_id: str
    plan_digest: str
    fidelity: Fidelity
    decisions: list[DecisionOut]


class LayersOut(Answer):
    """A job's model, site by site.

    Attributes:
        job_id: The job.
        profile: How sensitive the sites are, and how that was measured.
        sites: Where decisions attach.
        members: Of the published front; before it, of the best trials so far.
        provisional: Whether the members are search trials.
    """

    job_id: str
    profile: ProfileOut
    sites: list[LayerSiteOut]
    members: list[MemberLayers]
    provisional: bool
