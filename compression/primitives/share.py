"""Weight sharing: weights, or blocks of neighbouring weights, take the values of a codebook.

The module stays what it was, its weights just take few distinct values; the coder of `.ppz` files
finds them. Scalar codebooks are in `compression.primitives.codebooks` (Han et al., 2016), vector
codebooks in `compression.primitives.product_codebooks` (Stock et al., 2020).

With calibration inputs, vectors are fitted to the outputs of each layer, in forward order, on the
inputs that the layers before it give once they are compressed. All this takes one forward pass:
every layer is compressed when its inputs arrive.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compression import choices
from compression.cost import CostTable, PlanCost
from compression.decisions import Decision, Share, Sparsify
from compression.errors import NotCertified, PlanInvalid
from compression.methods import PRIMITIVES, Methods
from compression.plan import Plan
from compression.primitives.codebooks import Codebook, clamp_entries, cluster_scalars
from compression.primitives.context import ModuleContext
from compression.primitives.primitive import Constraints, Description, Need
from compression.primitives.product_codebooks import (
    block_size,
    blocks_by_position,
    cluster_blocks,
    row_major,
    second_moments,
)
from compression.primitives.weight_layers import (
    WeightLayer,
    check_snr,
    check_untouched,
    decided_layers,
    half,
    snr_db,
    weight_layer,
    why_not,
)
from compression.recover.codebook_hold import HoldCodebooks, SharedWeight
from compression.recover.hook import Hook
from compression.site import MODEL_SITE, Site

ENDS = Share(entries=256)
"""Of the first and the last layer where the whole model is decided: they are few and matter."""

CALIBRATION_IMAGES = 128
"""More change the second moments of a block's few inputs by less than their ridge."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SharedLayer:
    """What sharing did to one layer.

    Attributes:
        shared: Which block has which entry.
        entries: Greatest number of distinct blocks.
        snr_db: Signal to noise of the weights; `weight_layers.MAX_SNR_DB` where they are equal.
        weighted: Whether the layer's inputs had a say.
    """

    shared: SharedWeight
    entries: int
    snr_db: float
    weighted: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sharing:
    """The trace of one sharing: layers by name, in forward order."""

    layers: Mapping[str, SharedLayer]

    def to_json(self) -> dict[str, Any]:
        """Return facts about every layer; the structure of the model did not change."""
        return {
            "layers": {
                name: {
                    "entries": layer.entries,
                    "block": layer.shared.block,
                    "snr_db": layer.snr_db,
                    "weighted": layer.weighted,
                }
                for name, layer in self.layers.items()
            }
        }

    def invariants(self) -> Sequence[Hook]:
        """Return the hook that trains entries instead of weights."""
        return (HoldCodebooks({name: layer.shared for name, layer in self.layers.items()}),)


class WeightSharing:
    """Primitive `share`."""

    def describe(self) -> Description:
        """Return what this primitive is."""
        return Description(
            name=Share.kind,
            summary=PRIMITIVES[Share.kind],
            site_kind="layer",
            acts_on="module",
            deterministic=True,
        )

    def applicable(self, site: Site, costs: CostTable) -> str | None:
        """Return why weights of `site` cannot be shared; None if they can."""
        return why_not(site, costs)

    def space(self, site: Site, methods: Methods) -> tuple[Decision | None, ...]:
        """Return the job's codebooks, fewest bits of an index per weight first, then None."""
        found = (choices.parse(Share.kind, text) for text in methods.share)
        shares = [decision for decision in found if isinstance(decision, Share)]
        return (*sorted(shares, key=lambda d: (math.log2(d.entries) / d.block, d.block)), None)

    def needs(self, decision: Decision) -> frozenset[Need]:
        """Return nothing: calibration inputs are used where there are some."""
        return frozenset()

    def estimate(self, site: Site, decision: Decision, costs: CostTable) -> PlanCost:
        """Return the costs of the model with this decision alone."""
        return costs.cost(Plan.of({site.name: [decision]}))

    def apply(
        self, subject: nn.Module, decisions: Mapping[str, Decision], context: ModuleContext
    ) -> tuple[nn.Module, Sharing]:
        """Return a copy of `subject` with shared weights, and who shares what.

        Raises:
            PlanInvalid: A site has no weights, or weights that cannot be shared.
        """
        chosen = {site: d for site, d in decisions.items() if isinstance(d, Share)}
        layers = decided_layers(subject, chosen, context.input_shape, ends=ENDS)
        after = copy.deepcopy(subject)
        # Drawn once per layer and independent of its order: a layer's codebook is the same
        # whatever else the plan decides, but for its inputs.
        compressed: dict[str, SharedLayer] = {}

        def compress(name: str, inputs: Tensor | None) -> None:
            layer = weight_layer(after, name)
            compressed[name] = _share(layer, layers[name], inputs, context.seed)

        if context.calibration and any(d.block > 1 for d in layers.values()):
            _at_their_inputs(after, layers, compress, _sample(context.calibration))
        for name in layers:
            if name not in compressed:
                compress(name, None)
        return after, Sharing(layers={name: compressed[name] for name in layers})

    def replay(
        self, subject: nn.Module, record: Mapping[str, Any], context: ModuleContext
    ) -> nn.Module:
        """Return a copy: sharing changes no structure, and the checkpoint brings the weights."""
        for name in record["layers"]:
            weight_layer(subject, name)
        return copy.deepcopy(subject)

    def verify(self, before: nn.Module, after: nn.Module, record: Sharing) -> None:
        """Check how many values every layer takes, and how far they are from the former ones.

        Raises:
            NotCertified: There are more values than entries, one is no float16 number, a zero
                was filled in by a scalar, the error is not the recorded one, or another tensor
                changed.
        """
        check_untouched(before, after, frozenset(record.layers), Share.kind)
        for name, layer in record.layers.items():
            then, now = weight_layer(before, name).weight, weight_layer(after, name).weight
            blocks = now.detach().reshape(-1, layer.shared.block)
            distinct = len(torch.unique(blocks, dim=0))
            if distinct > layer.entries:
                raise NotCertified(
                    f"Layer {name!r}: weights take {distinct} distinct blocks of "
                    f"{layer.shared.block}; {layer.entries} are allowed"
                )
            if not torch.equal(half(blocks), blocks):
                raise NotCertified(f"Layer {name!r}: a shared weight is no float16 number")
            if layer.shared.zero and bool((now[then == 0] != 0).any() and layer.shared.block == 1):
                raise NotCertified(f"Layer {name!r}: a weight that was zero is not zero any more")
            check_snr(name, then, now, layer.snr_db)

    def constraints(self) -> Constraints:
        """Return that weights are shared before export, and stay shared afterwards."""
        return Constraints(before=("quantize", "encode"), preserves=("codebook assignments",))


def refuse_sparse_vectors(plan: Plan) -> None:
    """Check that no layer is to be sparse and to share vectors.

    A vector stands for whole blocks, so that the zeros between their other weights would have to
    agree; a mask does not care. Scalars have an entry for zero.

    Raises:
        PlanInvalid: Some layer may get both. Which layers a decision for the whole model leaves
            out is not known here: it counts as one for every layer without its own.
    """
    sparse, shared = plan.of_kind(Sparsify.kind), plan.of_kind(Share.kind)
    for site, decision in shared.items():
        if not isinstance(decision, Share) or decision.block == 1:
            continue
        if site == MODEL_SITE:
            covered = [other for other in sparse if other == MODEL_SITE or other not in shared]
        else:
            covered = [other for other in (site, MODEL_SITE) if other in sparse]
        if covered:
            raise PlanInvalid(
                f"Site {site!r} shares vectors of {decision.block} weights, and site "
                f"{covered[0]!r} is sparse: vectors keep no zeros. A sparse layer can share "
                "scalars (block=1)"
            )


def _share(layer: WeightLayer, decision: Share, inputs: Tensor | None, seed: int) -> SharedLayer:
    """Give a layer its codebook, in place."""
    former = layer.weight.detach().clone()
    block = block_size(former[0].numel(), decision.block)
    entries = clamp_entries(decision.entries, former.numel() // block)
    moments = None
    if block == 1:
        book = cluster_scalars(former, entries)
    else:
        if inputs is not None:
            moments = second_moments(layer, inputs, block)
        book = _vectors(layer, block, entries, moments, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        layer.weight.copy_(book.weight(former.shape))
    return SharedLayer(
        shared=SharedWeight(block=block, assignments=book.assignments, zero=book.zero),
        entries=entries,
        snr_db=snr_db(former, layer.weight),
        weighted=moments is not None,
    )


def _vectors(
    layer: WeightLayer, block: int, entries: int, moments: Tensor | None, random: torch.Generator
) -> Codebook:
    """Return the vector codebook of a layer; blocks of zeros get an entry of their own."""
    zeros = (layer.weight.detach().reshape(-1, block) == 0).all(1)
    zero = bool(zeros.any())
    found = cluster_blocks(
        blocks_by_position(layer, block), moments, max(1, entries - zero), random
    )
    assignments = row_major(layer, found.assignments)
    if not zero:
        return Codebook(values=found.values, assignments=assignments, zero=False)
    values = torch.cat([found.values.new_zeros(1, block), found.values])
    return Codebook(values=values, assignments=torch.where(zeros, 0, assignments + 1), zero=True)


def _sample(calibration: Sequence[Tensor]) -> Tensor:
    """Return the first images, in one batch."""
    taken, images = 0, []
    for batch in calibration:
        images.append(batch[: CALIBRATION_IMAGES - taken])
        taken += len(images[-1])
        if taken == CALIBRATION_IMAGES:
            break
    return torch.cat(images)


def _at_their_inputs(
    model: nn.Module, layers: Mapping[str, Share], compress: Any, inputs: Tensor
) -> None:
    """Run `inputs` through the model and compress every layer just before it computes."""
    done: set[str] = set()

    def arrival(name: str) -> Any:
        def compress_once(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if name not in done:
                done.add(name)
                compress(name, arguments[0])

        return compress_once

    modes = {module: module.training for module in model.modules()}
    hooks = [weight_layer(model, name).register_forward_pre_hook(arrival(name)) for name in layers]
    try:
        model.eval()
        with torch.no_grad():
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
