"""Bytes of a layer's weights under the decisions that change their size but not their number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from compression.decisions import Quantize, QuantizeWeights, Share, Sparsify
from compression.plan import Plan
from compression.site import MODEL_SITE
from compression.sparse_size import sparse_bytes

FLOAT_BITS = 32
ENTRY_BYTES = 2
"""Bytes of one number of a codebook: they are float16."""
END_BITS = 8
"""Bits of the first and the last layer where a decision is made for the whole model."""


@dataclasses.dataclass(frozen=True, slots=True)
class WeightSize:
    """The size decisions of a plan, by layer.

    Attributes:
        sparsify: Zeros, where there are any.
        codes: Low bits or a codebook, where there are any.
        quantize: Of the model.
    """

    sparsify: Mapping[str, Sparsify]
    codes: Mapping[str, QuantizeWeights | Share]
    quantize: Quantize | None

    @staticmethod
    def of(plan: Plan, layers: Sequence[str]) -> WeightSize:
        """Spread the decisions for the whole model over its weighted layers, in forward order."""
        zeros: dict[str, Sparsify] = {}
        codes: dict[str, QuantizeWeights | Share] = {}
        ends = {*layers[:1], *layers[-1:]}
        for site, decision in plan:
            if isinstance(decision, Sparsify):
                inner = [name for name in layers if name not in ends]
                if site == MODEL_SITE:
                    zeros = {**dict.fromkeys(inner, decision), **zeros}
                else:
                    zeros[site] = decision
            elif isinstance(decision, QuantizeWeights | Share):
                if site == MODEL_SITE:
                    codes = {**dict.fromkeys(ends, QuantizeWeights(bits=END_BITS)), **codes}
                    inner = [name for name in layers if name not in codes]
                    codes |= dict.fromkeys(inner, decision)
                else:
                    codes[site] = decision
        return WeightSize(zeros, codes, plan.quantize())

    def bytes_of(self, layer: str, weights: int) -> int:
        """Return the estimated bytes of a layer's `weights` weights."""
        bits, table = FLOAT_BITS, 0
        if self.quantize is not None and layer not in self.quantize.keep_float:
            bits = self.quantize.weight_bits
        code = self.codes.get(layer)
        if isinstance(code, QuantizeWeights):
            bits = min(bits, code.bits)
        elif isinstance(code, Share):
            blocks = max(1, weights // code.block)
            entries = min(code.entries, blocks)
            table = ENTRY_BYTES * entries * code.block
            if code.block > 1:
                return min(bits * weights // 8, table + math.ceil(blocks * _bits(entries) / 8))
            bits = min(bits, _bits(entries))
        zeros = self.sparsify.get(layer)
        if zeros is None:
            return table + math.ceil(weights * bits / 8)
        return table + sparse_bytes(weights, zeros.sparsity, bits, zeros.pattern)


def _bits(entries: int) -> int:
    return max(1, math.ceil(math.log2(entries)))
