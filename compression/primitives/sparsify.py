"""Unstructured and N:M sparsity: single weights are set to zero, shapes stay.

Zeros make the coded file smaller. No stock CPU runtime computes faster with them, and the cost
table says so: MACs and parameters stay what they were.

Reference:
    Han et al. (2015), "Learning both Weights and Connections for Efficient Neural Networks",
    https://arxiv.org/abs/1506.02626 (magnitude); Mishra et al. (2021), "Accelerating Sparse Deep
    Neural Networks", https://arxiv.org/abs/2104.08378 (N:M along the reduction axis); for `obs`
    see `compression.primitives.optimal_brain_surgeon`.

Deviations:
    A pattern runs along the flattened reduction axis Ci/g * kh * kw in memory order; what is left
    of a row behind its last whole group stays dense.

Without training, CIFAR ResNet-20 (91.6 %) keeps 72 % of 2000 test images right at 70 % zeros under
one global threshold, 65 % with equal shares per layer, and 85 % by `obs`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from compression import choices
from compression.cost import CostTable, PlanCost
from compression.counting import count_calls
from compression.decisions import Decision, Sparsify
from compression.errors import NotCertified, PlanInvalid
from compression.methods import PRIMITIVES, Methods
from compression.plan import Plan
from compression.primitives.context import ModuleContext
from compression.primitives.optimal_brain_surgeon import hessians, operate
from compression.primitives.primitive import Constraints, Description, Need
from compression.recover.hook import Hook
from compression.recover.masks import (
    KeepMasks,
    Masks,
    apply_masks,
    global_masks,
    n_of_m_mask,
    planned_zeros,
)
from compression.site import MODEL_SITE, Site


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sparsity:
    """Which weights were set to zero, and by what decision.

    Attributes:
        masks: By layer, True where a weight stayed.
        decisions: By site.
        layers: The layers of each site's decision.
    """

    masks: Masks
    decisions: Mapping[str, Sparsify]
    layers: Mapping[str, tuple[str, ...]]

    def zeros(self) -> dict[str, int]:
        """Return the zeros of every layer, as recipes that choose masks themselves take them."""
        return {layer: int((~mask).sum()) for layer, mask in self.masks.items()}

    def to_json(self) -> dict[str, Any]:
        """Return zeros, their share and the pattern of every layer; masks are in the weights."""
        zeros = self.zeros()
        return {
            layer: {
                "zeros": zeros[layer],
                "sparsity": zeros[layer] / self.masks[layer].numel(),
                "pattern": self.decisions[site].pattern,
            }
            for site, layers in self.layers.items()
            for layer in layers
        }

    def invariants(self) -> Sequence[Hook]:
        """Return a hook that keeps the zeros."""
        return [KeepMasks(self.masks)]


class Sparsification:
    """Primitive `sparsify`."""

    def describe(self) -> Description:
        """Return what this primitive is."""
        return Description(
            name=Sparsify.kind,
            summary=PRIMITIVES[Sparsify.kind],
            site_kind="layer",
            acts_on="module",
            deterministic=True,
        )

    def applicable(self, site: Site, costs: CostTable) -> str | None:
        """Return why no weights of `site` can be set to zero; None if they can."""
        if site.frozen is not None:
            return site.frozen
        if site.kind == "model":
            layers = sum(layer.op in ("conv", "linear") for layer in costs.layers)
            if layers < 3:
                return f"the model has {layers} layers; the first and the last stay dense"
            return None
        if site.kind != "layer":
            return f"site {site.name!r} is no layer with weights of its own"
        return None

    def space(self, site: Site, methods: Methods) -> tuple[Decision | None, ...]:
        """Return the job's options, most zeros first, then None."""
        found = (choices.parse(Sparsify.kind, text) for text in methods.sparsify)
        options = [decision for decision in found if isinstance(decision, Sparsify)]
        return (*sorted(options, key=lambda d: -d.sparsity), None)

    def needs(self, decision: Decision) -> frozenset[Need]:
        """Return calibration inputs for `obs`, nothing for magnitudes."""
        obs = isinstance(decision, Sparsify) and decision.criterion == "obs"
        return frozenset({"calibration"}) if obs else frozenset()

    def estimate(self, site: Site, decision: Decision, costs: CostTable) -> PlanCost:
        """Return the exact costs of the model with this decision alone."""
        return costs.cost(Plan.of({site.name: [decision]}))

    def apply(
        self, subject: nn.Module, decisions: Mapping[str, Decision], context: ModuleContext
    ) -> tuple[nn.Module, Sparsity]:
        """Return a copy of `subject` with zeros, and which weights they are.

        At a layer that was factorized before, the decision is about its parts. The model's site
        leaves out the first and the last layer that run, and layers with a decision of their own.
        By magnitude and without a pattern a site has one threshold for all its layers; by `obs`
        or with a pattern every layer gets the same share. A shared weight is decided
        once.

        Raises:
            PlanInvalid: A site is unknown or has no such weights, rows are shorter than the
                pattern, one shared weight gets two decisions, or calibration inputs are missing.
        """
        chosen = {site: d for site, d in decisions.items() if isinstance(d, Sparsify)}
        model = copy.deepcopy(subject)
        layers = _layers_by_site(model, chosen, context.input_shape)
        weights = {
            name: model.get_submodule(name).get_parameter("weight").detach()
            for names in layers.values()
            for name in names
        }
        masks: dict[str, Tensor] = {}
        for site, decision in chosen.items():
            if decision.criterion == "magnitude":
                scores = {name: weights[name].abs() for name in layers[site]}
                masks |= _magnitude_masks(scores, decision)
        apply_masks(model, masks)
        surgeries = {site: d for site, d in chosen.items() if d.criterion == "obs"}
        masks |= _operate_all(subject, model, surgeries, layers, context)
        return model, Sparsity(masks=masks, decisions=chosen, layers=layers)

    def replay(
        self, subject: nn.Module, record: Mapping[str, Any], context: ModuleContext
    ) -> nn.Module:
        """Return a copy of `subject`: zeros change no shape, and come with the weights."""
        return copy.deepcopy(subject)

    def verify(self, before: nn.Module, after: nn.Module, record: Sparsity) -> None:
        """Check that the zeros are those of the record, as many as planned, and nothing else moved.

        Raises:
            NotCertified: They are not; the message names the layer or the site.
        """
        for site, decision in record.decisions.items():
            for layer in record.layers[site]:
                _verify_layer(layer, decision, before, after, record.masks[layer])
            _verify_share(site, decision, [record.masks[name] for name in record.layers[site]])
        allowed = {f"{layer}.weight" for layer in record.masks}
        tied = {after.get_parameter(name).data_ptr() for name in allowed}
        old, new = before.state_dict(), after.state_dict()
        for name, tensor in new.items():
            known = name in allowed or tensor.data_ptr() in tied
            if not known and not torch.equal(tensor, old[name]):
                raise NotCertified(f"{name!r} changed although no decision is about it")

    def constraints(self) -> Constraints:
        """Return that zeros are set before weights get few values, and must be kept."""
        return Constraints(
            before=("quantize_weights", "share", "fold_batchnorm", "quantize"),
            preserves=("masks",),
        )


def _is_eligible(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd | nn.Linear) and not isinstance(module, _ConvTransposeNd)


def _weight(module: nn.Module) -> nn.Parameter:
    return module.get_parameter("weight")


def _layers_by_site(
    model: nn.Module, decisions: Mapping[str, Sparsify], input_shape: tuple[int, int, int]
) -> dict[str, tuple[str, ...]]:
    """Return the layers that each site's decision is about, a shared weight once."""
    modules = dict(model.named_modules())
    found: dict[str, tuple[str, ...]] = {}
    for site, decision in decisions.items():
        if site == MODEL_SITE:
            continue
        if site not in modules:
            raise PlanInvalid(f"Site {site!r} is unknown; sparsify has no layer there")
        prefix = f"{site}." if site else ""
        parts = tuple(
            name
            for name, module in modules.items()
            if (name == site or name.startswith(prefix)) and _is_eligible(module)
        )
        for name in parts:
            _check_pattern(name, modules[name], decision)
        if not parts:
            raise PlanInvalid(
                f"Site {site!r} is a {type(modules[site]).__name__}; sparsify works on "
                "convolutions and linear layers"
            )
        found[site] = parts
    own = {id(_weight(modules[name])) for names in found.values() for name in names}
    if MODEL_SITE in decisions:
        found[MODEL_SITE] = _all_layers(model, input_shape, decisions[MODEL_SITE], own)
    return _once(modules, found, decisions)


def _all_layers(
    model: nn.Module, input_shape: tuple[int, int, int], decision: Sparsify, taken: set[int]
) -> tuple[str, ...]:
    """Return the layers of a decision at the model's site."""
    modes = {module: module.training for module in model.modules()}
    calls = count_calls(model.eval(), input_shape)
    for module, training in modes.items():
        module.training = training
    modules = dict(model.named_modules())
    order = [c.name for c in calls if isinstance(modules.get(c.name), _ConvNd | nn.Linear)]
    ends = {id(_weight(modules[name])) for name in (order[:1] + order[-1:])}
    names = tuple(
        name
        for name in order[1:-1]
        if _is_eligible(modules[name])
        and id(_weight(modules[name])) not in ends | taken
        and _fits(modules[name], decision)
    )
    if not names:
        raise PlanInvalid(
            f"Site {MODEL_SITE!r}: of {len(order)} layers none is left for {decision.pattern!r} "
            "zeros; the first, the last and those decided on their own stay out"
        )
    return names


def _fits(module: nn.Module, decision: Sparsify) -> bool:
    if decision.pattern == "unstructured":
        return True
    weight = _weight(module)
    return weight.numel() // weight.shape[0] >= decision.n_of_m()[1]


def _check_pattern(name: str, module: nn.Module, decision: Sparsify) -> None:
    if not _fits(module, decision):
        weight = _weight(module)
        raise PlanInvalid(
            f"Layer {name!r} has rows of {weight.numel() // weight.shape[0]} weights; "
            f"pattern {decision.pattern!r} needs {decision.n_of_m()[1]}"
        )


def _once(
    modules: Mapping[str, nn.Module],
    layers: Mapping[str, tuple[str, ...]],
    decisions: Mapping[str, Sparsify],
) -> dict[str, tuple[str, ...]]:
    """Leave each weight to the first layer that has it."""
    owners: dict[int, tuple[str, str]] = {}
    result: dict[str, tuple[str, ...]] = {}
    for site, names in layers.items():
        mine = []
        for name in names:
            owner = owners.setdefault(id(_weight(modules[name])), (site, name))
            if owner == (site, name):
                mine.append(name)
            elif decisions[owner[0]] != decisions[site]:
                raise PlanInvalid(
                    f"Layers {owner[1]!r} and {name!r} have one weight and two decisions, "
                    f"at sites {owner[0]!r} and {site!r}"
                )
        result[site] = tuple(mine)
    return result


def _magnitude_masks(scores: Mapping[str, Tensor], decision: Sparsify) -> dict[str, Tensor]:
    if decision.pattern != "unstructured":
        n, m = decision.n_of_m()
        return {name: n_of_m_mask(score, n, m) for name, score in scores.items()}
    if not scores:
        return {}
    total = sum(score.numel() for score in scores.values())
    # One layer is the case of many with one threshold.
    return global_masks(scores, planned_zeros(total, decision.sparsity))


def _operate_all(
    subject: nn.Module,
    model: nn.Module,
    surgeries: Mapping[str, Sparsify],
    layers: Mapping[str, tuple[str, ...]],
    context: ModuleContext,
) -> dict[str, Tensor]:
    """Prune the layers of `obs` decisions in place, with inputs of the network as it came."""
    if not surgeries:
        return {}
    if not context.calibration:
        raise PlanInvalid(
            f"Site {next(iter(surgeries))!r}: sparsify by 'obs' needs calibration inputs; "
            "there are none"
        )
    by_layer = {name: d for site, d in surgeries.items() for name in layers[site]}
    observed = copy.deepcopy(subject).eval()
    seen = hessians(observed, tuple(by_layer), context.calibration, context.seed)
    return {
        name: operate(
            model.get_submodule(name),
            seen[name],
            sparsity=decision.sparsity,
            n_of_m=None if decision.pattern == "unstructured" else decision.n_of_m(),
        )
        for name, decision in by_layer.items()
    }


def _verify_layer(
    layer: str, decision: Sparsify, before: nn.Module, after: nn.Module, mask: Tensor
) -> None:
    old, new = (m.get_submodule(layer).get_parameter("weight").detach() for m in (before, after))
    if mask.shape != new.shape:
        raise NotCertified(
            f"Layer {layer!r} has a weight of {tuple(new.shape)}; its mask is {tuple(mask.shape)}"
        )
    stray = int(new[~mask].count_nonzero())
    if stray:
        raise NotCertified(f"Layer {layer!r} has {stray} weights that its mask sets to zero")
    if not bool(torch.isfinite(new).all()):
        raise NotCertified(f"Layer {layer!r} has weights that are not finite")
    if decision.criterion == "magnitude" and not torch.equal(new[mask], old[mask]):
        raise NotCertified(f"Layer {layer!r}: weights that its mask keeps have changed")
    if decision.pattern != "unstructured":
        n, m = decision.n_of_m()
        rows = mask.reshape(len(mask), -1)
        whole = rows.shape[1] // m * m
        most = int(rows[:, :whole].reshape(-1, m).sum(1).max())
        if most > n:
            raise NotCertified(f"Layer {layer!r} keeps {most} of {m} in a row; {n} are allowed")


def _verify_share(site: str, decision: Sparsify, masks: Sequence[Tensor]) -> None:
    if decision.pattern != "unstructured":
        return
    zeros = sum(int((~mask).sum()) for mask in masks)
    sizes = [mask.numel() for mask in masks]
    parts = [sum(sizes)] if decision.criterion == "magnitude" else sizes
    planned = sum(planned_zeros(size, decision.sparsity) for size in parts if size)
    if zeros < planned:
        raise NotCertified(
            f"Site {site!r} has {zeros} zeros among {sum(sizes)} weights; the plan says {planned}"
        )
