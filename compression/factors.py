"""Ranks and exact costs of factorized layers: arithmetic only, no model is touched.

A layer of `n_in` inputs, `n_out` outputs and a window of kh x kw (1 x 1 for linear layers) becomes
a chain of thinner ones. With rank r:

| method | chain | weights |
|---|---|---|
| svd (1 x 1), channel | kh x kw to r, 1 x 1 | r (n_in kh kw + n_out) |
| spatial | kh x 1 to r, 1 x kw | r (n_in kh + n_out kw) |
| tucker2 | 1 x 1 to r1, kh x kw to r2, 1 x 1 | n_in r1 + r1 r2 kh kw + r2 n_out |
| cp | 1 x 1 to r, kh x 1 and 1 x kw per channel, 1 x 1 | r (n_in + kh + kw + n_out) |
| kronecker | sum of r products A (m1 x n1) x B (m2 x n2 x kh x kw) | r (m1 n1 + m2 n2 kh kw) |

On a window of 1 x 1 `channel` and `spatial` are `svd`, so that one decision suits a whole network.

Reference:
    svd, channel: Zhang et al. (2016), https://arxiv.org/abs/1505.06798; spatial: Jaderberg et al.
    (2014), https://arxiv.org/abs/1405.3866; tucker2: Kim et al. (2016),
    https://arxiv.org/abs/1511.06530; cp: Lebedev et al. (2015), https://arxiv.org/abs/1412.6553;
    kronecker: Van Loan & Pitsianis (1993), "Approximation with Kronecker Products".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from compression.decisions import Factorize, FactorizeMethod
from compression.errors import PlanInvalid
from compression.layer_cost import WEIGHTED, LayerCost
from compression.site import MODEL_SITE

Window = tuple[int, int]
"""kh, kw; 1, 1 for linear layers."""

MIN_BREAK_EVEN = 2.0
"""Below this break-even rank no rank of at least 1 saves anything worth a second layer."""

WHITENED: tuple[FactorizeMethod, ...] = ("svd", "channel", "spatial")
"""Methods whose best factors under the inputs' second moments have a closed form here."""


def kronecker_shape(n_in: int, n_out: int) -> tuple[int, int, int, int]:
    """Return n1, n2, m1, m2 with n1 n2 = n_in, m1 m2 = n_out.

    n2 and m2, which come with the window, are the largest divisors up to the square root.
    """
    n2, m2 = _divisor(n_in), _divisor(n_out)
    return n_in // n2, n2, n_out // m2, m2


def _divisor(number: int) -> int:
    return next(d for d in range(math.isqrt(number), 0, -1) if number % d == 0)


def break_even_rank(method: FactorizeMethod, n_in: int, n_out: int, window: Window) -> float:
    """Return the rank at which the chain has as many weights as the layer.

    For `tucker2`, whose ranks r1 and r2 are the same share of n_in and n_out, it is the smaller
    of the two: with share t, n_in^2 t + n_in n_out kh kw t^2 + n_out^2 t = n_in n_out kh kw.
    """
    kh, kw = window
    dense = n_in * n_out * kh * kw
    match method:
        case "svd" | "channel":
            return dense / (n_in * kh * kw + n_out)
        case "spatial":
            return dense / (n_in * kh + n_out * kw)
        case "cp":
            return dense / (n_in + kh + kw + n_out)
        case "kronecker":
            n1, n2, m1, m2 = kronecker_shape(n_in, n_out)
            return dense / (m1 * n1 + m2 * n2 * kh * kw)
        case "tucker2":
            linear = n_in**2 + n_out**2
            share = (math.sqrt(linear**2 + 4 * dense**2) - linear) / (2 * dense)
            return share * min(n_in, n_out)


def ranks(decision: Factorize, n_in: int, n_out: int, window: Window) -> tuple[int, ...]:
    """Return r, or r1 and r2 for `tucker2`: max(1, floor(rank_ratio * break-even rank)).

    Rounding down keeps the chain smaller than the layer, except where the break-even rank is
    below 1. A product within 1e-9 below an integer counts as that integer.
    """
    rank = decision.rank_ratio * break_even_rank(decision.method, n_in, n_out, window)
    if decision.method != "tucker2":
        return (max(1, math.floor(rank + 1e-9)),)
    narrow = min(n_in, n_out)
    return tuple(max(1, math.floor(rank * n / narrow + 1e-9)) for n in (n_in, n_out))


def split_cost(layer: LayerCost, n_in: int, n_out: int, decision: Factorize) -> tuple[int, int]:
    """Return the weights and MACs of one input of the chain that replaces `layer`.

    Biases, which the last layer of the chain keeps, are in neither.

    Args:
        layer: The layer in the dense model.
        n_in: Its inputs under the plan.
        n_out: Its outputs under the plan.
        decision: What is decided for it.

    Raises:
        PlanInvalid: The layer cannot be factorized so; the message says why.
    """
    reason = refusal(layer, decision)
    if reason:
        raise PlanInvalid(f"Layer {layer.name!r} cannot be factorized: {reason}")
    kh, kw = window = window_of(layer)
    positions = layer.positions
    # Before the strided axis or axes, a factor runs on more pixels.
    entering, between = positions, positions
    if layer.grid_in:
        entering = layer.grid_in[0] * layer.grid_in[1]
        between = layer.grid_out[0] * layer.grid_in[1]
    r, *more = ranks(decision, n_in, n_out, window)
    match decision.method:
        case "svd" | "channel":
            weights = r * (n_in * kh * kw + n_out)
            return weights, weights * positions
        case "spatial":
            first, second = r * n_in * kh, r * n_out * kw
            return first + second, first * between + second * positions
        case "tucker2":
            first, core, last = n_in * r, r * more[0] * kh * kw, more[0] * n_out
            return first + core + last, first * entering + (core + last) * positions
        case "cp":
            first, rows, rest = n_in * r, r * kh, r * (kw + n_out)
            macs = first * entering + rows * between + rest * positions
            return first + rows + rest, macs
        case "kronecker":
            n1, n2, m1, m2 = kronecker_shape(n_in, n_out)
            inner, outer = r * m2 * n2 * kh * kw, r * m1 * n1
            # A bias per output has no place in either factor: a scale per output carries it.
            scale = n_out if layer.bias else 0
            return inner + outer + scale, (inner * n1 + outer * m2 + scale) * positions


def window_of(layer: LayerCost) -> Window:
    """Return kh, kw of a layer that `refusal` did not turn down."""
    kh, kw = layer.window
    return kh, kw


def refusal(layer: LayerCost, decision: Factorize) -> str | None:
    """Return why the layer cannot be factorized like this, in words for the user; None if it can.

    Widths are those of the dense model: what pruning leaves of a layer is always factorized, at
    rank 1 if need be.
    """
    reason = structure_refusal(layer)
    if reason:
        return reason
    kh, kw = window = window_of(layer)
    method = decision.method
    if method == "svd" and kh * kw > 1:
        return f"its window is {kh} x {kw}; svd is for 1 x 1, channel splits larger ones"
    if method in ("tucker2", "cp") and kh * kw == 1:
        return f"its window is 1 x 1; {method} is for larger ones, svd splits this one"
    if method == "kronecker" and layer.op == "linear" and layer.positions != 1:
        return f"it runs on {layer.positions} tokens; kronecker is for one vector per input"
    if decision.whiten and method not in WHITENED:
        return f"whiten goes with {', '.join(WHITENED)}, not with {method}"
    even = break_even_rank(method, layer.in_channels, layer.out_channels, window)
    if even < MIN_BREAK_EVEN:
        return f"the break-even rank of {method} is {even:.2f}; {MIN_BREAK_EVEN:g} is required"
    return None


def structure_refusal(layer: LayerCost) -> str | None:
    """Return why no method at all can factorize the layer; None if one might."""
    if layer.op not in WEIGHTED:
        return "it is neither a convolution nor a linear layer"
    if layer.groups > 1:
        return f"it has {layer.groups} groups, each of which is thin already"
    if not layer.window:
        return "it is no plain two-dimensional convolution or linear layer"
    if layer.calls != 1:
        return f"one forward pass calls it {layer.calls} times; exactly once is required"
    return None


def expand(decisions: Mapping[str, Factorize], layers: Iterable[LayerCost]) -> dict[str, Factorize]:
    """Return one decision per layer: what `model` says goes to every layer that can take it.

    The first and the last layer keep their form then. A decision at a layer's own site comes
    before that of the model.
    """
    own = {site: decision for site, decision in decisions.items() if site != MODEL_SITE}
    overall = decisions.get(MODEL_SITE)
    if overall is None:
        return own
    weighted = [layer for layer in layers if layer.op in WEIGHTED]
    inner = {layer.name: overall for layer in weighted[1:-1] if refusal(layer, overall) is None}
    return {**inner, **own}
