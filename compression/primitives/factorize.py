"""Low-rank factorization: put a chain of thinner ordinary layers in place of one.

Reference:
    Per method in `compression.factors` and `compression.primitives.decompositions`.

Deviations:
    Ranks come from the plan as a share of the break-even rank, not from an energy threshold.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compression.cost import CostTable, PlanCost
from compression.decisions import Decision, Factorize, FactorizeMethod
from compression.errors import NotCertified, PlanInvalid
from compression.factors import (
    MIN_BREAK_EVEN,
    break_even_rank,
    expand,
    ranks,
    refusal,
    structure_refusal,
    window_of,
)
from compression.layer_cost import LayerCost
from compression.methods import PRIMITIVES, Methods
from compression.plan import Plan
from compression.primitives.context import ModuleContext
from compression.primitives.decompositions import compose, decompose, relative_error
from compression.primitives.input_moments import input_moments
from compression.primitives.primitive import Constraints, Description, Need
from compression.primitives.split_layers import (
    Splittable,
    chain,
    factor_weights,
    fill,
    weight_of,
    window,
)
from compression.recover.hook import Hook
from compression.site import MODEL_SITE, Site

UNIVERSAL: tuple[FactorizeMethod, ...] = ("spatial", "channel")
"""Methods that suit convolutions and, as a plain SVD, linear layers: those that `space` offers."""

RATIOS = (0.25, 0.5, 0.75)
"""Shares of the break-even rank that `space` offers."""

_ERROR_TOLERANCE = 1e-4
_PROBE_SEED = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How one layer was factorized.

    Attributes:
        method: Which chain stands in for it.
        ranks: r, or r1 and r2.
        whiten: Whether its factors were fitted to calibration inputs.
        error: Frobenius norm of the change of its weight, relative to that of the weight.
    """

    method: FactorizeMethod
    ranks: tuple[int, ...]
    whiten: bool
    error: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Factorization:
    """What a factorization left.

    Attributes:
        layers: By name of the layer that was replaced, sorted.
        input_shape: C, H, W of one input.
    """

    layers: Mapping[str, Split]
    input_shape: tuple[int, int, int]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data: `{"layers": {name: {"method", "ranks", "whiten"}}}`."""
        return {
            "layers": {
                name: {
                    "method": split.method,
                    "ranks": list(split.ranks),
                    "whiten": split.whiten,
                }
                for name, split in self.layers.items()
            }
        }

    def invariants(self) -> Sequence[Hook]:
        """Return none: the ranks are widths of layers, which no training changes."""
        return ()


class LowRank:
    """Primitive `factorize`."""

    def describe(self) -> Description:
        """Return what this primitive is."""
        return Description(
            name=Factorize.kind,
            summary=PRIMITIVES[Factorize.kind],
            site_kind="layer",
            acts_on="module",
            deterministic=True,
        )

    def applicable(self, site: Site, costs: CostTable) -> str | None:
        """Return why the layer (no layer, for the model) cannot be factorized; None if it can."""
        if site.frozen:
            return site.frozen
        if site.kind == "model":
            offers = [Factorize(method=method, rank_ratio=0.5) for method in UNIVERSAL]
            if any(expand({MODEL_SITE: offer}, costs.layers) for offer in offers):
                return None
            return "no layer but the first and the last can be factorized"
        if site.kind != "layer":
            return f"site {site.name!r} is no single layer"
        layer = next((row for row in costs.layers if row.name == site.name), None)
        if layer is None:
            return f"layer {site.name!r} has no costs; it is not computed with"
        reason = structure_refusal(layer)
        if reason:
            return reason
        for method in UNIVERSAL:
            even = break_even_rank(method, layer.in_channels, layer.out_channels, window_of(layer))
            if even < MIN_BREAK_EVEN:
                return f"its break-even rank is {even:.2f}; {MIN_BREAK_EVEN:g} is required"
        return None

    def space(self, site: Site, methods: Methods) -> tuple[Decision | None, ...]:
        """Return the methods that suit every applicable layer at three ranks each, then None."""
        return (
            *(
                Factorize(method=method, rank_ratio=ratio)
                for ratio in RATIOS
                for method in UNIVERSAL
            ),
            None,
        )

    def needs(self, decision: Decision) -> frozenset[Need]:
        """Return unlabelled calibration inputs if the decision whitens, else nothing."""
        whiten = isinstance(decision, Factorize) and decision.whiten
        return frozenset({"calibration"}) if whiten else frozenset()

    def estimate(self, site: Site, decision: Decision, costs: CostTable) -> PlanCost:
        """Return the exact costs of the model with this decision alone."""
        return costs.cost(Plan.of({site.name: [decision]}))

    def apply(
        self, subject: nn.Module, decisions: Mapping[str, Decision], context: ModuleContext
    ) -> tuple[nn.Module, Factorization]:
        """Return a copy of `subject` with the layers replaced by chains.

        Raises:
            PlanInvalid: A site is no layer, its layer cannot be factorized like this or shares
                its weight, or calibration inputs are needed and there are none.
        """
        rows = {row.name: row for row in context.survey.costs.layers}
        own = {site: d for site, d in decisions.items() if isinstance(d, Factorize)}
        wanted = expand(own, rows.values())
        holders = _holders(subject)
        layers: dict[str, Splittable] = {}
        for name in sorted(wanted):
            if name not in own and not _has(subject, name):
                continue
            layers[name] = _layer(subject, name, wanted[name], rows.get(name), holders)
        whitened = [name for name in layers if wanted[name].whiten]
        if whitened and not context.calibration:
            raise PlanInvalid(
                f"Layer {whitened[0]!r}: factorize with whiten needs calibration inputs; "
                "there are none"
            )
        generator = torch.Generator().manual_seed(context.seed)
        moments = (
            input_moments(subject, whitened, context.calibration, generator) if whitened else {}
        )
        made = copy.deepcopy(subject)
        splits: dict[str, Split] = {}
        for name, layer in layers.items():
            decision = wanted[name]
            replacement, splits[name] = _split(layer, decision, moments.get(name), generator)
            made.set_submodule(name, replacement)
        return made, Factorization(layers=splits, input_shape=context.input_shape)

    def replay(
        self, subject: nn.Module, record: Mapping[str, Any], context: ModuleContext
    ) -> nn.Module:
        """Return a copy of `subject` with chains of the recorded ranks, their weights zero.

        Raises:
            PlanInvalid: A recorded layer is no convolution or linear layer of `subject`.
        """
        made = copy.deepcopy(subject)
        for name, split in record["layers"].items():
            layer = made.get_submodule(name) if _has(made, name) else None
            if not isinstance(layer, nn.Conv2d | nn.Linear):
                raise PlanInvalid(f"Layer {name!r} is no convolution or linear layer of the model")
            made.set_submodule(name, chain(layer, split["method"], split["ranks"]))
        return made

    def verify(self, before: nn.Module, after: nn.Module, record: Factorization) -> None:
        """Check every chain against the layer it replaced, and that outputs keep their shape.

        The weight that the factors make differs from the layer's by the recorded error.

        Raises:
            NotCertified: One of these does not hold.
        """
        for name, split in record.layers.items():
            layer, made = before.get_submodule(name), after.get_submodule(name)
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            if not isinstance(made, nn.Sequential):
                raise NotCertified(f"Layer {name!r} is a {type(made).__name__}, no chain of layers")
            expected = [
                tuple(p.shape) for p in chain(layer, split.method, split.ranks).parameters()
            ]
            if [tuple(p.shape) for p in made.parameters()] != expected:
                raise NotCertified(f"Layer {name!r}: its chain has not the ranks {split.ranks}")
            error = _error(layer, made, split.method)
            if not abs(error - split.error) <= _ERROR_TOLERANCE:
                raise NotCertified(
                    f"Layer {name!r}: its factors miss the weight by {error:.6f} of its norm; "
                    f"{split.error:.6f} was recorded, {_ERROR_TOLERANCE:g} may lie between"
                )
            biases = [p for key, p in made.named_parameters() if key.endswith("bias")]
            kept = layer.bias is None or torch.equal(biases[-1], layer.bias)
            if not kept or len(biases) != (layer.bias is not None):
                raise NotCertified(f"Layer {name!r}: its bias is not that of the layer before")
        probe = torch.randn(
            1, *record.input_shape, generator=torch.Generator().manual_seed(_PROBE_SEED)
        )
        with torch.no_grad():
            expected_shape = copy.deepcopy(before).eval()(probe).shape
            try:
                found: Any = copy.deepcopy(after).eval()(probe)
            except (RuntimeError, AttributeError, ValueError, TypeError) as reason:
                raise NotCertified(
                    f"Layers {sorted(record.layers)}: the network does not run with their chains: "
                    f"{reason}"
                ) from reason
        if found.shape != expected_shape or not bool(torch.isfinite(found).all()):
            raise NotCertified(
                f"Layers {sorted(record.layers)}: outputs are {tuple(found.shape)}, finite: "
                f"{bool(torch.isfinite(found).all())}; before they were {tuple(expected_shape)}"
            )

    def constraints(self) -> Constraints:
        """Return that zeros, codebooks and integers are made of the factors."""
        return Constraints(
            before=("sparsify", "quantize_weights", "share", "fold_batchnorm", "quantize", "encode")
        )


def _has(model: nn.Module, name: str) -> bool:
    return any(known == name for known, _ in model.named_modules(remove_duplicate=False))


def _holders(model: nn.Module) -> dict[int, list[str]]:
    """Return the names of the modules that hold each parameter, a module's every name."""
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(name)
    return holders


def _layer(
    model: nn.Module,
    name: str,
    decision: Factorize,
    row: LayerCost | None,
    holders: Mapping[int, Sequence[str]],
) -> Splittable:
    if row is None or not _has(model, name):
        raise PlanInvalid(f"Site {name!r} is no layer of this model; it cannot be factorized")
    reason = refusal(row, decision)
    layer = model.get_submodule(name)
    if reason is None and type(layer) not in (nn.Conv2d, nn.Linear):
        reason = f"it is a {type(layer).__name__}, no plain convolution or linear layer"
    if reason is None:
        shared = {other for p in layer.parameters() for other in holders[id(p)] if other != name}
        if shared:
            reason = f"it shares its parameters with {sorted(shared)[0]!r}"
    if reason:
        raise PlanInvalid(f"Layer {name!r} cannot be factorized by {decision.method}: {reason}")
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer


def _split(
    layer: Splittable, decision: Factorize, moment: Tensor | None, generator: torch.Generator
) -> tuple[nn.Sequential, Split]:
    weight = weight_of(layer)
    n_out, n_in = weight.shape[:2]
    chosen = ranks(decision, n_in, n_out, window(layer))
    made = chain(layer, decision.method, chosen)
    fill(
        made,
        decompose(decision.method, weight, chosen, moment=moment, generator=generator),
    )
    error = _error(layer, made, decision.method)
    return made, Split(method=decision.method, ranks=chosen, whiten=decision.whiten, error=error)


def _error(layer: Splittable, made: nn.Sequential, method: FactorizeMethod) -> float:
    weight = weight_of(layer)
    factors = [
        factor if factor.dim() == 4 else factor.reshape(*factor.shape[:2], 1, 1)
        for factor in factor_weights(made)
    ]
    return relative_error(weight, compose(method, factors, weight.shape))
