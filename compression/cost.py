"""Exact MACs, parameters and weight bytes of a plan: integer arithmetic, no model built."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from compression.plan import Plan

Op = Literal["conv", "linear", "norm", "fixed"]
Tie = tuple[str, int]
"""A site and how many of the layer's channels each of its channels stands for."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """What one layer costs as a function of the channels that its sites keep.

    Attributes:
        name: Dotted path of the layer.
        op: `conv` and `linear` multiply; `norm` has per-channel parameters; `fixed` has
            `fixed_params` parameters whatever the plan.
        in_channels: Input channels (features) in the dense model.
        out_channels: Output channels (features) in the dense model.
        kernel: Elements of the kernel window, kh * kw; 1 for linear.
        positions: Outputs per channel and input, Ho * Wo; tokens for linear.
        groups: Convolution groups in the dense model; equal to in_channels for depthwise.
        bias: Whether there is one bias per output channel.
        params_per_channel: For `norm`: trainable parameters per channel (2 when affine).
        fixed_params: For `fixed`: its parameters.
        in_ties: Sites that remove inputs; empty where inputs are fixed.
        out_ties: Sites that remove outputs.
    """

    name: str
    op: Op
    in_channels: int
    out_channels: int
    kernel: int = 1
    positions: int = 1
    groups: int = 1
    bias: bool = False
    params_per_channel: int = 0
    fixed_params: int = 0
    in_ties: tuple[Tie, ...] = ()
    out_ties: tuple[Tie, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlanCost:
    """What a plan costs by arithmetic; `weight_bytes` counts weights at their bits, no headers."""

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
        """Return the cost of each layer under the plan, by layer name."""
        removed = {
            site: self.site_channels[site] - decision.keep_channels
            for site, decision in plan.prune_channels().items()
        }
        quantize = plan.quantize()
        return {layer.name: self._cost(layer, removed, quantize) for layer in self.layers}

    def cost(self, plan: Plan) -> PlanCost:
        """Return the cost of the whole model under the plan."""
        costs = self.layer_costs(plan).values()
        return PlanCost(
            macs=sum(c.macs for c in costs),
            params=sum(c.params for c in costs),
            weight_bytes=sum(c.weight_bytes for c in costs),
        )

    @staticmethod
    def _cost(layer: LayerCost, removed: Mapping[str, int], quantize: Any) -> PlanCost:
        n_in = layer.in_channels - sum(m * removed.get(site, 0) for site, m in layer.in_ties)
        n_out = layer.out_channels - sum(m * removed.get(site, 0) for site, m in layer.out_ties)
        weights = macs = extra = 0
        if layer.op in ("conv", "linear"):
            # A depthwise layer's groups fall with its channels: one input per output.
            depthwise = layer.groups > 1 and layer.groups == layer.in_channels
            fan_in = 1 if depthwise else n_in // layer.groups
            weights = n_out * fan_in * layer.kernel
            macs = weights * layer.positions
            extra = n_out if layer.bias else 0
        elif layer.op == "norm":
            extra = n_out * layer.params_per_channel
        else:
            extra = layer.fixed_params
        is_int = quantize is not None and layer.name not in quantize.keep_float
        weight_bytes = weights * (quantize.weight_bits // 8 if is_int else 4) + 4 * extra
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
                    "in_ties": tuple((s, m) for s, m in layer["in_ties"]),
                    "out_ties": tuple((s, m) for s, m in layer["out_ties"]),
                }
            )
            for layer in data["layers"]
        ]
        return CostTable(tuple(layers), dict(data["site_channels"]))
