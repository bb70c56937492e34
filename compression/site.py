"""What one decision attaches to."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

SiteKind = Literal["channels", "block", "layer", "model"]

MODEL_SITE = "model"
"""Name of the one site that stands for the whole model (precision is decided there)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What takes decisions of one sort: coupled layers, a block, a single layer, or the model.

    A `channels` site is a coupling group: layers whose channels must be removed together, named
    after the layer that produces them. A `block` is a module that could be the identity, a
    `layer` one convolution or linear layer. A layer and the group that it produces have the same
    name; what is decided says which is meant. Sites of a kind are in forward order; the order is
    part of a survey's identity.

    Attributes:
        name: Stable name: a dotted path, or `model`.
        kind: What can be decided here.
        channels: Number of channels of the group (outputs of the layer) in the dense model; 0
            for blocks and the model.
        macs: Multiply-adds, for one input, of all layers the site touches in the dense model.
        params: Parameters of these layers.
        members: Dotted names of the coupled layers, producers and consumers; of the layers in a
            block; of the layer itself.
        frozen: Why no decision may attach here, in words for the user; None if one may.
    """

    name: str
    kind: SiteKind
    channels: int
    macs: int
    params: int
    members: tuple[str, ...] = ()
    frozen: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {**dataclasses.asdict(self), "members": list(self.members)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Site:
        """Rebuild a site from `to_json`."""
        return Site(**{**data, "members": tuple(data["members"])})
