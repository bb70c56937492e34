"""What the server tells of a model site by site, as typed data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paretopress.types import Answer


class LayerOption(Answer):
    """One decision alone, before any training.

    Attributes:
        option: In words, for example `keep 16 of 32`.
        decision: As in plans.
        keep_ratio: Share of the channels that stay; None where none are removed.
        damage: How far the model's outputs move, at least 0.
        macs: Multiply-adds of the whole model with it.
        params: Parameters of the whole model with it.
    """

    option: str
    decision: Mapping[str, Any] = {}
    keep_ratio: float | None = None
    damage: float
    macs: int
    params: int


class LayerSite(Answer):
    """A place where something can be decided.

    Attributes:
        name: Dotted path, or `model`.
        kind: `channels`, `block`, `layer` or `model`.
        channels: In the original model; 0 where there are none.
        macs_share: Share of the model's multiply-adds that the site touches; sites overlap.
        params_share: Likewise of its parameters.
        frozen: Why nothing can be decided here; None otherwise.
        options: What was measured, the mildest width first.
    """

    name: str
    kind: str
    channels: int = 0
    macs_share: float = 0.0
    params_share: float = 0.0
    frozen: str | None = None
    options: tuple[LayerOption, ...] = ()


class LayerDecision(Answer):
    """What a member of the front decides at a site.

    Attributes:
        site: Where.
        kind: Of the site.
        option: In words.
        before: `macs`, `params` and `weight_bytes` of the layers that the site touches.
        after: Of the same layers under the whole plan.
        damage: Of this decision alone, where the profile says something.
    """

    site: str
    kind: str
    option: str
    before: Mapping[str, int] = {}
    after: Mapping[str, int] = {}
    damage: float | None = None


class LayerMember(Answer):
    """A member of the front, or of the best trials so far, site by site."""

    trial_id: str
    decisions: tuple[LayerDecision, ...] = ()


class LayerProfile(Answer):
    """How damage was measured.

    Attributes:
        state: `ready` when it was; `waiting` and `computing` before, `failed` where it cannot be.
        problem: Why it failed.
        images: Calibration images on which outputs were compared.
        left_out: Options that were not measured, with the reason.
    """

    state: str
    problem: str | None = None
    images: int | None = None
    left_out: tuple[Mapping[str, Any], ...] = ()


class Layers(Answer):
    """A job's model, site by site.

    Attributes:
        job_id: Of which job.
        profile: How damage was measured, and whether it is yet.
        sites: Where decisions attach.
        members: What the front, or the best so far, decides.
        provisional: True while the job runs.
    """

    job_id: str = ""
    profile: LayerProfile
    sites: tuple[LayerSite, ...] = ()
    members: tuple[LayerMember, ...] = ()
    provisional: bool = False
