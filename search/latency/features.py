"""What latency grows with, counted from the deployed shapes.

A *class* is a way of computing: `float32`, `int8`, and either with ` coded` where weights are
sparse, in few bits or shared, since some runtimes have kernels for those. Kernels work on blocks of
channels; a layer whose channels are no multiple of the block computes on padding or is copied into
another layout first. So features are, per class: layers (each costs a call), multiply-adds,
multiply-adds with channels rounded up to the block, by operation and map size (kernels differ in
how well they fill small maps), and elements of maps with channels off the block.

Every feature grows with every channel count as long as it stays on, or stays off, the block:
with weights >= 0 a prediction does, too. A channel count that falls off the block may cost more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from compression.layer_cost import WEIGHTED
from search.latency.shape import LayerShape

BLOCK = 16
"""Channels that kernels of 512-bit vectors take at once; a multiple of those of narrower ones."""

FLOAT = "float32"

Feature = tuple[str, str]
"""What is counted, and the class of the layers that it is counted over; `("call", "")` is 1."""

CALL: Feature = ("call", "")
"""What one inference costs whatever the network is."""


def features(shapes: Iterable[LayerShape]) -> dict[Feature, float]:
    """Return the features of a network; those that are 0 are left out."""
    found: dict[Feature, float] = {CALL: 1.0}
    for shape in shapes:
        if shape.op not in WEIGHTED:
            continue
        name = class_of(shape)
        operation = "grouped" if shape.groups > 1 else shape.op
        counts = {
            "layers": 1,
            "macs": shape.macs,
            f"padded macs {operation} {shape.positions}": padded_macs(shape),
            "off-block outputs": _off_block(shape.out_channels) * shape.positions,
            "off-block inputs": _off_block(shape.in_channels) * shape.positions_in,
        }
        for what, count in counts.items():
            if count:
                found[what, name] = found.get((what, name), 0.0) + count
    return found


def class_of(shape: LayerShape) -> str:
    """Return the way a layer computes."""
    return ("int8" if shape.int8 else FLOAT) + (" coded" if shape.storage else "")


def padded_macs(shape: LayerShape) -> int:
    """Return multiply-adds with channels rounded up to whole blocks; grouped ones as they are."""
    if shape.groups > 1:
        return shape.macs
    n_in, n_out = (-(-n // BLOCK) * BLOCK for n in (shape.in_channels, shape.out_channels))
    return n_in * n_out * shape.kernel * shape.positions


def counterpart(feature: Feature, dense: Mapping[Feature, float]) -> float:
    """Return what the dense network has of a feature, in whichever class; 0 where nothing is."""
    what, name = feature
    return dense.get(feature, dense.get((what, FLOAT), 0.0) if name else 0.0)


def _off_block(channels: int) -> int:
    return channels if channels % BLOCK else 0
