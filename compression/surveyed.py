"""What is known of a model before any search: its sites and their exact costs. Torch-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from compression.cost import CostTable
from compression.errors import CheckpointInvalid
from compression.site import Site


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The sites of a model and what plans over them cost.

    Attributes:
        sites: Channel groups, then blocks, then layers, each in forward order; the last one is
            the `model` site.
        costs: Exact for every plan over sites that are not frozen; frozen sites are not in it.
        summary: Facts for people, JSON values: `macs`, `params`, `layers`, `sites`,
            `prunable_sites`, `blocks`, `frozen` (site -> reason), `input_shape`, `output_shape`,
            `num_classes`, `uncounted_macs` (matrix products that no convolution or linear layer
            makes, as in attention; they are in no count) and `untraced` (why there are no channel
            sites at all; None as a rule).
    """

    VERSION: ClassVar[int] = 1
    sites: tuple[Site, ...]
    costs: CostTable
    summary: Mapping[str, Any]

    def prunable(self) -> tuple[Site, ...]:
        """Return the channel sites where a decision may attach."""
        return tuple(s for s in self.sites if s.kind == "channels" and s.frozen is None)

    def layer_sites(self) -> tuple[Site, ...]:
        """Return the sites of single layers, in forward order."""
        return tuple(s for s in self.sites if s.kind == "layer")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "version": self.VERSION,
            "sites": [site.to_json() for site in self.sites],
            "costs": self.costs.to_json(),
            "summary": dict(self.summary),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Survey:
        """Rebuild a survey from `to_json`, or from that data after a JSON round trip.

        Raises:
            CheckpointInvalid: The version is not ours.
        """
        if data.get("version") != Survey.VERSION:
            raise CheckpointInvalid(
                f"Survey version is {data.get('version')!r}; {Survey.VERSION} is known"
            )
        return Survey(
            sites=tuple(Site.from_json(site) for site in data["sites"]),
            costs=CostTable.from_json(data["costs"]),
            summary=dict(data["summary"]),
        )
