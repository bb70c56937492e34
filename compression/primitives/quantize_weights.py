"""Low-bit weights that are computed with as floats: they are small in a file, not faster.

The module stays what it was, its weights just lie on a grid (`compression.primitives.
weight_grids`); the coder of `.ppz` files finds that. Weights that were exactly zero stay zero,
also where the grid has no zero.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compression import choices
from compression.cost import CostTable, PlanCost
from compression.decisions import Decision, QuantizeWeights, WeightQuantizer
from compression.errors import NotCertified
from compression.methods import PRIMITIVES, Methods
from compression.plan import Plan
from compression.primitives.context import ModuleContext
from compression.primitives.primitive import Constraints, Description, Need
from compression.primitives.weight_grids import (
    learned_step,
    lq,
    normalized,
    outlier,
    power_of_two,
    uniform,
)
from compression.primitives.weight_grids.grid import HeldWeight, WeightGrid, zeros_of
from compression.primitives.weight_layers import (
    check_snr,
    check_untouched,
    decided_layers,
    snr_db,
    weight_layer,
    why_not,
)
from compression.recover.grid_hold import HoldGrid
from compression.recover.hook import Hook
from compression.site import Site

GRIDS: Mapping[WeightQuantizer, Callable[[Tensor, int], WeightGrid]] = {
    "uniform": uniform.fit,
    "lq": lq.fit,
    "lsq": learned_step.fit,
    "outlier": outlier.fit,
    "pow2": power_of_two.fit,
    "normalized": normalized.fit,
}
"""Fits a grid to rows of weights (one per output channel) in so many bits, by quantizer."""

ENDS = QuantizeWeights(bits=8)
"""Of the first and the last layer where the whole model is decided: they are few and matter."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LowBitLayer:
    """What quantization did to one layer.

    Attributes:
        held: Its grid and the weight before.
        decision: What was asked for.
        snr_db: Signal to noise of the weights.
    """

    held: HeldWeight
    decision: QuantizeWeights
    snr_db: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LowBitWeights:
    """The trace of one quantization of weights: layers by name, in forward order."""

    layers: Mapping[str, LowBitLayer]

    def to_json(self) -> dict[str, Any]:
        """Return facts about every layer; the structure of the model did not change."""
        return {
            "layers": {
                name: {
                    "bits": layer.decision.bits,
                    "quantizer": layer.decision.quantizer,
                    "snr_db": layer.snr_db,
                }
                for name, layer in self.layers.items()
            }
        }

    def held(self) -> dict[str, HeldWeight]:
        """Return grids and former weights, as training hooks take them."""
        return {name: layer.held for name, layer in self.layers.items()}

    def invariants(self) -> Sequence[Hook]:
        """Return the hook that trains float weights behind the projected ones."""
        return (HoldGrid(self.held()),)


class WeightQuantization:
    """Primitive `quantize_weights`."""

    def describe(self) -> Description:
        """Return what this primitive is."""
        return Description(
            name=QuantizeWeights.kind,
            summary=PRIMITIVES[QuantizeWeights.kind],
            site_kind="layer",
            acts_on="module",
            deterministic=True,
        )

    def applicable(self, site: Site, costs: CostTable) -> str | None:
        """Return why weights of `site` cannot be quantized; None if they can."""
        return why_not(site, costs)

    def space(self, site: Site, methods: Methods) -> tuple[Decision | None, ...]:
        """Return the job's widths, fewest bits first, then None."""
        found = (choices.parse(QuantizeWeights.kind, text) for text in methods.quantize_weights)
        widths = [decision for decision in found if isinstance(decision, QuantizeWeights)]
        return (*sorted(widths, key=lambda decision: decision.bits), None)

    def needs(self, decision: Decision) -> frozenset[Need]:
        """Return nothing."""
        return frozenset()

    def estimate(self, site: Site, decision: Decision, costs: CostTable) -> PlanCost:
        """Return the costs of the model with this decision alone."""
        return costs.cost(Plan.of({site.name: [decision]}))

    def apply(
        self, subject: nn.Module, decisions: Mapping[str, Decision], context: ModuleContext
    ) -> tuple[nn.Module, LowBitWeights]:
        """Return a copy of `subject` with weights on grids, and the grids.

        Raises:
            PlanInvalid: A site has no weights, or weights are not finite.
        """
        chosen = {site: d for site, d in decisions.items() if isinstance(d, QuantizeWeights)}
        layers = decided_layers(subject, chosen, context.input_shape, ends=ENDS)
        after = copy.deepcopy(subject)
        done: dict[str, LowBitLayer] = {}
        with torch.no_grad():
            for name, decision in layers.items():
                weight = weight_layer(after, name).weight
                origin = weight.detach().clone()
                rows = origin.reshape(origin.shape[0], -1)
                grid = GRIDS[decision.quantizer](rows, decision.bits)
                held = HeldWeight(grid=grid, origin=origin, zeros=zeros_of(origin))
                weight.copy_(held.project(origin))
                done[name] = LowBitLayer(
                    held=held, decision=decision, snr_db=snr_db(origin, weight)
                )
        return after, LowBitWeights(layers=done)

    def replay(
        self, subject: nn.Module, record: Mapping[str, Any], context: ModuleContext
    ) -> nn.Module:
        """Return a copy: no structure changed, and the checkpoint brings the weights."""
        for name in record["layers"]:
            weight_layer(subject, name)
        return copy.deepcopy(subject)

    def verify(self, before: nn.Module, after: nn.Module, record: LowBitWeights) -> None:
        """Check how many values every channel takes, and how far they are from the former ones.

        Raises:
            NotCertified: There are more values than the bits allow, a zero was filled in, the
                error is not the recorded one, or another tensor changed.
        """
        check_untouched(before, after, frozenset(record.layers), QuantizeWeights.kind)
        for name, layer in record.layers.items():
            then, now = weight_layer(before, name).weight, weight_layer(after, name).weight
            filled = int((now[then == 0] != 0).sum())
            if filled:
                raise NotCertified(f"Layer {name!r}: {filled} weights were zero and are not now")
            allowed = layer.held.grid.most_values(now.numel()) + (layer.held.zeros is not None)
            found = _most_distinct(now)
            if found > allowed:
                raise NotCertified(
                    f"Layer {name!r}: a channel takes {found} distinct weights; {allowed} are "
                    f"allowed by {layer.decision.bits} bits ({layer.decision.quantizer})"
                )
            check_snr(name, then, now, layer.snr_db)

    def constraints(self) -> Constraints:
        """Return that weights are quantized before export, and stay on the grid afterwards."""
        return Constraints(before=("quantize", "encode"), preserves=("weight grids",))


def _most_distinct(weight: Tensor) -> int:
    """Return the greatest number of distinct values in a row."""
    ordered = weight.detach().reshape(weight.shape[0], -1).sort(1).values
    return int((ordered.diff(dim=1) != 0).sum(1).max()) + 1
