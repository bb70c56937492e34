"""Structured pruning: remove whole channels of coupled layers.

Reference:
    Li et al. (2017), "Pruning Filters for Efficient ConvNets", https://arxiv.org/abs/1608.08710;
    coupled layers as in Fang et al. (2023), "DepGraph", https://arxiv.org/abs/2301.12900.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from compression.cost import CostTable, PlanCost
from compression.coupling import Coupling, Indices
from compression.equivalence import TOLERANCE, equivalence_gap
from compression.errors import NotCertified, PlanInvalid
from compression.methods import PRIMITIVES, Methods, keep_choices
from compression.patch import Patch
from compression.plan import Decision, Plan, PruneChannels
from compression.primitives.primitive import Constraints, Description, Need
from compression.selectors.selector import Batch, Selector
from compression.site import Site
from compression.surgery import Cut, cuts_of, thin


class Rankings:
    """The couplings of a model and the order of importance of their channels.

    The order by a selector is computed on its first use and kept, so a warm worker ranks once.

    Attributes:
        couplings: By site.
    """

    def __init__(
        self,
        couplings: Mapping[str, Coupling],
        selectors: Mapping[str, Selector],
        batches: Sequence[Batch] = (),
    ) -> None:
        self.couplings = couplings
        self._selectors = selectors
        self._batches = batches
        self._orders: dict[str, Mapping[str, Indices]] = {}

    def order(self, model: nn.Module, selector: str) -> Mapping[str, Indices]:
        """Return the channels of every site, most important first; equal ones ascending.

        Raises:
            PlanInvalid: The selector is unknown, or needs labelled batches and there are none.
        """
        if selector not in self._orders:
            chosen = self._selectors.get(selector)
            if chosen is None:
                known = ", ".join(self._selectors)
                raise PlanInvalid(f"Unknown selector {selector!r}; known: {known}")
            if chosen.needs_labels and not self._batches:
                raise PlanInvalid(f"Selector {selector!r} needs labelled batches; there are none")
            scores = chosen.scores(model, tuple(self.couplings.values()), self._batches)
            self._orders[selector] = {
                site: np.argsort(-score, kind="stable") for site, score in scores.items()
            }
        return self._orders[selector]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Removal:
    """What a pruning left, and what it can be checked with.

    Attributes:
        patch: Kept channels by site.
        cuts: What stayed of every layer that lost something.
        probe: `B x C x H x W` inputs for the equivalence check.
    """

    patch: Patch
    cuts: Mapping[str, Cut]
    probe: Tensor


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PruningContext:
    """What channel pruning needs beside the model.

    Attributes:
        rankings: Of the dense model.
        input_shape: C, H, W of one input.
    """

    rankings: Rankings
    input_shape: tuple[int, int, int]


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

    def applicable(self, site: Site) -> str | None:
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
        """Return labels and gradients for `taylor`, nothing for the other selectors."""
        taylor = isinstance(decision, PruneChannels) and decision.selector == "taylor"
        return frozenset({"labels", "gradients"}) if taylor else frozenset()

    def estimate(self, site: Site, decision: Decision, costs: CostTable) -> PlanCost:
        """Return the exact costs of the model with this decision alone."""
        return costs.cost(Plan.of({site.name: [decision]}))

    def apply(
        self, subject: nn.Module, decisions: Mapping[str, Decision], context: PruningContext
    ) -> tuple[nn.Module, Removal]:
        """Return a thinner copy of the dense `subject`, and what was kept.

        Raises:
            PlanInvalid: A site is unknown, keeps more channels than it has, or its selector
                cannot run.
        """
        kept = {
            site: _kept(subject, site, decision, context.rankings)
            for site, decision in decisions.items()
            if isinstance(decision, PruneChannels)
        }
        return self.replay(subject, Patch(kept), context)

    def replay(
        self, subject: nn.Module, patch: Patch, context: PruningContext
    ) -> tuple[nn.Module, Removal]:
        """Return what `apply` returned when it left this patch, bit for bit.

        Raises:
            PlanInvalid: A site is unknown or has no such channel.
        """
        couplings = context.rankings.couplings
        for site, channels in patch.kept.items():
            width = _coupling(site, context.rankings).channels
            if channels[-1] >= width:
                raise PlanInvalid(
                    f"Site {site!r} has {width} channels; the patch keeps number {channels[-1]}"
                )
        kept = {site: np.array(channels, dtype=np.int64) for site, channels in patch.kept.items()}
        cuts = cuts_of(subject, couplings.values(), kept)
        probe = torch.randn(1, *context.input_shape, generator=torch.Generator().manual_seed(0))
        return thin(subject, cuts), Removal(patch=patch, cuts=cuts, probe=probe)

    def verify(self, before: nn.Module, after: nn.Module, record: Removal) -> None:
        """Check that `after` equals `before` with the removed channels ignored.

        Raises:
            NotCertified: It differs by more than `equivalence.TOLERANCE`.
        """
        gap = equivalence_gap(before, after, record.cuts, record.probe)
        if not gap <= TOLERANCE:
            raise NotCertified(
                f"Sites {sorted(record.patch.kept)}: the thin model differs from the masked dense "
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


def _kept(
    model: nn.Module, site: str, decision: PruneChannels, rankings: Rankings
) -> tuple[int, ...]:
    width = _coupling(site, rankings).channels
    if decision.keep_channels > width:
        raise PlanInvalid(
            f"Site {site!r} has {width} channels; the plan keeps {decision.keep_channels}"
        )
    order = rankings.order(model, decision.selector)[site]
    return tuple(sorted(int(channel) for channel in order[: decision.keep_channels]))
