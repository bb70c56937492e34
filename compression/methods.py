"""What a job allows, and the space of plans that follows from it and a model's sites."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from compression.errors import PlanInvalid
from compression.site import MODEL_SITE, Site
from compression.space import DENSE, Knob, PlanSpace

PRIMITIVES: dict[str, str] = {
    "prune_channels": "Remove whole channels of coupled layers; "
    "the network stays dense and gets thinner.",
    "quantize": "Static INT8 post-training quantization of the deployed graph, BatchNorm folded, "
    "weights per channel; layers that suffer stay in float.",
}
"""Name and one sentence of every primitive a job may allow."""

SELECTOR_NAMES: dict[str, str] = {
    "l1": "Sum of absolute weights of a channel over its group (Li et al., 2017).",
    "l2": "Euclidean norm of a channel's weights over its group.",
    "bn_scale": "Magnitude of the BatchNorm scale of a channel (Liu et al., 2017).",
    "taylor": "Squared first-order effect of a removal on the loss (Molchanov et al., 2019).",
}

MAX_LEVELS = 16
"""Most choices of keep_channels per site: finer grids cost search and buy nothing measurable."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Methods:
    """Which primitives may be used, and how.

    Attributes:
        allow: Names in `PRIMITIVES`.
        freeze: Sites or layers that must stay untouched.
        channel_multiple: Kept channels are multiples of this; runtimes are slow on odd widths.
            A site narrower than two multiples falls back to the largest power of two that leaves
            it a choice.
        min_keep_ratio: Least share of a site's channels that is kept, in (0, 1].
        selectors: Channel criteria the search may choose from, in `SELECTOR_NAMES`.
    """

    allow: tuple[str, ...] = ("prune_channels", "quantize")
    freeze: tuple[str, ...] = ()
    channel_multiple: int = 8
    min_keep_ratio: float = 0.125
    selectors: tuple[str, ...] = ("l2",)

    def __post_init__(self) -> None:
        for name, known, values in (
            ("allow", PRIMITIVES, self.allow),
            ("selectors", SELECTOR_NAMES, self.selectors),
        ):
            unknown = [value for value in values if value not in known]
            if unknown or not values:
                raise PlanInvalid(
                    f"methods.{name} is {list(values)}; choose from {', '.join(known)}"
                )
        if not 1 <= self.channel_multiple <= 64:
            raise PlanInvalid(f"channel_multiple is {self.channel_multiple}; 1..64 is allowed")
        if not 0.0 < self.min_keep_ratio <= 1.0:
            raise PlanInvalid(f"min_keep_ratio is {self.min_keep_ratio}; it must be in (0, 1]")


def keep_choices(channels: int, methods: Methods) -> tuple[int, ...]:
    """Return the admissible keep counts of a site, ascending; the last is `channels`."""
    multiple = methods.channel_multiple
    while multiple > 1 and channels < 2 * multiple:
        multiple //= 2
    least = multiple * max(1, math.ceil(methods.min_keep_ratio * channels / multiple))
    grid = range(least, channels, multiple)
    stride = max(1, math.ceil(len(grid) / (MAX_LEVELS - 1)))
    return (*grid[::stride], channels)


def resolve_space(sites: Sequence[Site], methods: Methods) -> PlanSpace:
    """Return the space a job searches.

    Raises:
        PlanInvalid: A frozen name matches nothing, or nothing is left to search.
    """
    known = {name for site in sites for name in (site.name, *site.members)}
    missing = sorted(set(methods.freeze) - known)
    if missing:
        raise PlanInvalid(f"methods.freeze names {missing}, which the model does not have")
    knobs: list[Knob] = []
    if "prune_channels" in methods.allow:
        for site in sites:
            frozen = site.frozen or set(methods.freeze) & {site.name, *site.members}
            if site.kind != "channels" or frozen:
                continue
            choices = keep_choices(site.channels, methods)
            if len(choices) > 1:
                knobs.append(
                    Knob(site=site.name, field="keep_channels", choices=choices, ordered=True)
                )
        if knobs and methods.selectors != ("l2",):
            knobs.append(
                Knob(site=MODEL_SITE, field="selector", choices=methods.selectors, ordered=False)
            )
    if "quantize" in methods.allow and MODEL_SITE not in methods.freeze:
        knobs.append(
            Knob(site=MODEL_SITE, field="precision", choices=(DENSE, "int8"), ordered=False)
        )
    if not knobs:
        raise PlanInvalid("Nothing is left to search: every site is frozen or too narrow")
    return PlanSpace(tuple(knobs))
