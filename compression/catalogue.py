"""Which selectors and primitives exist; one line each. A new one is a new file and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compression.primitives.drop_block import BlockDrop
from compression.primitives.factorize import LowRank
from compression.primitives.merge_pool import PoolMerging
from compression.primitives.primitive import ModulePrimitive
from compression.primitives.prune_channels import ChannelPruning
from compression.primitives.quantize_graph import GraphQuantization
from compression.primitives.quantize_weights import WeightQuantization
from compression.primitives.share import WeightSharing
from compression.primitives.sparsify import Sparsification
from compression.selectors.apoz import Apoz
from compression.selectors.bn_scale import BatchNormScale
from compression.selectors.dcp import DiscriminationAware
from compression.selectors.fisher import Fisher
from compression.selectors.fpgm import GeometricMedian
from compression.selectors.lasso import Lasso
from compression.selectors.magnitude import Magnitude
from compression.selectors.random import Random
from compression.selectors.selector import Selector
from compression.selectors.taylor import Taylor
from compression.selectors.thinet import ThiNet

SELECTORS: Mapping[str, Selector] = {
    "l1": Magnitude(1),
    "l2": Magnitude(2),
    "bn_scale": BatchNormScale(),
    "fpgm": GeometricMedian(),
    "taylor": Taylor(),
    "fisher": Fisher(),
    "apoz": Apoz(),
    "thinet": ThiNet(),
    "lasso": Lasso(),
    "dcp": DiscriminationAware(),
    "random": Random(),
}
"""By the name that a `PruneChannels` decision carries."""

PRIMITIVES: Mapping[str, ModulePrimitive[Any]] = {
    "drop_block": BlockDrop(),
    "merge_pool": PoolMerging(),
    "prune_channels": ChannelPruning(),
    "factorize": LowRank(),
    "sparsify": Sparsification(),
    "quantize_weights": WeightQuantization(),
    "share": WeightSharing(),
}
"""What changes the torch module, by the kind of its decisions."""

GRAPH_PRIMITIVES: Mapping[str, GraphQuantization] = {"quantize": GraphQuantization()}
"""What changes the exported graph."""
