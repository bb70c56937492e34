"""Exact MACs, parameters and weight bytes of a plan: integer arithmetic, no model built."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from compression.decisions import Factorize, MergePool
from compression.errors import PlanInvalid
from compression.factors import expand, split_cost
from compression.layer_cost import WEIGHTED, LayerCost
from compression.plan import Plan
from compression.weight_size import WeightSize

_GRIDS = ("window", "grid_in", "grid_out", "grid_pooled")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlanCost:
    """What a plan costs by arithmetic.

    Attributes:
        macs: Multiply-adds of one input; zeros are multiplied like any other weight.
        params: Trainable numbers; zeros and shared weights count like any other.
        weight_bytes: An estimate without headers: weights at their nominal bits, codebooks, and
            sparse weights in their smallest layout (`compression.weight_size`).
    """

    macs: int
    params: int
    weight_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class CostTable:
    """Costs of every layer, and the channels of every site in the dense model.

    MACs count convolutions and linear layers for one input (bias adds are not counted).

    Attributes:
        layers: In forward order.
        site_channels: Channels of each site in the dense model.
    """

    layers: tuple[LayerCost, ...]
    site_channels: Mapping[str, int]

    def layer_costs(self, plan: Plan) -> dict[str, PlanCost]:
        """Return the cost of each layer under the plan, by layer name; 0 in dropped blocks."""
        removed = {
            site: self.site_channels[site] - decision.keep_channels
            for site, decision in plan.prune_channels().items()
        }
        gone = tuple(f"{block}." for block in plan.dropped())
        merged = plan.of_kind(MergePool.kind)
        splits = expand(plan.factorize(), self.layers)
        size = WeightSize.of(plan, [row.name for row in self.layers if row.op in WEIGHTED])
        costs = {}
        for layer in self.layers:
            if gone and layer.name.startswith(gone):
                costs[layer.name] = PlanCost(macs=0, params=0, weight_bytes=0)
            else:
                split = splits.get(layer.name)
                layer = _pooled(layer) if layer.name in merged else layer
                costs[layer.name] = self._cost(layer, removed, split, size)
        return costs

    def cost(self, plan: Plan) -> PlanCost:
        """Return the cost of the whole model under the plan."""
        costs = self.layer_costs(plan).values()
        return PlanCost(
            macs=sum(c.macs for c in costs),
            params=sum(c.params for c in costs),
            weight_bytes=sum(c.weight_bytes for c in costs),
        )

    @staticmethod
    def _cost(
        layer: LayerCost, removed: Mapping[str, int], split: Factorize | None, size: WeightSize
    ) -> PlanCost:
        n_in = layer.in_channels - sum(m * removed.get(site, 0) for site, m in layer.in_ties)
        n_out = layer.out_channels - sum(m * removed.get(site, 0) for site, m in layer.out_ties)
        weights = macs = extra = 0
        if layer.op in WEIGHTED:
            if split is None:
                # A depthwise layer's groups fall with its channels: one input per output.
                depthwise = layer.groups > 1 and layer.groups == layer.in_channels
                fan_in = 1 if depthwise else n_in // layer.groups
                weights = n_out * fan_in * layer.kernel
                macs = weights * layer.positions
            else:
                weights, macs = split_cost(layer, n_in, n_out, split)
            extra = n_out if layer.bias else 0
        elif layer.op == "norm":
            extra = n_out * layer.params_per_channel
        else:
            extra = layer.fixed_params
        weight_bytes = size.bytes_of(layer.name, weights) + 4 * extra
        return PlanCost(macs=macs, params=weights + extra, weight_bytes=weight_bytes)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        layers = [dataclasses.asdict(layer) for layer in self.layers]
        return {"layers": layers, "site_channels": dict(self.site_channels)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> CostTable:
        """Rebuild a table from `to_json`."""
        layers = [
            LayerCost(
                **{
                    **layer,
                    **{key: tuple(layer.get(key, ())) for key in _GRIDS},
                    "in_ties": tuple((s, m) for s, m in layer["in_ties"]),
                    "out_ties": tuple((s, m) for s, m in layer["out_ties"]),
                }
            )
            for layer in data["layers"]
        ]
        return CostTable(tuple(layers), dict(data["site_channels"]))


def _pooled(layer: LayerCost) -> LayerCost:
    """Return the layer as it is when it does the work of the pool behind it.

    Raises:
        PlanInvalid: No such pool follows.
    """
    if not layer.grid_pooled:
        raise PlanInvalid(f"No pool follows layer {layer.name!r} that it could take over")
    height, width = layer.grid_pooled
    return dataclasses.replace(layer, grid_out=(height, width), positions=height * width)
