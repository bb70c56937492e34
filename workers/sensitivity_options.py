"""Which single decisions a model's sensitivity profile measures, the most telling first.

Torch-free: who stores and shows profiles need not compute them. A profile is of a model and its
data, not of a job: methods that one job forbids are measured too, so that all jobs share it.
"""

from __future__ import annotations

from collections.abc import Iterator

from compression.decisions import Decision, DropBlock, PruneChannels, Quantize, QuantizeWeights
from compression.surveyed import Survey

VERSION = 1
"""Part of a profile's name in storage; raise it when options or their measurement change."""

MAX_OPTIONS = 60
MAX_SECONDS = 30.0
MAX_IMAGES = 500

KEEP_RATIOS = (0.5, 0.25, 0.75)
"""In order of what they tell: every site at half its width before any site's curve."""

LOW_BITS = 4

Option = tuple[str, Decision]
"""A site and one decision at it."""


def profile_options(survey: Survey) -> tuple[Option, ...]:
    """Return every option worth measuring, in the order in which they are."""
    return tuple(_options(survey))


def _options(survey: Survey) -> Iterator[Option]:
    sites = [site for site in survey.sites if site.frozen is None]
    for site in sites:
        if site.kind == "model":
            yield site.name, Quantize()
            yield site.name, QuantizeWeights(bits=LOW_BITS)
    first, *others = KEEP_RATIOS
    channels = [site for site in sites if site.kind == "channels"]
    for site in channels:
        yield from _thinner(site.name, site.channels, first)
    for site in sites:
        if site.kind == "block":
            yield site.name, DropBlock()
    for ratio in others:
        for site in channels:
            yield from _thinner(site.name, site.channels, ratio)
    for site in sites:
        if site.kind == "layer":
            yield site.name, QuantizeWeights(bits=LOW_BITS)


def _thinner(site: str, channels: int, ratio: float) -> Iterator[Option]:
    """Yield the option of a keep ratio, unless a narrow site has another one at that width."""
    keep = max(1, round(ratio * channels))
    order = KEEP_RATIOS[: KEEP_RATIOS.index(ratio)]
    if keep < channels and keep not in {max(1, round(other * channels)) for other in order}:
        yield site, PruneChannels(keep_channels=keep)
