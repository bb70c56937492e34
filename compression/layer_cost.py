"""One layer as a row of the cost table: what its arithmetic depends on."""

from __future__ import annotations

import dataclasses
from typing import Literal

Op = Literal["conv", "linear", "norm", "fixed"]
WEIGHTED = ("conv", "linear")
"""Operations that multiply inputs by weights."""
Tie = tuple[str, int]
"""A site and how many of the layer's channels each of its channels stands for."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """What one layer costs as a function of the channels that its sites keep.

    Attributes:
        name: Dotted path of the layer.
        op: `conv` and `linear` multiply; `norm` has per-channel parameters; `fixed` has
            `fixed_params` parameters whatever the plan.
        in_channels: Input channels (features) in the dense model.
        out_channels: Output channels (features) in the dense model.
        kernel: Elements of the kernel window, kh * kw; 1 for linear.
        positions: Outputs per channel and input, Ho * Wo; tokens for linear.
        groups: Convolution groups in the dense model; equal to in_channels for depthwise.
        bias: Whether there is one bias per output channel.
        window: kh, kw of an `nn.Conv2d`, 1, 1 of an `nn.Linear`; empty for other classes, whose
            forward pass may do more than theirs.
        grid_in: H, W of the input of a two-dimensional convolution, before padding.
        grid_out: H, W of its output.
        grid_pooled: H, W of its output where it does the work of the pool behind it (`merge_pool`);
            empty where no such pool follows.
        calls: How often one forward pass runs the layer.
        params_per_channel: For `norm`: trainable parameters per channel (2 when affine).
        fixed_params: For `fixed`: its parameters.
        in_ties: Sites that remove inputs; empty where inputs are fixed.
        out_ties: Sites that remove outputs.
    """

    name: str
    op: Op
    in_channels: int
    out_channels: int
    kernel: int = 1
    positions: int = 1
    groups: int = 1
    bias: bool = False
    window: tuple[int, ...] = ()
    grid_in: tuple[int, ...] = ()
    grid_out: tuple[int, ...] = ()
    grid_pooled: tuple[int, ...] = ()
    calls: int = 1
    params_per_channel: int = 0
    fixed_params: int = 0
    in_ties: tuple[Tie, ...] = ()
    out_ties: tuple[Tie, ...] = ()
