"""Masked-dense equivalence: the thin model is the dense one without the removed channels.

The *masked dense* model is the dense model, unchanged in shape, in which every consumer of a
removed channel multiplies it by zero. Nothing else is masked: neither the producers nor what lies
between. So a channel that leaks past its consumers, is normalised together with others, or meets
the wrong partner after padding, slicing or concatenation makes the two models differ, whatever
the tracer said. In evaluation mode the two are equal in exact arithmetic; `TOLERANCE` leaves room
for the order of additions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compression.errors import NotCertified
from compression.surgery import Cut

TOLERANCE = 1e-5
"""Largest |thin - masked dense| that passes, relative to the largest |masked dense| output."""

FORWARD_ERRORS = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)
"""What a forward pass raises when tensors do not fit together."""


def equivalence_gap(dense: nn.Module, thin: nn.Module, cuts: Mapping[str, Cut], x: Tensor) -> float:
    """Return max |thin(x) - masked dense(x)| / max |masked dense(x)|.

    Computed in float32 first; where that exceeds `TOLERANCE`, again in float64, which tells
    rounding from error.

    Args:
        dense: The model before, in eval mode.
        thin: The model after, in eval mode.
        cuts: What stays of every layer.
        x: `B x C x H x W` inputs.

    Raises:
        NotCertified: The thin model fails, or gives outputs of another shape, or one of the two
            gives non-finite outputs.
    """
    gap = _gap(dense, _thin_outputs(thin, x), cuts, x)
    if gap > TOLERANCE and x.dtype != torch.float64:
        # One copy at a time: the largest classifiers take five gigabytes in float64.
        actual = _thin_outputs(copy.deepcopy(thin).double(), x.double())
        gap = _gap(copy.deepcopy(dense).double(), actual, cuts, x.double())
    return gap


def _thin_outputs(thin: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        try:
            outputs: Tensor = thin(x)
        except FORWARD_ERRORS as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise NotCertified(f"The thin model's forward pass fails: {reason}") from error
    return outputs


def _gap(dense: nn.Module, actual: Tensor, cuts: Mapping[str, Cut], x: Tensor) -> float:
    with torch.no_grad():
        expected: Tensor = functional_call(dense, masked_weights(dense, cuts), (x,))
    if actual.shape != expected.shape:
        raise NotCertified(
            f"The thin model's output is {tuple(actual.shape)}; the dense one's is "
            f"{tuple(expected.shape)}"
        )
    if not torch.isfinite(actual).all() or not torch.isfinite(expected).all():
        raise NotCertified("The thin or the dense model gives outputs that are not finite")
    scale = max(float(expected.abs().max()), torch.finfo(expected.dtype).tiny)
    return float((actual - expected).abs().max()) / scale


def masked_weights(dense: nn.Module, cuts: Mapping[str, Cut]) -> dict[str, Tensor]:
    """Return the consumers' weights with zeros where an input was removed, by parameter name."""
    weights = {}
    for layer, cut in cuts.items():
        if cut.kept_in is None:
            continue
        weight = dense.get_submodule(layer).get_parameter("weight").detach()
        mask = torch.zeros(weight.shape[1], dtype=weight.dtype)
        mask[torch.from_numpy(cut.kept_in)] = 1.0
        weights[f"{layer}.weight"] = weight * mask.view(1, -1, *[1] * (weight.dim() - 2))
    return weights
