"""Structured pruning: remove whole channels of coupled layers.

Reference:
    Li et al. (2017), "Pruning Filters for Efficient ConvNets", https://arxiv.org/abs/1608.08710;
    coupled layers as in Fang et al. (2023), "DepGraph", https://arxiv.org/abs/2301.12900.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compression.afford import INPUT_SELECTORS, LABELLED_SELECTORS
from compression.cost import CostTable, PlanCost
from compression.coupling import Coupling
from compression.decisions import Decision, PruneChannels
from compression.equivalence import TOLERANCE, equivalence_gap
from compression.errors import NotCertified, PlanInvalid
from compression.methods import PRIMITIVES, Methods, keep_choices
from compression.plan import Plan
from compression.primitives.context import ModuleContext
from compression.primitives.primitive import Constraints, Description, Need
from compression.primitives.rankings import Rankings
from compression.primitives.refit import refit
from compression.recover.hook import Hook
from compression.site import Site
from compression.surgery import Cut, cuts_of, thin


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Removal:
    """What a pruning left, and what it can be checked with.

    Attributes:
        kept: Ascending channel numbers of the dense model by site, at least one each.
        cuts: What stayed of every layer that lost something.
        probe: `B x C x H x W` inputs for the equivalence check.
        thinned: The thin model before its consumers were refitted; None where they were not.
    """

    kept: Mapping[str, tuple[int, ...]]
    cuts: Mapping[str, Cut]
    probe: Tensor
    thinned: nn.Module | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data: `{"kept": {site: [channel, ...]}}`."""
        return {"kept": {site: list(self.kept[site]) for site in sorted(self.kept)}}

    def invariants(self) -> Sequence[Hook]:
        """Return none: a thinner network stays thin."""
        return ()


class ChannelPruning:
    """Primitive `prune_channels`."""

    def describe(self) -> Description:
        """Return what this primitive is."""
        return Description(
            name=PruneChannels.kind,
            summary=PRIMITIVES[PruneChannels.kind],
            site_kind="channels",
            acts_on="module",
            deterministic=True,
        )

    def applicable(self, site: Site, costs: CostTable) -> str | None:
        """Return why channels of `site` cannot be removed; None if they can."""
        if site.kind != "channels":
            return f"site {site.name!r} has no channels"
        return site.frozen

    def space(self, site: Site, methods: Methods) -> tuple[Decision | None, ...]:
        """Return one option per keep count and selector, then None."""
        *fewer, _ = keep_choices(site.channels, methods)
        return (
            *(
                PruneChannels(keep_channels=keep, selector=selector)
                for keep in fewer
                for selector in methods.selectors
            ),
            None,
        )

    def needs(self, decision: Decision) -> frozenset[Need]:
        """Return what the selector and the refit look at."""
        assert isinstance(decision, PruneChannels)
        found: set[Need] = set()
        if decision.selector in LABELLED_SELECTORS:
            found |= {"labels", "gradients"}
        if decision.selector in INPUT_SELECTORS or decision.refit != "none":
            found |= {"calibration"}
        return frozenset(found)

    def estimate(self, site: Site, decision: Decision, costs: CostTable) -> PlanCost:
        """Return the exact costs of the model with this decision alone."""
        return costs.cost(Plan.of({site.name: [decision]}))

    def apply(
        self, subject: nn.Module, decisions: Mapping[str, Decision], context: ModuleContext
    ) -> tuple[nn.Module, Removal]:
        """Return a thinner copy of `subject`, the dense model or that with blocks dropped.

        Raises:
            PlanInvalid: A site is unknown, keeps more channels than it has, or its selector
                cannot run.
        """
        kept = {
            site: _kept(site, decision, context)
            for site, decision in decisions.items()
            if isinstance(decision, PruneChannels)
        }
        thinned, removal = self._remove(subject, kept, context)
        asked = {d.refit for d in decisions.values() if isinstance(d, PruneChannels)}
        if asked == {"none"}:
            return thinned, removal
        if asked != {"least_squares"}:
            raise PlanInvalid(f"A plan refits everywhere or nowhere; this one asks for {asked}")
        if not context.calibration:
            raise PlanInvalid("refit 'least_squares' needs calibration inputs; there are none")
        fitted = copy.deepcopy(thinned)
        refit(subject, fitted, removal.cuts, context.calibration)
        return fitted, dataclasses.replace(removal, thinned=thinned)

    def replay(
        self, subject: nn.Module, record: Mapping[str, Any], context: ModuleContext
    ) -> nn.Module:
        """Return what `apply` returned, bit for bit, had it not refitted.

        Raises:
            PlanInvalid: A site is unknown or has no such channel.
        """
        kept = {site: tuple(channels) for site, channels in record["kept"].items()}
        for site, channels in kept.items():
            width = _coupling(site, context.rankings).channels
            if list(channels) != sorted({c for c in channels if 0 <= c < width}) or not channels:
                raise PlanInvalid(
                    f"Site {site!r} has {width} channels; the patch keeps {list(channels)[:8]}, "
                    "which is not an ascending choice of them"
                )
        return self._remove(subject, kept, context)[0]

    @staticmethod
    def _remove(
        subject: nn.Module, kept: Mapping[str, tuple[int, ...]], context: ModuleContext
    ) -> tuple[nn.Module, Removal]:
        indices = {site: np.array(channels, dtype=np.int64) for site, channels in kept.items()}
        here = {name for name, _ in subject.named_modules()}
        # Layers of dropped blocks lose nothing any more.
        couplings = [
            dataclasses.replace(
                c,
                taps=tuple(tap for tap in c.taps if tap.layer in here),
                parameters=tuple(tap for tap in c.parameters if tap.layer in here),
            )
            for c in context.rankings.couplings.values()
        ]
        cuts = cuts_of(subject, couplings, indices)
        probe = torch.randn(1, *context.input_shape, generator=torch.Generator().manual_seed(0))
        return thin(subject, cuts), Removal(kept=kept, cuts=cuts, probe=probe)

    def verify(self, before: nn.Module, after: nn.Module, record: Removal) -> None:
        """Check that `after`, before any refit, equals `before` without the removed channels.

        Raises:
            NotCertified: It differs by more than `equivalence.TOLERANCE`.
        """
        thinned = after if record.thinned is None else record.thinned
        gap = equivalence_gap(before, thinned, record.cuts, record.probe)
        if not gap <= TOLERANCE:
            raise NotCertified(
                f"Sites {sorted(record.kept)}: the thin model differs from the masked dense "
                f"one by {gap:.2g} of the output scale; {TOLERANCE:g} is allowed"
            )

    def constraints(self) -> Constraints:
        """Return that pruning comes before BatchNorm is folded and before integers."""
        return Constraints(before=("fold_batchnorm", "quantize"), preserves=("kept channels",))


def _coupling(site: str, rankings: Rankings) -> Coupling:
    coupling = rankings.couplings.get(site)
    if coupling is None:
        raise PlanInvalid(f"Site {site!r} is unknown or frozen; its channels cannot be removed")
    return coupling


def _kept(site: str, decision: PruneChannels, context: ModuleContext) -> tuple[int, ...]:
    width = _coupling(site, context.rankings).channels
    if decision.keep_channels > width:
        raise PlanInvalid(
            f"Site {site!r} has {width} channels; the plan keeps {decision.keep_channels}"
        )
    order = context.rankings.order(context.dense, decision.selector)[site]
    return tuple(sorted(int(channel) for channel in order[: decision.keep_channels]))
