"""The decisions for every site: pure data, whose digest is its name everywhere."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NewType

from compression.decisions import (
    Decision,
    DropBlock,
    Factorize,
    PruneChannels,
    Quantize,
    QuantizeWeights,
    Share,
    decision_from_json,
    decision_to_json,
)
from compression.errors import PlanInvalid

PlanDigest = NewType("PlanDigest", str)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Decisions by site. Equal plans have equal digests; an absent site stays untouched.

    Law: applying the same plan to the same model artifact with the same seed and data gives the
    same model.

    Attributes:
        decisions: Pairs of site name and its decisions, sorted by site, then by kind; at most one
            decision of a kind at a site. Use `Plan.of` to build one.
    """

    VERSION: ClassVar[int] = 1
    decisions: tuple[tuple[str, tuple[Decision, ...]], ...] = ()

    @staticmethod
    def of(decisions: Mapping[str, Sequence[Decision]]) -> Plan:
        """Build a plan in canonical order.

        Raises:
            PlanInvalid: A site has two decisions of one kind.
        """
        canonical = []
        for site in sorted(decisions):
            kinds = [decision.kind for decision in decisions[site]]
            if len(set(kinds)) != len(kinds):
                raise PlanInvalid(f"Site {site!r} has two decisions of one kind: {kinds}")
            if {QuantizeWeights.kind, Share.kind} <= set(kinds):
                raise PlanInvalid(
                    f"Site {site!r} both quantizes and shares its weights; one of them is possible"
                )
            if kinds:
                canonical.append((site, tuple(sorted(decisions[site], key=lambda d: d.kind))))
        return Plan(tuple(canonical))

    def __iter__(self) -> Iterator[tuple[str, Decision]]:
        for site, decisions in self.decisions:
            for decision in decisions:
                yield site, decision

    def prune_channels(self) -> dict[str, PruneChannels]:
        """Return the channel decision of every site that has one."""
        return {site: d for site, d in self if isinstance(d, PruneChannels)}

    def dropped(self) -> frozenset[str]:
        """Return the block sites that are dropped."""
        return frozenset(site for site, d in self if isinstance(d, DropBlock))

    def factorize(self) -> dict[str, Factorize]:
        """Return the factorization of every layer that has one."""
        return {site: d for site, d in self if isinstance(d, Factorize)}

    def before_codes(self) -> Plan:
        """Return the plan without low bits and codebooks: what is recovered before they come."""
        table = {
            site: [d for d in decisions if not isinstance(d, QuantizeWeights | Share | Quantize)]
            for site, decisions in self.decisions
        }
        return Plan.of(table)

    def of_kind(self, kind: str) -> dict[str, Decision]:
        """Return the decisions of one kind by site."""
        return {site: d for site, d in self if d.kind == kind}

    def quantize(self) -> Quantize | None:
        """Return the precision decision of the model, if there is one."""
        return next((d for _, d in self if isinstance(d, Quantize)), None)

    def with_decision(self, site: str, decision: Decision) -> Plan:
        """Return a plan in which `decision` replaces the one of its kind at `site`."""
        table = {name: list(decisions) for name, decisions in self.decisions}
        kept = [d for d in table.get(site, []) if d.kind != decision.kind]
        table[site] = [*kept, decision]
        return Plan.of(table)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data: `{"version": 1, "sites": {site: [decision, ...]}}`."""
        sites = {site: [decision_to_json(d) for d in ds] for site, ds in self.decisions}
        return {"version": self.VERSION, "sites": sites}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Plan:
        """Rebuild a plan.

        Raises:
            PlanInvalid: The version is not ours or a decision is not valid.
        """
        if data.get("version") != Plan.VERSION:
            raise PlanInvalid(f"Plan version is {data.get('version')!r}; {Plan.VERSION} is known")
        sites = data.get("sites")
        if not isinstance(sites, Mapping):
            raise PlanInvalid("Plan has no 'sites' object")
        return Plan.of({site: [decision_from_json(d) for d in ds] for site, ds in sites.items()})

    @property
    def digest(self) -> PlanDigest:
        """SHA-256 of the canonical JSON, hexadecimal."""
        return PlanDigest(hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest())


def canonical_json(data: Any) -> str:
    """Return the one JSON text of `data`: sorted keys, no spaces, ASCII; NaN is refused."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
