"""Depth pruning: replace blocks that change their input little by the identity.

Reference:
    Huang & Wang (2018), "Data-Driven Sparse Structure Selection for Deep Neural Networks",
    https://arxiv.org/abs/1707.01213, section 3.3: residual blocks whose branch is switched off;
    Fan et al. (2020), "Reducing Transformer Depth on Demand with Structured Dropout",
    https://arxiv.org/abs/1909.11556, for transformer layers.

Deviations:
    Nothing is learned here: which blocks go is the plan's decision. Scores to decide by are in
    `compression.blocks`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from compression.cost import CostTable, PlanCost
from compression.decisions import Decision, DropBlock
from compression.errors import NotCertified, PlanInvalid
from compression.methods import PRIMITIVES, Methods
from compression.plan import Plan
from compression.primitives.context import ModuleContext
from compression.primitives.primitive import Constraints, Description, Need
from compression.recover.hook import Hook
from compression.site import Site


@dataclasses.dataclass(frozen=True, slots=True)
class Dropped:
    """The blocks that are the identity now, sorted."""

    blocks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data: `{"blocks": [site, ...]}`."""
        return {"blocks": list(self.blocks)}

    def invariants(self) -> Sequence[Hook]:
        """Return none: an identity has nothing that could be trained."""
        return ()


class BlockDrop:
    """Primitive `drop_block`."""

    def describe(self) -> Description:
        """Return what this primitive is."""
        return Description(
            name=DropBlock.kind,
            summary=PRIMITIVES[DropBlock.kind],
            site_kind="block",
            acts_on="module",
            deterministic=True,
        )

    def applicable(self, site: Site, costs: CostTable) -> str | None:
        """Return why `site` cannot be dropped; None if it can."""
        if site.kind != "block":
            return f"site {site.name!r} is no block"
        return site.frozen

    def space(self, site: Site, methods: Methods) -> tuple[Decision | None, ...]:
        """Return to drop and not to."""
        return (DropBlock(), None)

    def needs(self, decision: Decision) -> frozenset[Need]:
        """Return nothing."""
        return frozenset()

    def estimate(self, site: Site, decision: Decision, costs: CostTable) -> PlanCost:
        """Return the exact costs of the model with this decision alone."""
        return costs.cost(Plan.of({site.name: [decision]}))

    def apply(
        self, subject: nn.Module, decisions: Mapping[str, Decision], context: ModuleContext
    ) -> tuple[nn.Module, Dropped]:
        """Return a copy of `subject` with the blocks replaced by `nn.Identity`.

        Raises:
            PlanInvalid: A site is no block of the model, or lies inside another dropped one.
        """
        known = {site.name: site for site in context.survey.sites if site.kind == "block"}
        for name in decisions:
            if name not in known:
                raise PlanInvalid(f"Site {name!r} is no block of this model; it cannot be dropped")
            reason = known[name].frozen
            if reason:
                raise PlanInvalid(f"Block {name!r} must stay: {reason}")
            outer = next((other for other in decisions if name.startswith(f"{other}.")), None)
            if outer:
                raise PlanInvalid(f"Block {name!r} lies inside {outer!r}, which is dropped too")
        return _without(subject, sorted(decisions))

    def replay(
        self, subject: nn.Module, record: Mapping[str, Any], context: ModuleContext
    ) -> nn.Module:
        """Return what `apply` returned, bit for bit."""
        return self.apply(subject, dict.fromkeys(record["blocks"], DropBlock()), context)[0]

    def verify(self, before: nn.Module, after: nn.Module, record: Dropped) -> None:
        """Check that the blocks are identities and everything else is as before.

        Raises:
            NotCertified: A layer differs.
        """
        gone = tuple(f"{block}." for block in record.blocks)
        expected = {
            name: nn.Identity if name in record.blocks else type(module)
            for name, module in before.named_modules()
            if not name.startswith(gone or ("\0",))
        }
        found = {name: type(module) for name, module in after.named_modules()}
        if expected != found:
            odd = sorted(set(expected.items()) ^ set(found.items()), key=lambda pair: pair[0])
            raise NotCertified(f"Dropping {list(record.blocks)}: layer {odd[0][0]!r} differs")

    def constraints(self) -> Constraints:
        """Return that blocks go before anything inside them is changed."""
        return Constraints(before=("prune_channels", "factorize", "quantize"))


def _without(model: nn.Module, blocks: Sequence[str]) -> tuple[nn.Module, Dropped]:
    # The dropped blocks' tensors are left out of the copy, whatever their size.
    memo: dict[int, Any] = {}
    for block in blocks:
        memo[id(model.get_submodule(block))] = nn.Identity().train(model.training)
    return copy.deepcopy(model, memo), Dropped(tuple(blocks))
