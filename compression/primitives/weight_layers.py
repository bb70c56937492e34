"""Which layers a decision about stored weights covers, and how well their weights survived it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from compression.cost import CostTable
from compression.counting import count_calls
from compression.errors import NotCertified, PlanInvalid
from compression.site import MODEL_SITE, Site

WeightLayer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
"""Layers whose weight begins with the axis of outputs. Transposed convolutions do not."""

MIN_WEIGHTS = 256
"""A smaller layer costs less than the table of its values: the model's site leaves it alone."""

MAX_HALF = 65504.0
"""The greatest float16."""

MAX_SNR_DB = 200.0
"""Stands for an exact reproduction; float32 cannot tell better ones apart."""

SNR_TOLERANCE_DB = 0.01

D = TypeVar("D")


def decided_layers(
    model: nn.Module,
    decisions: Mapping[str, D],
    input_shape: tuple[int, int, int],
    *,
    ends: D,
) -> dict[str, D]:
    """Return the decision of every layer that has one, in forward order.

    A decision at a layer's site covers that layer, or the parts that replaced it. One at the
    model's site covers all other convolutions and linear layers with at least `MIN_WEIGHTS`
    weights. A weight that several layers share is decided once, under the name of the first of
    them in the model's own order.

    Args:
        model: Left as it was.
        decisions: By site.
        input_shape: C, H, W of one input.
        ends: What the model's site means for the first and the last layer.

    Raises:
        PlanInvalid: A site is neither the model's nor that of a layer with weights, a weight
            that is decided about is not finite or beyond float16, or layers' sites decide two
            things about a weight that they share.
    """
    # A copy runs: counting must touch neither the mode nor the statistics of the model.
    calls = count_calls(copy.deepcopy(model).eval(), input_shape)
    modules = {name: m for name, m in model.named_modules() if isinstance(m, WeightLayer)}
    called = [call.name for call in calls if call.name in modules]
    order = [*called, *(name for name in modules if name not in called)]
    chosen: dict[str, D] = {}
    for site, decision in decisions.items():
        if site == MODEL_SITE:
            continue
        covered = _layers_at(model, site)
        if not covered:
            raise PlanInvalid(
                f"Site {site!r} is no convolution or linear layer of this model; its weights "
                "cannot be decided about"
            )
        chosen |= dict.fromkeys(covered, decision)
    ends_of_model = {order[0], called[-1] if called else order[-1]} if order else set()
    result: dict[str, D] = {}
    for names in _holders(modules, order):
        greatest = float(modules[names[0]].weight.detach().abs().max())
        own = [(name, chosen[name]) for name in names if name in chosen]
        if own:
            decision = own[0][1]
            for name, other in own:
                if other != decision:
                    raise PlanInvalid(
                        f"Layers {own[0][0]!r} and {name!r} have one weight and two decisions, "
                        f"{decision} and {other}"
                    )
        elif MODEL_SITE in decisions and modules[names[0]].weight.numel() >= MIN_WEIGHTS:
            decision = decisions[MODEL_SITE] if ends_of_model.isdisjoint(names) else ends
        else:
            continue
        if not greatest <= MAX_HALF:
            raise PlanInvalid(
                f"Layer {names[0]!r} has a weight of magnitude {greatest:g}; {MAX_HALF:g} is the "
                "greatest that a codebook holds"
            )
        result[names[0]] = decision
    return result


def weight_layer(model: nn.Module, name: str) -> WeightLayer:
    """Return a layer of a model by its dotted path.

    Raises:
        PlanInvalid: There is no such layer, or it is no convolution or linear layer.
    """
    layer = dict(model.named_modules()).get(name)
    if not isinstance(layer, WeightLayer):
        raise PlanInvalid(f"Layer {name!r} is no convolution or linear layer of this model")
    return layer


def why_not(site: Site, costs: CostTable) -> str | None:
    """Return why no decision about stored weights may attach to `site`; None if one may."""
    if site.kind not in ("layer", "model"):
        return f"site {site.name!r} is no layer with weights"
    if site.kind == "layer" and site.params < MIN_WEIGHTS:
        return f"layer {site.name!r} has {site.params} weights; {MIN_WEIGHTS} make it worth while"
    return site.frozen


def half(values: Tensor) -> Tensor:
    """Return the float32 numbers nearest to `values` that float16 can hold."""
    return values.clamp(-MAX_HALF, MAX_HALF).to(torch.float16).to(torch.float32)


def snr_db(before: Tensor, after: Tensor) -> float:
    """Return the power of a signal over that of its error, in decibels, at most `MAX_SNR_DB`.

    >>> snr_db(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    20.0
    """
    signal = float(before.detach().double().square().sum())
    noise = float((before.detach().double() - after.detach().double()).square().sum())
    if noise == 0:
        return MAX_SNR_DB
    if signal == 0:
        return -MAX_SNR_DB
    return max(-MAX_SNR_DB, min(MAX_SNR_DB, 10 * math.log10(signal / noise)))


def check_untouched(
    before: nn.Module, after: nn.Module, changed: frozenset[str], primitive: str
) -> None:
    """Check that only the weights of the layers named in `changed` differ.

    Raises:
        NotCertified: Another tensor differs, or the tensors have other names.
    """
    shared = {id(weight_layer(after, name).weight) for name in changed}
    allowed = {key for key, t in after.state_dict(keep_vars=True).items() if id(t) in shared}
    then, now = before.state_dict(), after.state_dict()
    if then.keys() != now.keys():
        odd = sorted(then.keys() ^ now.keys())[0]
        raise NotCertified(f"{primitive}: tensor {odd!r} is in one of both models only")
    for key, tensor in then.items():
        if key not in allowed and not torch.equal(tensor, now[key]):
            raise NotCertified(f"{primitive}: tensor {key!r} changed; no decision covers it")


def check_snr(name: str, before: Tensor, after: Tensor, recorded_db: float) -> None:
    """Check that a layer's weights are as near to the former ones as was recorded.

    Raises:
        NotCertified: They are not.
    """
    found = snr_db(before, after)
    if abs(found - recorded_db) > SNR_TOLERANCE_DB:
        raise NotCertified(
            f"Layer {name!r}: signal to noise of the weights is {found:.2f} dB; "
            f"{recorded_db:.2f} dB was recorded"
        )


def _holders(modules: Mapping[str, WeightLayer], order: Sequence[str]) -> list[list[str]]:
    """Return the layers of every weight in the model's order, weights in forward order."""
    by_weight: dict[int, list[str]] = {}
    for name, module in modules.items():
        by_weight.setdefault(id(module.weight), []).append(name)
    found = {id(modules[name].weight): None for name in order}
    return [by_weight[weight] for weight in found]


def _layers_at(model: nn.Module, site: str) -> list[str]:
    """Return the layer of that name, or the plain layers in sequence that stand for it."""
    try:
        module = model.get_submodule(site)
    except AttributeError:
        return []
    if isinstance(module, WeightLayer):
        return [site]
    if not site or not isinstance(module, nn.Sequential):
        return []
    parts = list(module.named_children())
    # What `compression.primitives.split_layers` puts together, and nothing else.
    if not all(isinstance(part, WeightLayer | nn.Flatten | nn.Unflatten) for _, part in parts):
        return []
    return [f"{site}.{name}" for name, part in parts if isinstance(part, WeightLayer)]
