"""Which selectors and primitives exist; one line each. A new one is a new file and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compression.primitives.primitive import Primitive
from compression.primitives.prune_channels import ChannelPruning
from compression.primitives.quantize_graph import GraphQuantization
from compression.selectors.bn_scale import BatchNormScale
from compression.selectors.magnitude import Magnitude
from compression.selectors.selector import Selector
from compression.selectors.taylor import Taylor

SELECTORS: Mapping[str, Selector] = {
    "l1": Magnitude(1),
    "l2": Magnitude(2),
    "bn_scale": BatchNormScale(),
    "taylor": Taylor(),
}
"""By the name that a `PruneChannels` decision carries."""

PRIMITIVES: Mapping[str, Primitive[Any, Any, Any]] = {
    "prune_channels": ChannelPruning(),
    "quantize": GraphQuantization(),
}
"""By the kind of their decisions. They work on different subjects: see `Description.acts_on`."""
