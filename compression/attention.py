"""Attention layers whose heads can be removed.

The forward passes of these layers take the width of the stream for the number of heads times the
width of a head. Without some of its heads a layer therefore gets a forward pass of its own here,
which reads the width of a head from its weights; classes, names and weights stay what they were.

Reference:
    Michel et al. (2019), "Are Sixteen Heads Really Better than One?",
    https://arxiv.org/abs/1905.10650; attention itself: Vaswani et al. (2017), section 3.2,
    https://arxiv.org/abs/1706.03762.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.coupling import Coupling, Indices, ParameterTap, Tap

_SELF = "torch.nn.modules.activation.MultiheadAttention"
_SHIFTED = "torchvision.models.swin_transformer.ShiftedWindowAttention"
_SHIFTED_COSINE = "torchvision.models.swin_transformer.ShiftedWindowAttentionV2"
_RELATIVE = "torchvision.models.maxvit.RelativePositionalMultiHeadAttention"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attention:
    """An attention layer in a model.

    Attributes:
        name: Its dotted path.
        entrance: Path of the layer that makes queries, keys and values.
        projection: Path of the linear layer that makes the outputs.
        coupling: Its heads.
    """

    name: str
    entrance: str
    projection: str
    coupling: Coupling


def attention_of(name: str, module: nn.Module) -> Attention | None:
    """Return what is known of the attention layer `module`; None if it is none of a known kind."""
    own: Any = module
    match _kind(module):
        case k if k == _SELF:
            entrance, projection, heads = name, f"{name}.out_proj", own.num_heads
            width = own.out_proj.in_features
        case k if k in (_SHIFTED, _SHIFTED_COSINE):
            entrance, projection, heads = f"{name}.qkv", f"{name}.proj", own.num_heads
            width = own.proj.in_features
        case k if k == _RELATIVE:
            entrance, projection, heads = f"{name}.to_qkv", f"{name}.merge", own.n_heads
            width = own.merge.in_features
        case _:
            return None
    coupling = _coupling(module, name, entrance, projection, heads, width // heads)
    return Attention(name=name, entrance=entrance, projection=projection, coupling=coupling)


def _kind(module: nn.Module) -> str:
    kind = type(module)
    return f"{kind.__module__}.{kind.__qualname__}"


def _coupling(
    module: nn.Module, name: str, entrance: str, projection: str, heads: int, width: int
) -> Coupling:
    """Return the coupling of the heads, each `width` wide."""
    own = np.arange(heads * width, dtype=np.int64).reshape(heads, width)
    # Queries of all heads, then keys, then values.
    triple = np.concatenate([own, own + heads * width, own + 2 * heads * width], axis=1)
    single = np.arange(heads, dtype=np.int64).reshape(heads, 1)
    taps = [Tap(layer=projection, side="in", index=own)]
    parameters: list[ParameterTap] = []
    obstacle = None

    def cut(parameter: str, axis: int, index: Indices) -> None:
        if module._parameters.get(parameter) is not None:
            tap = ParameterTap(layer=name, parameter=parameter, axis=axis, index=index)
            parameters.append(tap)

    if isinstance(module, nn.MultiheadAttention):
        cut("in_proj_weight", 0, triple)
        cut("in_proj_bias", 0, triple)
        if not module._qkv_same_embed_dim or module.bias_k is not None or module.add_zero_attn:
            obstacle = f"{name!r} has keys or values of their own kind"
    else:
        taps.insert(0, Tap(layer=entrance, side="out", index=triple))
        cut("relative_position_bias_table", 1, single)
        cut("logit_scale", 0, single)
        if _kind(module) == _SHIFTED_COSINE:
            taps.insert(1, Tap(layer=f"{name}.cpb_mlp.2", side="out", index=single))
    return Coupling(
        name=entrance,
        channels=heads,
        taps=tuple(taps),
        parameters=tuple(parameters),
        obstacle=obstacle,
    )


def open_to_fewer_heads(module: nn.Module) -> None:
    """Make an attention layer whose tensors lost heads work with those that are left.

    Its number of heads becomes that of its tensors, and its forward pass one of this file. The
    width of the stream (`embed_dim`) and of a head (`head_dim`) stay.
    """
    own: Any = module
    match _kind(module):
        case k if k == _SELF:
            own.num_heads = own.out_proj.in_features // own.head_dim
            own.forward = functools.partial(self_attention, own)
        case k if k == _SHIFTED:
            own.num_heads = own.relative_position_bias_table.shape[1]
            own.forward = functools.partial(shifted_window_attention, module)
        case k if k == _SHIFTED_COSINE:
            own.num_heads = own.logit_scale.shape[0]
            own.forward = functools.partial(shifted_window_attention, module)
        case k if k == _RELATIVE:
            own.n_heads = own.relative_position_bias_table.shape[1]
            own.forward = functools.partial(relative_attention, module)


def self_attention(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Do what `nn.MultiheadAttention` does, with heads that need not fill the stream.

    Args:
        module: A layer whose `in_proj_weight` has `3 * num_heads * head_dim` rows.
        query: `B x T x C` (`T x B x C` without `batch_first`, `T x C` without a batch).
        key: As `query`, of `S` tokens.
        value: As `key`.
        key_padding_mask: `B x S`; True (or an added value) where a key does not count.
        need_weights: Whether the attention weights are returned.
        attn_mask: `T x S` or `B * heads x T x S`; True (or an added value) where no attention is.
        average_attn_weights: Whether the weights are averaged over heads.
        is_causal: A hint that `attn_mask` is the causal mask; not needed here.

    Returns:
        Outputs shaped as `query`, and weights `B x T x S` (or `B x heads x T x S`) or None.
    """
    batched = query.dim() == 3
    streams = [query, key, value]
    if not batched:
        streams = [x.unsqueeze(0) for x in streams]
    elif not module.batch_first:
        streams = [x.transpose(0, 1) for x in streams]
    weight, bias = module.in_proj_weight, module.in_proj_bias
    if query is key and key is value:
        parts = functional.linear(streams[0], weight, bias).chunk(3, -1)
    else:
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        parts = tuple(map(functional.linear, streams, weight.chunk(3), biases))
    q, k, v = (
        torch.unflatten(part, -1, (module.num_heads, module.head_dim)).transpose(1, 2)
        for part in parts
    )
    mask = None if attn_mask is None else _added_mask(attn_mask, q)
    if mask is not None and mask.dim() == 3:
        mask = torch.unflatten(mask, 0, (-1, module.num_heads))
    if key_padding_mask is not None:
        padding = _added_mask(key_padding_mask.view(-1, 1, 1, k.shape[2]), q)
        mask = padding if mask is None else mask + padding
    dropout = module.dropout if module.training else 0.0
    found = None
    if need_weights:
        scores = q @ k.transpose(-2, -1) / math.sqrt(module.head_dim)
        found = (scores if mask is None else scores + mask).softmax(-1)
        found = functional.dropout(found, dropout)
        out = found @ v
        found = found.mean(1) if average_attn_weights else found
    else:
        out = functional.scaled_dot_product_attention(q, k, v, mask, dropout)
    out = out.transpose(1, 2).flatten(2)
    out = functional.linear(out, module.out_proj.weight, module.out_proj.bias)
    if not batched:
        return out.squeeze(0), None if found is None else found.squeeze(0)
    return out if module.batch_first else out.transpose(0, 1), found


def _added_mask(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)


def shifted_window_attention(module: Any, x: Tensor) -> Tensor:
    """Attend within shifted windows, with heads that need not fill the stream.

    Liu et al. (2021), "Swin Transformer", https://arxiv.org/abs/2103.14030, section 3.2; with
    `logit_scale`, the scaled cosine attention of Liu et al. (2022), "Swin Transformer V2",
    https://arxiv.org/abs/2111.09883, equation 2, whose keys have no bias.

    Args:
        module: A shifted-window attention layer of torchvision.
        x: `B x H x W x C`.

    Returns:
        `B x H x W x C`.
    """
    height, width = x.shape[1:3]
    window = module.window_size
    padded = functional.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
    size = padded.shape[1:3]
    # One window that covers everything has nowhere to shift to.
    shift = [0 if w >= s else k for w, s, k in zip(window, size, module.shift_size, strict=True)]
    rolled = torch.roll(padded, (-shift[0], -shift[1]), (1, 2)) if any(shift) else padded
    tokens = _windows(rolled, window)
    bias = module.qkv.bias
    scale = getattr(module, "logit_scale", None)
    if scale is not None and bias is not None:
        queries, _, values = bias.chunk(3)
        bias = torch.cat([queries, torch.zeros_like(queries), values])
    qkv = functional.linear(tokens, module.qkv.weight, bias)
    qkv = torch.unflatten(qkv, -1, (3, module.num_heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    if scale is None:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    else:
        scores = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).transpose(-2, -1)
        # The paper keeps the temperature above 0.01.
        scores = scores * scale.clamp(max=math.log(100.0)).exp()
    scores = scores + module.get_relative_position_bias()
    if any(shift):
        mask = _window_mask(size, window, shift, x)
        by_window = torch.unflatten(scores, 0, (-1, len(mask))) + mask[:, None]
        scores = by_window.flatten(0, 1)
    weights = functional.dropout(scores.softmax(-1), module.attention_dropout, module.training)
    out = (weights @ v).transpose(1, 2).flatten(2)
    out = functional.linear(out, module.proj.weight, module.proj.bias)
    out = functional.dropout(out, module.dropout, module.training)
    rows, columns = size[0] // window[0], size[1] // window[1]
    out = out.view(-1, rows, columns, window[0], window[1], out.shape[-1])
    out = out.transpose(2, 3).reshape(-1, size[0], size[1], out.shape[-1])
    out = torch.roll(out, (shift[0], shift[1]), (1, 2)) if any(shift) else out
    return out[:, :height, :width].contiguous()


def _windows(x: Tensor, window: list[int]) -> Tensor:
    """Return `B * windows x positions x C` of `B x H x W x C`."""
    x = torch.unflatten(torch.unflatten(x, 2, (-1, window[1])), 1, (-1, window[0]))
    return x.transpose(2, 3).flatten(0, 2).flatten(1, 2)


def _window_mask(size: Any, window: list[int], shift: list[int], like: Tensor) -> Tensor:
    """Return `windows x positions x positions`: -100 between pixels that only the roll joined."""
    regions = []
    for length, extent, step in zip(size, window, shift, strict=True):
        position = torch.arange(length)
        regions.append((position >= length - extent).int() + (position >= length - step).int())
    region = (3 * regions[0][:, None] + regions[1]).view(1, *size, 1)
    tokens = _windows(region, window).squeeze(-1)
    apart = tokens[:, None] != tokens[:, :, None]
    return torch.zeros(apart.shape, dtype=like.dtype).masked_fill(apart, -100.0)


def relative_attention(module: Any, x: Tensor) -> Tensor:
    """Attend within partitions with a relative position bias, heads as many as there are.

    Tu et al. (2022), "MaxViT", https://arxiv.org/abs/2204.01697, section 3.2.

    Args:
        module: An attention layer of torchvision's MaxViT.
        x: `B x partitions x positions x C`.

    Returns:
        The same shape.
    """
    qkv = module.to_qkv(x).unflatten(-1, (3, module.n_heads, module.head_dim))
    q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)
    scores = q @ (k * module.scale_factor).transpose(-2, -1)
    weights = (scores + module.get_relative_positional_bias()).softmax(-1)
    out: Tensor = module.merge((weights @ v).transpose(2, 3).flatten(3))
    return out
