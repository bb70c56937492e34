"""The decisions for every site: pure data, whose digest is its name everywhere."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NewType

from compression.errors import PlanInvalid

PlanDigest = NewType("PlanDigest", str)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PruneChannels:
    """Keep `keep_channels` of a channel group, ranked by `selector`.

    Attributes:
        keep_channels: Channels that stay, at least 1.
        selector: Name in `compression.catalogue.SELECTORS`.
    """

    kind: ClassVar[str] = "prune_channels"
    keep_channels: int
    selector: str = "l2"

    def __post_init__(self) -> None:
        if self.keep_channels < 1:
            raise PlanInvalid(f"keep_channels is {self.keep_channels}; at least 1 is required")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quantize:
    """Store weights and compute activations as integers (static post-training quantization).

    Attributes:
        weight_bits: Bits of a weight; 8.
        activation_bits: Bits of an activation; 8.
        calibrator: How activation ranges are found: `minmax`, `percentile` or `entropy`.
        keep_float: Names of layers that stay in float32, sorted.
    """

    kind: ClassVar[str] = "quantize"
    weight_bits: int = 8
    activation_bits: int = 8
    calibrator: str = "minmax"
    keep_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.weight_bits, self.activation_bits) != (8, 8):
            raise PlanInvalid(
                f"quantize asks for {self.weight_bits}/{self.activation_bits} bits; 8/8 exists"
            )
        object.__setattr__(self, "keep_float", tuple(sorted(self.keep_float)))


Decision = PruneChannels | Quantize

DECISIONS: Mapping[str, type[PruneChannels] | type[Quantize]] = {
    PruneChannels.kind: PruneChannels,
    Quantize.kind: Quantize,
}


def decision_to_json(decision: Decision) -> dict[str, Any]:
    """Return the decision as plain JSON data with its kind."""
    data: dict[str, Any] = {"kind": decision.kind}
    for field in dataclasses.fields(decision):
        value = getattr(decision, field.name)
        data[field.name] = list(value) if isinstance(value, tuple) else value
    return data


def decision_from_json(data: Mapping[str, Any]) -> Decision:
    """Rebuild a decision.

    Raises:
        PlanInvalid: The kind is unknown, or a field is missing, unknown or out of range.
    """
    fields = dict(data)
    kind = fields.pop("kind", None)
    if kind not in DECISIONS:
        raise PlanInvalid(f"Unknown decision kind {kind!r}; known: {', '.join(sorted(DECISIONS))}")
    fields = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
    try:
        return DECISIONS[kind](**fields)
    except TypeError as error:
        raise PlanInvalid(f"Decision {kind!r}: {error}") from error


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
