"""What is known of a model site by site: how it takes decisions, and which ones were taken.

Arithmetic on stored data only, so the light API process can do it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from compression import choices
from compression.cost import CostTable, PlanCost
from compression.decisions import (
    Decision,
    DropBlock,
    PruneChannels,
    Quantize,
    QuantizeWeights,
    decision_from_json,
    decision_to_json,
)
from compression.plan import Plan
from compression.site import MODEL_SITE, Site, SiteKind
from compression.surveyed import Survey

_KINDS: Mapping[str, SiteKind] = {PruneChannels.kind: "channels", DropBlock.kind: "block"}

Key = tuple[SiteKind, str]
"""A layer and the channels that it produces have one name; the kind tells them apart."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One decision alone, as the profile measured it.

    Attributes:
        decision: What.
        option: In words.
        keep_ratio: Share of the channels that stay; None where none are removed.
        damage: Divergence of the outputs before any training, >= 0.
        macs: Of the whole model with this decision.
        params: Of the whole model with this decision.
    """

    decision: Decision
    option: str
    keep_ratio: float | None
    damage: float
    macs: int
    params: int

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {**dataclasses.asdict(self), "decision": decision_to_json(self.decision)}


def key_of(name: str, decision: Decision) -> Key:
    """Return the site that a decision attaches to."""
    if name == MODEL_SITE:
        return "model", name
    return _KINDS.get(decision.kind, "layer"), name


def option_words(decision: Decision, site: Site | None) -> str:
    """Return a decision in a few words.

    Args:
        decision: At the site.
        site: Tells how many channels there were; None where it is unknown.
    """
    match decision:
        case PruneChannels(keep_channels=keep):
            of = f" of {site.channels}" if site is not None else ""
            return f"keep {keep}{of}"
        case Quantize(keep_float=keep_float):
            return "int8" + (f", {len(keep_float)} layers in float" if keep_float else "")
        case QuantizeWeights(bits=bits, quantizer=quantizer):
            return f"{bits}-bit weights" + (f" ({quantizer})" if quantizer != "uniform" else "")
        case DropBlock():
            return "drop"
        case _:
            return f"{decision.kind.replace('_', ' ')} {choices.text_of(decision)}"


def curves(survey: Survey, profile: Mapping[str, Any] | None) -> dict[Key, tuple[Tried, ...]]:
    """Return what a stored profile measured at each site, mildest channel option first."""
    sites = {(site.kind, site.name): site for site in survey.sites}
    found: dict[Key, list[Tried]] = {}
    for effect in (profile or {}).get("effects", ()):
        decision = decision_from_json(effect["decision"])
        key = key_of(effect["site"], decision)
        site = sites.get(key)
        ratio = None
        if isinstance(decision, PruneChannels) and site is not None:
            ratio = decision.keep_channels / site.channels
        found.setdefault(key, []).append(
            Tried(
                decision=decision,
                option=option_words(decision, site),
                keep_ratio=ratio,
                damage=effect["damage"],
                macs=effect["macs"],
                params=effect["params"],
            )
        )
    return {
        key: tuple(sorted(tried, key=lambda t: -(t.keep_ratio or 0.0)))
        for key, tried in found.items()
    }


def expected_damage(decision: Decision, curve: Sequence[Tried], site: Site | None) -> float | None:
    """Return the damage of a decision alone: measured, or between two measured widths.

    Linear between neighbouring widths, all channels doing none; None below the narrowest
    measured width, and for what was not measured.
    """
    for tried in curve:
        same = decision == tried.decision
        # Layers that stay in float and the criterion are settled later; the option is the same.
        if same or (isinstance(decision, Quantize) and isinstance(tried.decision, Quantize)):
            return tried.damage
    if not isinstance(decision, PruneChannels) or site is None:
        return None
    ratio = decision.keep_channels / site.channels
    points = [(1.0, 0.0)] + [(t.keep_ratio, t.damage) for t in curve if t.keep_ratio is not None]
    for (high, above), (low, below) in itertools.pairwise(points):
        if low <= ratio <= high:
            share = (high - ratio) / (high - low)
            return above + share * (below - above)
    return None


def touched_cost(
    site: Site | None, costs: Mapping[str, PlanCost], table: CostTable
) -> dict[str, int]:
    """Return what the layers cost that a site touches; the whole model where it names none.

    Args:
        site: A site of the survey.
        costs: Of every layer under a plan.
        table: Whose layers they are.
    """
    names = [row.name for row in table.layers]
    if site is not None and site.kind != "model" and site.members:
        members = set(site.members)
        names = [name for name in names if name in members]
    return {
        field: sum(getattr(costs[name], field) for name in names)
        for field in ("macs", "params", "weight_bytes")
    }


def decisions_of(
    plan: Plan, survey: Survey, measured: Mapping[Key, Sequence[Tried]]
) -> list[dict[str, Any]]:
    """Return every decision of a plan with what its layers cost before and under the whole plan."""
    sites = {(site.kind, site.name): site for site in survey.sites}
    before = survey.costs.layer_costs(Plan())
    after = survey.costs.layer_costs(plan)
    found = []
    for name, decision in plan:
        key = key_of(name, decision)
        site = sites.get(key)
        found.append(
            {
                "site": name,
                "kind": key[0],
                "decision": decision_to_json(decision),
                "option": option_words(decision, site),
                "before": touched_cost(site, before, survey.costs),
                "after": touched_cost(site, after, survey.costs),
                "damage": expected_damage(decision, measured.get(key, ()), site),
            }
        )
    return found


def site_rows(
    survey: Survey, measured: Mapping[Key, Sequence[Tried]], plans: Sequence[Plan]
) -> list[dict[str, Any]]:
    """Return the sites where something was measured or decided, and all that can be decided.

    Single layers are shown where they were measured or decided only: most of them say nothing
    that their channels do not say.
    """
    decided = {key_of(name, decision) for plan in plans for name, decision in plan}
    dense = survey.costs.layer_costs(Plan())
    total = survey.costs.cost(Plan())
    rows = []
    for site in survey.sites:
        key = (site.kind, site.name)
        if site.kind == "layer" and key not in measured and key not in decided:
            continue
        cost = touched_cost(site, dense, survey.costs)
        rows.append(
            {
                "name": site.name,
                "kind": site.kind,
                "channels": site.channels,
                "macs": cost["macs"],
                "params": cost["params"],
                "macs_share": cost["macs"] / total.macs if total.macs else 0.0,
                "params_share": cost["params"] / total.params if total.params else 0.0,
                "frozen": site.frozen,
                "options": [tried.to_json() for tried in measured.get(key, ())],
            }
        )
    return rows
