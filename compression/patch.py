"""The record of a removal: which channels of every site stayed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from compression.errors import CheckpointInvalid


@dataclasses.dataclass(frozen=True, slots=True)
class Patch:
    """Kept channels by site: with the dense model it gives the same thinner model, bit for bit.

    A plan says how many channels stay and by which criterion; a patch says which ones. So a
    patch needs no data to be replayed, even when the criterion did.

    Attributes:
        kept: Ascending channel numbers of the dense model by site, at least one each.
    """

    VERSION: ClassVar[int] = 1
    kept: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        for site, channels in self.kept.items():
            if not channels or channels[0] < 0 or list(channels) != sorted(set(channels)):
                raise CheckpointInvalid(
                    f"Patch of site {site!r}: kept channels {list(channels)[:8]} are empty, "
                    "negative or not ascending"
                )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data: `{"version": 1, "kept": {site: [channel, ...]}}`."""
        kept = {site: list(self.kept[site]) for site in sorted(self.kept)}
        return {"version": self.VERSION, "kept": kept}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Patch:
        """Rebuild a patch.

        Raises:
            CheckpointInvalid: The version is not ours or the channels are no channel numbers.
        """
        if data.get("version") != Patch.VERSION:
            raise CheckpointInvalid(
                f"Patch version is {data.get('version')!r}; {Patch.VERSION} is known"
            )
        kept = data.get("kept")
        if not isinstance(kept, Mapping) or not all(
            isinstance(c, list) and all(type(i) is int for i in c) for c in kept.values()
        ):
            raise CheckpointInvalid("Patch has no 'kept' object of lists of channel numbers")
        return Patch({site: tuple(channels) for site, channels in kept.items()})
