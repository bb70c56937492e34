"""Layers whose channels can only be removed together, as index tables."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Side = Literal["in", "out"]
Indices = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tap:
    """One side of one layer that loses channels with the coupling.

    Example: a convolution of 16 channels, flattened from 2 x 2 pixels into a linear layer, taps
    the `in` side of that layer with an index of `16 x 4`.

    Attributes:
        layer: Dotted path of the layer.
        side: `out` where the layer produces the channels or hands them through one by one (a
            normalization, a depthwise convolution); `in` where it consumes them.
        index: `channels x m` int64; row `c` holds the layer's own positions that stand for
            channel `c` of the coupling, in ascending order; `m` is 1 except after a flattening,
            where one tensor arrives several times, where a convolution in groups loses the same
            position of every group, and for heads. Positions on the `in` side are those of the
            weight's second axis: inside one group, where a convolution has groups.
    """

    layer: str
    side: Side
    index: Indices


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ParameterTap:
    """A parameter that is no layer's weight or bias and loses positions of one axis.

    Attributes:
        layer: Dotted path of the module that owns it.
        parameter: Its name there.
        axis: Which axis loses positions.
        index: `channels x m` as in `Tap`, along that axis.
    """

    layer: str
    parameter: str
    axis: int
    index: Indices


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coupling:
    """A coupling group: what must happen elsewhere when channels of one layer go.

    Where the unit is an attention head, "channels" are heads.

    Attributes:
        name: Dotted path of the first layer, in forward order, that produces the channels.
        channels: Number of channels.
        taps: Every layer side it touches, in forward order; at most one per layer and side.
        parameters: Parameters of attention layers that are cut with it.
        is_output: Whether its channels are the model's outputs.
        obstacle: Why no table could be made of it, in words for the user; None if one could.
    """

    name: str
    channels: int
    taps: tuple[Tap, ...]
    parameters: tuple[ParameterTap, ...] = ()
    is_output: bool = False
    obstacle: str | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Dotted paths of the layers, each once, in forward order."""
        own = [cut.layer for cut in self.parameters]
        return tuple(dict.fromkeys([*own, *(tap.layer for tap in self.taps)]))
