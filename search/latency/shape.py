"""What a runtime is given of a plan: the deployed layers and their shapes, by arithmetic alone."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from typing import NewType

from compression.cost import CostTable
from compression.decisions import Factorize, MergePool
from compression.factors import expand, kronecker_shape, ranks, window_of
from compression.layer_cost import WEIGHTED, LayerCost, Op
from compression.plan import Plan, canonical_json
from compression.weight_size import WeightSize

Signature = NewType("Signature", str)
"""SHA-256 of the shapes: plans of equal signatures are the same work for a runtime."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """One layer as it is deployed.

    Attributes:
        op: See `LayerCost`.
        in_channels: Inputs that are left.
        out_channels: Outputs that are left.
        kernel: Elements of the window.
        positions: Outputs per channel and input.
        positions_in: Inputs per channel and input.
        groups: Of a convolution; equal to the channels of a depthwise one.
        int8: Computed with 8-bit weights and activations.
        storage: How its weights are kept where that is not one number per weight: sparse, in few
            bits, shared. It decides the time of runtimes with kernels for it.
    """

    op: Op
    in_channels: int
    out_channels: int
    kernel: int = 1
    positions: int = 1
    positions_in: int = 1
    groups: int = 1
    int8: bool = False
    storage: str = ""

    @property
    def weights(self) -> int:
        """Multiplied numbers."""
        if self.op not in WEIGHTED:
            return 0
        return self.out_channels * (self.in_channels // self.groups) * self.kernel

    @property
    def macs(self) -> int:
        """Multiply-adds of one input."""
        return self.weights * self.positions

    @property
    def elements(self) -> int:
        """Activations read and written."""
        read = self.in_channels * self.positions_in
        return (read + self.out_channels * self.positions) if self.op in WEIGHTED else 0

    @property
    def number_bytes(self) -> int:
        """Bytes of one weight or activation."""
        return 1 if self.int8 else 4


def deployed_shapes(costs: CostTable, plan: Plan) -> tuple[LayerShape, ...]:
    """Return the layers that are left under a plan, in forward order.

    A factorized layer is the chain of its factors. Multiply-adds sum to those of the cost table,
    but for the scales of Kronecker products with a bias, which are no layer.
    """
    removed = {
        site: costs.site_channels[site] - decision.keep_channels
        for site, decision in plan.prune_channels().items()
    }
    gone = tuple(f"{block}." for block in plan.dropped())
    merged = plan.of_kind(MergePool.kind)
    splits = expand(plan.factorize(), costs.layers)
    size = WeightSize.of(plan, [layer.name for layer in costs.layers if layer.op in WEIGHTED])
    whole = plan.quantize()
    shapes: list[LayerShape] = []
    for layer in costs.layers:
        if gone and layer.name.startswith(gone):
            continue
        if layer.name in merged and layer.grid_pooled:
            height, width = layer.grid_pooled
            layer = dataclasses.replace(layer, positions=height * width)
        n_in = layer.in_channels - sum(m * removed.get(site, 0) for site, m in layer.in_ties)
        n_out = layer.out_channels - sum(m * removed.get(site, 0) for site, m in layer.out_ties)
        split = splits.get(layer.name) if layer.op in WEIGHTED else None
        chain = [_whole(layer, n_in, n_out)] if split is None else _chain(layer, n_in, n_out, split)
        int8 = layer.op in WEIGHTED and whole is not None and layer.name not in whole.keep_float
        storage = _storage(layer, size)
        shapes += [dataclasses.replace(shape, int8=int8, storage=storage) for shape in chain]
    return tuple(shapes)


def signature(costs: CostTable, plan: Plan) -> Signature:
    """Return the name of a plan's deployed network as a runtime sees it.

    Which of several equal blocks is dropped, and which channels are kept, makes no difference.
    """
    whole = plan.quantize()
    layers = {layer.name for layer in costs.layers}
    # Names that are no layers are nodes, such as sums, that stay float.
    nodes = [] if whole is None else [name for name in whole.keep_float if name not in layers]
    shapes = [list(dataclasses.astuple(shape)) for shape in deployed_shapes(costs, plan)]
    return Signature(hashlib.sha256(canonical_json([shapes, nodes]).encode()).hexdigest())


def _storage(layer: LayerCost, size: WeightSize) -> str:
    kept = (size.codes.get(layer.name), size.sparsify.get(layer.name))
    return "; ".join(repr(decision) for decision in kept if decision is not None)


def _whole(layer: LayerCost, n_in: int, n_out: int) -> LayerShape:
    depthwise = layer.groups > 1 and layer.groups == layer.in_channels
    return LayerShape(
        op=layer.op,
        in_channels=n_in,
        out_channels=n_out,
        kernel=layer.kernel,
        positions=layer.positions,
        positions_in=math.prod(layer.grid_in) if layer.grid_in else layer.positions,
        groups=n_in if depthwise else layer.groups,
    )


def _chain(layer: LayerCost, n_in: int, n_out: int, decision: Factorize) -> list[LayerShape]:
    """Return the factors of a layer; see `compression.factors` for the forms."""
    window = kh, kw = window_of(layer)
    out = layer.positions
    entering = between = out
    if layer.grid_in:
        entering = math.prod(layer.grid_in)
        between = layer.grid_out[0] * layer.grid_in[1]
    r, *more = ranks(decision, n_in, n_out, window)

    def part(n: int, m: int, k: int, before: int, after: int, groups: int = 1) -> LayerShape:
        return LayerShape(
            op=layer.op,
            in_channels=n,
            out_channels=m,
            kernel=k,
            positions=after,
            positions_in=before,
            groups=groups,
        )

    match decision.method:
        case "svd" | "channel":
            return [part(n_in, r, kh * kw, entering, out), part(r, n_out, 1, out, out)]
        case "spatial":
            return [part(n_in, r, kh, entering, between), part(r, n_out, kw, between, out)]
        case "tucker2":
            (last,) = more
            return [
                part(n_in, r, 1, entering, entering),
                part(r, last, kh * kw, entering, out),
                part(last, n_out, 1, out, out),
            ]
        case "cp":
            return [
                part(n_in, r, 1, entering, entering),
                part(r, r, kh, entering, between, r),
                part(r, r, kw, between, out, r),
                part(r, n_out, 1, out, out),
            ]
        case "kronecker":
            n1, n2, m1, m2 = kronecker_shape(n_in, n_out)
            # The window runs over n1 slices of the input, the outer factor over m2 of the output.
            inner = part(n2, r * m2, kh * kw, entering * n1, out * n1)
            return [inner, part(r * n1, m1, 1, out * m2, out * m2)]
