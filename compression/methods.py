"""What a job allows, and the space of plans that follows from it and a model's sites."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import get_args

from compression import choices
from compression.cost import CostTable
from compression.decisions import Factorize, Refit
from compression.errors import PlanInvalid
from compression.factors import refusal
from compression.layer_cost import LayerCost
from compression.site import MODEL_SITE, Site
from compression.space import DENSE, Knob, PlanSpace

PRIMITIVES: dict[str, str] = {
    "drop_block": "Replace residual blocks or transformer layers by the identity; "
    "the network gets shallower, which is what time per layer asks for.",
    "merge_pool": "Let a convolution take over the pool behind it by a longer stride; lossy, and "
    "fewer multiplications at full width.",
    "prune_channels": "Remove whole channels of coupled layers; "
    "the network stays dense and gets thinner.",
    "factorize": "Replace convolutions and linear layers by two or more thinner ones of low rank; "
    "fewer multiplications without losing a channel.",
    "sparsify": "Set weights to zero, anywhere or n of m in a row; smaller downloads, no speed "
    "where the runtime has no sparse kernels.",
    "quantize_weights": "Store weights in 2 to 8 bits and compute with them as floats; smaller "
    "downloads, no speed.",
    "share": "Let weights or short vectors of weights take values of a small codebook; smaller "
    "downloads, no speed.",
    "quantize": "Static INT8 post-training quantization of the deployed graph, BatchNorm folded, "
    "weights per channel; layers that suffer stay in float.",
}
"""Name and one sentence of every primitive a job may allow."""

SELECTOR_NAMES: dict[str, str] = {
    "l1": "Sum of absolute weights of a channel over its group (Li et al., 2017).",
    "l2": "Euclidean norm of a channel's weights over its group.",
    "bn_scale": "Magnitude of the BatchNorm scale of a channel (Liu et al., 2017).",
    "fpgm": "Distance of a channel's filters from all others of its group (He et al., 2019).",
    "fisher": "Fisher information of a gate on the channel (Theis et al., 2018).",
    "apoz": "Share of a channel's activations that are not zero (Hu et al., 2016).",
    "thinet": "Greedy reconstruction of the next layer's outputs (Luo et al., 2017).",
    "lasso": "Order of entry into a sparse fit of the next layer's outputs (He et al., 2017).",
    "dcp": "Gradient of reconstruction and class discrimination (Zhuang et al., 2018).",
    "random": "A seeded random order: what every criterion must beat.",
    "taylor": "Squared first-order effect of a removal on the loss (Molchanov et al., 2019).",
}

MAX_LEVELS = 16
"""Most choices of keep_channels per site: finer grids cost search and buy nothing measurable."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Methods:
    """Which primitives may be used, and how.

    Attributes:
        allow: Names in `PRIMITIVES`.
        freeze: Sites or layers that must stay untouched.
        channel_multiple: Kept channels are multiples of this; runtimes are slow on odd widths.
            A site narrower than two multiples falls back to the largest power of two that leaves
            it a choice.
        min_keep_ratio: Least share of a site's channels that is kept, in (0, 1].
        selectors: Channel criteria the search may choose from, in `SELECTOR_NAMES`.
        factorize: Ways to factorize a layer, as in `compression.choices`; each layer is offered
            those that fit it.
        sparsify: Ways to sparsify the model.
        quantize_weights: Ways to store the model's weights in few bits.
        share: Codebooks for the model's weights.
        refit: What is done to the layers that consume pruned channels, in every plan:
            `least_squares` fits them to their former outputs on calibration images.
    """

    allow: tuple[str, ...] = ("prune_channels", "quantize")
    freeze: tuple[str, ...] = ()
    channel_multiple: int = 8
    min_keep_ratio: float = 0.125
    selectors: tuple[str, ...] = ("l2",)
    factorize: tuple[str, ...] = ("svd 0.5", "svd 0.25", "spatial 0.5", "spatial 0.25")
    sparsify: tuple[str, ...] = ("0.5", "0.7", "0.8", "0.9")
    quantize_weights: tuple[str, ...] = ("4", "3")
    share: tuple[str, ...] = ("64", "16", "256 9")
    refit: Refit = "none"

    def __post_init__(self) -> None:
        for name, known, values in (
            ("allow", PRIMITIVES, self.allow),
            ("selectors", SELECTOR_NAMES, self.selectors),
        ):
            unknown = [value for value in values if value not in known]
            if unknown or not values:
                raise PlanInvalid(
                    f"methods.{name} is {list(values)}; choose from {', '.join(known)}"
                )
        for name in ("factorize", "sparsify", "quantize_weights", "share"):
            texts: tuple[str, ...] = getattr(self, name)
            if not texts or len(set(texts)) != len(texts):
                raise PlanInvalid(f"methods.{name} is {list(texts)}: it is empty or repeats")
            for text in texts:
                choices.parse(name, text)
        if self.refit not in get_args(Refit):
            raise PlanInvalid(
                f"methods.refit is {self.refit!r}; choose from {', '.join(get_args(Refit))}"
            )
        if not 1 <= self.channel_multiple <= 64:
            raise PlanInvalid(f"channel_multiple is {self.channel_multiple}; 1..64 is allowed")
        if not 0.0 < self.min_keep_ratio <= 1.0:
            raise PlanInvalid(f"min_keep_ratio is {self.min_keep_ratio}; it must be in (0, 1]")


def keep_choices(channels: int, methods: Methods) -> tuple[int, ...]:
    """Return the admissible keep counts of a site, ascending; the last is `channels`."""
    multiple = methods.channel_multiple
    while multiple > 1 and channels < 2 * multiple:
        multiple //= 2
    least = multiple * max(1, math.ceil(methods.min_keep_ratio * channels / multiple))
    grid = range(least, channels, multiple)
    stride = max(1, math.ceil(len(grid) / (MAX_LEVELS - 1)))
    return (*grid[::stride], channels)


def resolve_space(
    sites: Sequence[Site], methods: Methods, costs: CostTable | None = None
) -> PlanSpace:
    """Return the space a job searches.

    Args:
        sites: Of the model.
        methods: What the job allows.
        costs: Of the same model; without them no layer is offered a factorization.

    Raises:
        PlanInvalid: A frozen name matches nothing, or nothing is left to search.
    """
    known = {name for site in sites for name in (site.name, *site.members)}
    missing = sorted(set(methods.freeze) - known)
    if missing:
        raise PlanInvalid(f"methods.freeze names {missing}, which the model does not have")
    frozen = set(methods.freeze)
    open_sites = [s for s in sites if not (s.frozen or frozen & {s.name, *s.members})]
    knobs: list[Knob] = []
    if "prune_channels" in methods.allow:
        for site in open_sites:
            if site.kind != "channels":
                continue
            keeps = keep_choices(site.channels, methods)
            if len(keeps) > 1:
                knobs.append(
                    Knob(site=site.name, field="keep_channels", choices=keeps, ordered=True)
                )
        if knobs and methods.selectors != ("l2",):
            knobs.append(
                Knob(site=MODEL_SITE, field="selector", choices=methods.selectors, ordered=False)
            )
    if "drop_block" in methods.allow:
        knobs += [_knob(s.name, "drop_block", ("drop",)) for s in open_sites if s.kind == "block"]
    if "merge_pool" in methods.allow and costs is not None:
        pooled = {row.name for row in costs.layers if row.grid_pooled}
        layers = [s.name for s in open_sites if s.kind == "layer" and s.name in pooled]
        knobs += [_knob(name, "merge_pool", ("merge",)) for name in layers]
    if "factorize" in methods.allow and costs is not None:
        rows = {row.name: row for row in costs.layers}
        for site in open_sites:
            if site.kind == "layer":
                fitting = [t for t in methods.factorize if _fits(t, rows[site.name])]
                knobs += [_knob(site.name, "factorize", fitting)] if fitting else []
    if any(site.kind == "model" for site in open_sites):
        for kind in ("sparsify", "quantize_weights", "share"):
            if kind in methods.allow:
                knobs.append(_knob(MODEL_SITE, kind, getattr(methods, kind)))
        if "quantize" in methods.allow:
            knobs.append(
                Knob(site=MODEL_SITE, field="precision", choices=(DENSE, "int8"), ordered=False)
            )
    if not knobs:
        raise PlanInvalid("Nothing is left to search: every site is frozen or too narrow")
    return PlanSpace(tuple(knobs), methods.refit)


def _knob(site: str, kind: str, texts: Sequence[str]) -> Knob:
    return Knob(site=site, field=kind, choices=(DENSE, *texts), ordered=False)


def _fits(text: str, row: LayerCost) -> bool:
    decision = choices.parse("factorize", text)
    if not isinstance(decision, Factorize) or refusal(row, decision) is not None:
        return False
    # On a window of one element these two are what svd is.
    return not (row.kernel == 1 and decision.method in ("channel", "spatial"))
