"""Streamline merging: a convolution takes over the pool behind it, by a longer stride.

The merged layer computes only what the pool would have kept: a stride of 2 saves three quarters of
its multiplications and the pool itself. It is lossy: the filters are fitted to what the pool gave
on calibration inputs, and the recovery does the rest.

Reference:
    Li et al. (2018), "DeepRebirth: Accelerating Deep Neural Network Execution on Mobile Devices",
    section 3 (streamline slimming), https://arxiv.org/abs/1708.04728.

Deviations:
    Merged filters start from the old ones, refitted by least squares, not from random numbers, and
    learn with the whole network at one learning rate. Normalisation between the two layers stays
    (it is folded at export). Branches are not merged.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compression.cost import CostTable, PlanCost
from compression.decisions import Decision, MergePool
from compression.errors import NotCertified, PlanInvalid
from compression.methods import PRIMITIVES, Methods
from compression.plan import Plan
from compression.pools import MergeablePool, find_pools
from compression.primitives.context import ModuleContext
from compression.primitives.primitive import Constraints, Description, Need
from compression.primitives.refit import ROWS, ROWS_PER_INPUT, fit_layer
from compression.recover.hook import Hook
from compression.selectors.windows import (
    draw_positions,
    filters,
    in_eval_mode,
    layer_generator,
    outputs_at,
    windows,
)
from compression.site import Site


@dataclasses.dataclass(frozen=True, slots=True)
class MergedPools:
    """The pools that are gone, in forward order."""

    pools: tuple[MergeablePool, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data: `{"convolutions": [site, ...]}`."""
        return {"convolutions": [pool.conv for pool in self.pools]}

    def invariants(self) -> Sequence[Hook]:
        """Return none: no training changes a stride."""
        return ()


class PoolMerging:
    """Primitive `merge_pool`."""

    def describe(self) -> Description:
        """Return what this primitive is."""
        return Description(
            name=MergePool.kind,
            summary=PRIMITIVES[MergePool.kind],
            site_kind="layer",
            acts_on="module",
            deterministic=True,
        )

    def applicable(self, site: Site, costs: CostTable) -> str | None:
        """Return why the layer cannot take over a pool; None if it can."""
        if site.frozen:
            return site.frozen
        row = next((row for row in costs.layers if row.name == site.name), None)
        if site.kind != "layer" or row is None:
            return f"site {site.name!r} is no single layer"
        return None if row.grid_pooled else "no pool follows it that it could take over"

    def space(self, site: Site, methods: Methods) -> tuple[Decision | None, ...]:
        """Return to merge and not to."""
        return (MergePool(), None)

    def needs(self, decision: Decision) -> frozenset[Need]:
        """Return unlabelled calibration inputs if the filters are refitted."""
        refits = isinstance(decision, MergePool) and decision.refit != "none"
        return frozenset({"calibration"}) if refits else frozenset()

    def estimate(self, site: Site, decision: Decision, costs: CostTable) -> PlanCost:
        """Return the exact costs of the model with this decision alone."""
        return costs.cost(Plan.of({site.name: [decision]}))

    def apply(
        self, subject: nn.Module, decisions: Mapping[str, Decision], context: ModuleContext
    ) -> tuple[nn.Module, MergedPools]:
        """Return a copy of `subject` whose pools are identities where a convolution took over.

        Raises:
            PlanInvalid: No mergeable pool follows a site, or a refit lacks calibration inputs.
        """
        chosen = _chosen(subject, decisions, context)
        refitted = [
            pool
            for pool in chosen
            if (decision := decisions[pool.conv])
            and isinstance(decision, MergePool)
            and decision.refit == "least_squares"
        ]
        if refitted and not context.calibration:
            raise PlanInvalid(
                f"Layer {refitted[0].conv!r}: merge_pool with refit 'least_squares' needs "
                "calibration inputs; there are none"
            )
        made = _merged(subject, chosen)
        for pool in refitted:
            _refit(subject, made, pool, context)
        return made, MergedPools(chosen)

    def replay(
        self, subject: nn.Module, record: Mapping[str, Any], context: ModuleContext
    ) -> nn.Module:
        """Return the merged structure; refitted weights come with the checkpoint."""
        decisions = dict.fromkeys(record["convolutions"], MergePool())
        return _merged(subject, _chosen(subject, decisions, context))

    def verify(self, before: nn.Module, after: nn.Module, record: MergedPools) -> None:
        """Check strides, the identities in place of pools, and that all else is as before.

        Raises:
            NotCertified: One of these does not hold.
        """
        gone = {pool.pool for pool in record.pools}
        for pool in record.pools:
            layer, old = after.get_submodule(pool.conv), before.get_submodule(pool.conv)
            assert isinstance(layer, nn.Conv2d)
            assert isinstance(old, nn.Conv2d)
            if layer.stride != pool.stride or layer.padding != pool.padding:
                raise NotCertified(
                    f"Layer {pool.conv!r} has stride {layer.stride} and padding {layer.padding}; "
                    f"{pool.stride} and {pool.padding} were decided"
                )
            if layer.weight.shape != old.weight.shape:
                raise NotCertified(f"Layer {pool.conv!r}: its filters have another shape")
        expected = {
            name: nn.Identity if name in gone else type(module)
            for name, module in before.named_modules()
        }
        found = {name: type(module) for name, module in after.named_modules()}
        if expected != found:
            odd = sorted(set(expected.items()) ^ set(found.items()), key=lambda pair: pair[0])
            raise NotCertified(f"Merging pools {sorted(gone)}: layer {odd[0][0]!r} differs")

    def constraints(self) -> Constraints:
        """Return that the new stride comes before the layer is split or its weights are coded."""
        return Constraints(before=("prune_channels", "factorize", "sparsify", "quantize"))


def _chosen(
    subject: nn.Module, decisions: Mapping[str, Decision], context: ModuleContext
) -> tuple[MergeablePool, ...]:
    pools = {pool.conv: pool for pool in find_pools(subject, context.input_shape)}
    for name in decisions:
        if name not in pools:
            raise PlanInvalid(
                f"No pool follows site {name!r} that it could take over; "
                f"one follows {', '.join(pools) or 'no layer'}"
            )
    return tuple(pool for pool in pools.values() if pool.conv in decisions)


def _merged(subject: nn.Module, pools: Sequence[MergeablePool]) -> nn.Module:
    made = copy.deepcopy(subject)
    for pool in pools:
        layer = made.get_submodule(pool.conv)
        assert isinstance(layer, nn.Conv2d)
        # A new layer: what torch derives from the padding when it is built must fit, too.
        merged = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            (layer.kernel_size[0], layer.kernel_size[1]),
            stride=pool.stride,
            padding=pool.padding,
            bias=layer.bias is not None,
            dtype=layer.weight.dtype,
        ).train(layer.training)
        merged.load_state_dict(layer.state_dict())
        made.set_submodule(pool.conv, merged)
        made.set_submodule(pool.pool, nn.Identity().train(layer.training))
    return made


def _refit(before: nn.Module, made: nn.Module, pool: MergeablePool, context: ModuleContext) -> None:
    """Fit the merged filters to what the pool would pick of the old layer's outputs.

    What lies between is monotone per channel, so the maximum behind it is that of the layer's own
    outputs, or their minimum where a normalisation turns them round. An average is taken of the
    layer's outputs, as if nothing lay between.
    """
    merged, pooling = made.get_submodule(pool.conv), before.get_submodule(pool.pool)
    turned = _turned(before, pool)
    seen: list[Tensor] = []
    targets: list[Tensor] = []
    images = sum(len(batch) for batch in context.calibration)
    rows = max(ROWS, ROWS_PER_INPUT * filters(merged)[0].numel())
    generator = layer_generator(context.seed, pool.conv)

    def look(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        x = inputs[0]
        sign = torch.where(turned, -1.0, 1.0).view(1, -1, 1, 1)
        pooled = sign * pooling(sign * output)
        positions = draw_positions(merged, x, -(-rows // images), generator)
        seen.append(windows(merged, x, positions).flatten(1))
        targets.append(outputs_at(merged, pooled, positions))

    handle = before.get_submodule(pool.conv).register_forward_hook(look)
    try:
        # Earlier merges change what this layer sees: inputs are those of the network as it was.
        with in_eval_mode(before), torch.no_grad():
            for batch in context.calibration:
                before(batch)
    finally:
        handle.remove()
    x, wanted = torch.cat(seen), torch.cat(targets)
    norm = made.get_submodule(pool.between[0]) if pool.between else None
    if isinstance(norm, nn.BatchNorm2d) and norm.affine:
        fit_layer(merged, x - x.mean(0), wanted - wanted.mean(0))
        _carry_moments(norm, x @ filters(merged).flatten(1).T, wanted.mean(0))
    else:
        fit_layer(merged, x, wanted)


def _carry_moments(norm: nn.BatchNorm2d, outputs: Tensor, wanted: Tensor) -> None:
    """Let a normalisation make up for what the filters cannot: a maximum lies above the mean.

    With y the merged layer's outputs, m and s their mean and deviation, w their wanted mean, the
    layer becomes `g s / sd (y - m) / s + b + g (w - mean) / sd`: the same map of `y - m + w` as
    before, and it stays so when the statistics are taken anew.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    variance, mean = torch.var_mean(outputs, 0, correction=0)
    slope = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    with torch.no_grad():
        norm.bias.add_(slope * (wanted - norm.running_mean))
        norm.weight.copy_(slope * torch.sqrt(variance + norm.eps))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


def _turned(model: nn.Module, pool: MergeablePool) -> Tensor:
    """Return for each channel whether what lies between turns larger into smaller."""
    layer = model.get_submodule(pool.conv)
    assert isinstance(layer, nn.Conv2d)
    turned = torch.zeros(layer.out_channels, dtype=torch.bool)
    for name in pool.between:
        norm = model.get_submodule(name)
        if isinstance(norm, nn.BatchNorm2d) and norm.affine:
            turned = turned ^ (norm.weight.detach() < 0)
    return turned
