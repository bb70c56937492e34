"""A base that is a network of its own: fewer channels and blocks than the job's model, trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import cached_property

import torch
from safetensors.torch import load, save
from torch import nn

from compression.apply import ApplyContext, replay
from compression.decisions import DECISIONS, DropBlock, PruneChannels
from compression.errors import NotCertified, PlanInvalid
from compression.patch import Patch
from compression.plan import Plan, canonical_json
from compression.survey import survey
from workers.bases import Start
from workers.context import JobContext

REMOVALS = (DropBlock.kind, PruneChannels.kind)
"""Kinds of decisions that a base may carry: they leave plain, thinner layers behind."""


class ThinBase:
    """A network with the widths that a preparation reached.

    Plans are counted in the job's model: they name the final widths, and what the base did
    already is left out of what is still to be applied.

    Attributes:
        plan: What was reached, counted in the job's model.
        patch: What was removed from the job's model.
    """

    def __init__(
        self, plan: Plan, patch: Patch, state: Mapping[str, torch.Tensor], context: JobContext
    ) -> None:
        """Take over what `thin_parts` was given.

        Raises:
            PlanInvalid: The plan holds more than removals.
        """
        require_removals(plan)
        self.plan = plan
        self.patch = patch
        self._state = state
        self._context = context

    @cached_property
    def apply_context(self) -> ApplyContext:
        """The network with its survey and rankings."""
        model = replay(self.patch, self._context.apply_context)
        model.load_state_dict(dict(self._state), strict=True)
        model.eval()
        surveyed = survey(model, self._context.spec.model.input_shape)
        return self._context.context_of(model, surveyed)

    def start(self, plan: Plan) -> Start:
        """See `workers.bases.Base`."""
        rest = remaining(plan, self.plan)
        return Start(context=self.apply_context, rest=rest, stages=self.patch.stages)


def thin_parts(plan: Plan, patch: Patch, model: nn.Module) -> dict[str, bytes]:
    """Return the files that `load_thin` makes the base of again.

    Args:
        plan: What was reached, counted in the job's model.
        patch: From the job's model to the structure of `model`; see `composed`.
        model: The trained network.

    Raises:
        PlanInvalid: The plan holds more than removals.
    """
    require_removals(plan)
    document = {"plan": plan.to_json(), "patch": patch.to_json()}
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    return {"plan": canonical_json(document).encode(), "weights": save(state)}


def load_thin(parts: Mapping[str, bytes], context: JobContext) -> ThinBase:
    """Return the base that `thin_parts` wrote."""
    document = json.loads(parts["plan"])
    return ThinBase(
        Plan.from_json(document["plan"]),
        Patch.from_json(document["patch"]),
        load(parts["weights"]),
        context,
    )


def require_removals(plan: Plan) -> None:
    """Refuse plans whose network cannot become a base.

    Raises:
        PlanInvalid: The plan does more than dropping blocks and pruning channels.
    """
    others = sorted({decision.kind for _, decision in plan} - set(REMOVALS))
    if others:
        raise PlanInvalid(
            f"A base can have dropped blocks and fewer channels only; this plan also asks for "
            f"{', '.join(others)}"
        )


def remaining(plan: Plan, reached: Plan) -> Plan:
    """Return what of `plan` is still to be done where `reached` was done; both of the same model.

    Raises:
        PlanInvalid: The plan keeps a block or a channel that is gone.
    """
    dropped = plan.dropped()

    def is_gone(site: str) -> bool:
        return any(site.startswith(f"{block}.") for block in dropped)

    back = sorted(block for block in reached.dropped() - dropped if not is_gone(block))
    if back:
        raise PlanInvalid(f"Block {back[0]!r} was dropped from the base; the plan keeps it")
    widths = {site: decision.keep_channels for site, decision in reached.prune_channels().items()}
    wanted = plan.prune_channels()
    for site, width in widths.items():
        if is_gone(site):
            continue
        if site not in wanted or wanted[site].keep_channels > width:
            asked = wanted[site].keep_channels if site in wanted else "all"
            raise PlanInvalid(
                f"Site {site!r} has {width} channels in the base; the plan keeps {asked}"
            )
    table = {}
    for site, decisions in plan.decisions:
        table[site] = [
            decision
            for decision in decisions
            if not (isinstance(decision, DropBlock) and site in reached.dropped())
            and not (
                isinstance(decision, PruneChannels) and widths.get(site) == decision.keep_channels
            )
        ]
    return Plan.of(table)


def composed(start: Start, patch: Patch, context: JobContext) -> Patch:
    """Return the patch of the job's model that does what a base did and then `patch`.

    Args:
        start: Where the trial began.
        patch: What was applied to its model.
        context: Of the job.

    Raises:
        NotCertified: The two ways do not give the same network, bit for bit.
    """
    if not start.stages:
        return patch
    stages = {kind: dict(record) for kind, record in patch.stages}
    before = Patch(start.stages)
    blocks = _blocks(before) | _blocks(patch)
    outermost = {b for b in blocks if not any(b.startswith(f"{other}.") for other in blocks)}
    if outermost:
        stages[DropBlock.kind] = {"blocks": sorted(outermost)}
    kept = {
        site: channels
        for site, channels in _kept(before, patch).items()
        if not any(site.startswith(f"{block}.") for block in outermost)
    }
    if kept:
        stages[PruneChannels.kind] = {"kept": kept}
    whole = Patch(tuple((kind, stages[kind]) for kind in DECISIONS if kind in stages))
    _require_same(start, patch, whole, context)
    return whole


def _blocks(patch: Patch) -> set[str]:
    return set((patch.stage(DropBlock.kind) or {"blocks": ()})["blocks"])


def _kept(before: Patch, patch: Patch) -> dict[str, list[int]]:
    """Return the channels of the job's model that stay, by site."""
    first: dict[str, list[int]] = (before.stage(PruneChannels.kind) or {"kept": {}})["kept"]
    second: dict[str, list[int]] = (patch.stage(PruneChannels.kind) or {"kept": {}})["kept"]
    numbers = {
        site: [first[site][channel] for channel in channels] if site in first else list(channels)
        for site, channels in second.items()
    }
    return {site: list(channels) for site, channels in first.items()} | numbers


def _require_same(start: Start, patch: Patch, whole: Patch, context: JobContext) -> None:
    """Check the composition on the weights of the job's model, which only removals leave alone."""

    def removals(of: Patch) -> Patch:
        return Patch(tuple(stage for stage in of.stages if stage[0] in REMOVALS))

    first = replay(Patch(start.stages), context.apply_context)
    then = dataclasses.replace(start.context, model=first)
    one = replay(removals(patch), then).state_dict()
    other = replay(removals(whole), context.apply_context).state_dict()
    if one.keys() != other.keys() or not all(torch.equal(one[k], other[k]) for k in one):
        raise NotCertified(
            "What was removed from the base and what was removed before it do not add up to the "
            "plan's network"
        )
