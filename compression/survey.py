"""What can be pruned in a model, what it would cost, and what must stay whole and why."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from compression.attention import attention_of
from compression.blocks import find_blocks
from compression.cost import CostTable, PlanCost
from compression.counting import (
    LayerCalls,
    count_calls,
    count_params,
    matrix_macs,
    zeros_like_input,
)
from compression.coupling import Coupling
from compression.graph import Untraceable, trace
from compression.layer_cost import LayerCost, Tie
from compression.plan import Plan
from compression.pools import find_pools
from compression.probe import IS_OUTPUT, Probe
from compression.site import MODEL_SITE, Site
from compression.surveyed import Survey

logger = logging.getLogger(__name__)

OTHER = "(other)"
"""Name of the cost row that holds what no layer row accounts for, e.g. shared tensors."""


def survey(model: nn.Module, input_shape: tuple[int, int, int]) -> Survey:
    """Find the sites of `model` and tabulate their costs.

    Every coupling that the tracer reports is probed (`compression.probe`). One that fails becomes
    a frozen site with its reason; couplings of the model's outputs are no sites. A model whose
    channels cannot be traced has the `model` site only, and the summary says why.

    Args:
        model: Any module; it is left as it was.
        input_shape: C, H, W of one input.
    """
    model = copy.deepcopy(model).eval().float()
    calls = count_calls(model, input_shape)
    with torch.no_grad():
        output: Tensor = model(zeros_like_input(model, input_shape))
    untraced: str | None = None
    try:
        couplings = [c for c in trace(model, input_shape) if not c.is_output]
    except Untraceable as error:
        couplings, untraced = [], str(error)
    reasons = Probe(model, input_shape).reasons(couplings)
    outputs = {name for name, reason in reasons.items() if reason == IS_OUTPUT}
    couplings = [c for c in couplings if c.name not in outputs]
    prunable = [c for c in couplings if c.name not in reasons]
    costs = _cost_table(model, input_shape, calls, prunable)
    dense = costs.layer_costs(Plan())
    sites = [_site(c, dense, reasons.get(c.name)) for c in couplings]
    sites += _block_sites(model, input_shape, dense)
    sites += _layer_sites(model, costs, dense)
    total = costs.cost(Plan())
    sites.append(
        Site(name=MODEL_SITE, kind="model", channels=0, macs=total.macs, params=total.params)
    )
    summary: dict[str, Any] = {
        "macs": total.macs,
        "params": total.params,
        "layers": sum(row.op in ("conv", "linear") for row in costs.layers),
        "sites": len(couplings),
        "prunable_sites": len(prunable),
        "blocks": sum(site.kind == "block" for site in sites),
        "frozen": {c.name: reasons[c.name] for c in couplings if c.name in reasons},
        "input_shape": list(input_shape),
        "output_shape": list(output.shape[1:]),
        "num_classes": int(output.shape[-1]),
        "uncounted_macs": matrix_macs(model, input_shape) - total.macs,
        "untraced": untraced,
    }
    logger.info(
        "Surveyed %d sites, %d prunable", len(couplings), len(prunable), extra={"action": "survey"}
    )
    return Survey(sites=tuple(sites), costs=costs, summary=summary)


def _cost_table(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    calls: Sequence[LayerCalls],
    couplings: Sequence[Coupling],
) -> CostTable:
    ties: dict[tuple[str, str], list[Tie]] = {}
    modules = dict(model.named_modules())
    for coupling in couplings:
        for tap in coupling.taps:
            # An input position of one group is one of every group.
            groups = getattr(modules[tap.layer], "groups", 1) if tap.side == "in" else 1
            count = tap.index.shape[1] * groups
            ties.setdefault((tap.layer, tap.side), []).append((coupling.name, count))
        for layer, count in {p.layer: p.index.shape[1] for p in coupling.parameters}.items():
            ties.setdefault((layer, "out"), []).append((coupling.name, count))
    called = {call.name: call for call in calls}
    ordered = [*called, *(name for name in modules if name not in called)]
    rows = []
    pooled = {pool.conv: pool.grid for pool in find_pools(model, input_shape)}
    for name in ordered:
        never = LayerCalls(name=name, positions=0, macs=0, calls=0)
        row = _row(modules[name], called.get(name, never))
        if row is not None:
            tied_out = tuple(ties.get((name, "out"), ()))
            # A depthwise layer's inputs fall with its outputs.
            same = row.groups > 1 and row.groups == row.in_channels
            tied_in = tied_out if same else tuple(ties.get((name, "in"), ()))
            row = dataclasses.replace(row, grid_pooled=pooled.get(name, ()))
            rows.append(_with_ties(row, tied_in, tied_out))
    site_channels = {coupling.name: coupling.channels for coupling in couplings}
    table = CostTable(tuple(rows), site_channels)
    rest = count_params(model) - table.cost(Plan()).params
    if rest:
        other = LayerCost(name=OTHER, op="fixed", in_channels=0, out_channels=0, fixed_params=rest)
        table = CostTable((*rows, other), site_channels)
    return table


def _with_ties(row: LayerCost, tied_in: tuple[Tie, ...], tied_out: tuple[Tie, ...]) -> LayerCost:
    return dataclasses.replace(row, in_ties=tied_in, out_ties=tied_out)


def _row(module: nn.Module, call: LayerCalls) -> LayerCost | None:
    """Return the cost of a layer in the dense model, without ties; None where it costs nothing."""
    name = call.name
    match module:
        case _ConvNd():
            return LayerCost(
                name=name,
                op="conv",
                in_channels=module.in_channels,
                out_channels=module.out_channels,
                kernel=int(np.prod(module.kernel_size)),
                positions=call.positions,
                groups=module.groups,
                bias=module.bias is not None,
                window=module.kernel_size if type(module) is nn.Conv2d else (),
                grid_in=call.grid_in,
                grid_out=call.grid_out,
                calls=call.calls,
            )
        case nn.Linear():
            return LayerCost(
                name=name,
                op="linear",
                in_channels=module.in_features,
                out_channels=module.out_features,
                positions=call.positions,
                bias=module.bias is not None,
                window=(1, 1) if type(module) is nn.Linear and call.calls else (),
                calls=call.calls,
            )
        case nn.MultiheadAttention() if module.in_proj_weight is not None:
            return LayerCost(
                name=name,
                op="linear",
                in_channels=module.in_proj_weight.shape[1],
                out_channels=module.in_proj_weight.shape[0],
                positions=call.positions,
                bias=module.in_proj_bias is not None,
                calls=call.calls,
            )
        case _NormBase() | nn.PReLU():
            width = module.num_features if isinstance(module, _NormBase) else module.num_parameters
            own = sum(p.numel() for p in module.parameters(recurse=False))
            if not own:
                return None
            return LayerCost(
                name=name,
                op="norm",
                in_channels=width,
                out_channels=width,
                params_per_channel=own // width,
            )
    own = sum(p.numel() for p in module.parameters(recurse=False))
    if not own:
        return None
    heads = attention_of(name, module)
    if heads is not None and heads.coupling.parameters:
        count = heads.coupling.channels
        return LayerCost(
            name=name,
            op="norm",
            in_channels=count,
            out_channels=count,
            params_per_channel=own // count,
        )
    return LayerCost(name=name, op="fixed", in_channels=0, out_channels=0, fixed_params=own)


def _site(coupling: Coupling, dense: dict[str, PlanCost], reason: str | None) -> Site:
    costs = [dense[layer] for layer in coupling.layers if layer in dense]
    return Site(
        name=coupling.name,
        kind="channels",
        channels=coupling.channels,
        macs=sum(cost.macs for cost in costs),
        params=sum(cost.params for cost in costs),
        members=coupling.layers,
        frozen=reason,
    )


def _block_sites(
    model: nn.Module, input_shape: tuple[int, int, int], dense: dict[str, PlanCost]
) -> list[Site]:
    sites = []
    for block in find_blocks(model, input_shape):
        inside = [name for name in dense if name.startswith(f"{block}.")]
        sites.append(
            Site(
                name=block,
                kind="block",
                channels=0,
                macs=sum(dense[name].macs for name in inside),
                params=sum(dense[name].params for name in inside),
                members=tuple(inside),
            )
        )
    return sites


def _layer_sites(model: nn.Module, costs: CostTable, dense: dict[str, PlanCost]) -> list[Site]:
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(name)
    sites = []
    for row in costs.layers:
        if row.op not in ("conv", "linear"):
            continue
        weight = getattr(model.get_submodule(row.name), "weight", None)
        # The projections inside an attention layer are no layer of their own.
        if weight is None:
            continue
        shared = sorted(set(holders.get(id(weight), ())) - {row.name})
        sites.append(
            Site(
                name=row.name,
                kind="layer",
                channels=row.out_channels,
                macs=dense[row.name].macs,
                params=dense[row.name].params,
                members=(row.name,),
                frozen=f"it shares its weight with {shared[0]!r}" if shared else None,
            )
        )
    return sites
