"""The widths that a supernet is trained at, and which channels a width keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch

from compression.coupling import Coupling, Indices
from compression.errors import CompressionError, PlanInvalid
from compression.methods import Methods, keep_choices
from compression.plan import Plan
from compression.surveyed import Survey

Widths = Mapping[str, int]
"""Channels kept, by site."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WidthChoices:
    """What each site of channels may keep.

    Attributes:
        counts: By site, in forward order: ascending numbers of channels; the last is all of them.
    """

    counts: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(
        cls, survey: Survey, methods: Methods, given: Mapping[str, object] | None = None
    ) -> WidthChoices:
        """Return the choices of every site that can be pruned.

        Args:
            survey: Of the model.
            methods: What the job allows: its channel rounding, its least share and what it
                freezes decide where nothing is given.
            given: By site, numbers of channels in any order; all channels are added. Sites that
                it leaves out stay whole. None: the choices that the methods leave.

        Raises:
            CompressionError: There is no site, a given one is unknown, or a number is out of
                range.
        """
        sites = {site.name: site.channels for site in survey.prunable()}
        if not sites:
            raise CompressionError(
                "The model has no site of channels; a supernet needs at least one"
            )
        if given is None:
            frozen = set(methods.freeze)
            given = {
                site.name: keep_choices(site.channels, methods)
                for site in survey.prunable()
                if not frozen & {site.name, *site.members}
            }
        unknown = sorted(set(given) - set(sites))
        if unknown:
            raise CompressionError(f"Widths are given for {unknown}, which are no prunable sites")
        counts = {}
        for name, channels in sites.items():
            wanted = given.get(name, ())
            if not isinstance(wanted, list | tuple) or not all(
                type(count) is int and 1 <= count <= channels for count in wanted
            ):
                raise CompressionError(
                    f"Site {name!r} has {channels} channels; widths {wanted!r} must be a list of "
                    f"numbers in 1..{channels}"
                )
            counts[name] = tuple(sorted({*wanted, channels}))
        return cls(counts=counts)

    def widest(self) -> dict[str, int]:
        """Return all channels everywhere."""
        return {site: counts[-1] for site, counts in self.counts.items()}

    def narrowest(self) -> dict[str, int]:
        """Return the fewest channels everywhere."""
        return {site: counts[0] for site, counts in self.counts.items()}

    def draw(self, generator: torch.Generator) -> dict[str, int]:
        """Draw the widths of each site uniformly, each on its own."""
        return {
            site: counts[int(torch.randint(len(counts), (), generator=generator))]
            for site, counts in self.counts.items()
        }

    def of_plan(self, plan: Plan) -> dict[str, int]:
        """Return the widths that a plan asks for; also ones between those trained at.

        Raises:
            PlanInvalid: It prunes an unknown site or keeps more channels than there are.
        """
        widths = self.widest()
        for site, decision in plan.prune_channels().items():
            if site not in widths:
                raise PlanInvalid(
                    f"Site {site!r} is unknown or frozen; its channels cannot be removed"
                )
            if not 1 <= decision.keep_channels <= widths[site]:
                raise PlanInvalid(
                    f"Site {site!r} has {widths[site]} channels; the plan keeps "
                    f"{decision.keep_channels}"
                )
            widths[site] = decision.keep_channels
        return widths

    def to_json(self) -> dict[str, list[int]]:
        """Return plain JSON data."""
        return {site: list(counts) for site, counts in self.counts.items()}


def kept_channels(
    couplings: Mapping[str, Coupling], order: Mapping[str, Indices], widths: Widths
) -> dict[str, Indices]:
    """Return the ascending channels that stay at every site that loses some.

    Args:
        couplings: Of the model, by site.
        order: Channels of every site, the last to go first.
        widths: By site.
    """
    return {
        site: np.sort(order[site][:width])
        for site, width in widths.items()
        if width < couplings[site].channels
    }
