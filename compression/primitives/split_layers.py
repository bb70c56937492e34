"""The chains of ordinary layers that stand in for one convolution or linear layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compression.decisions import FactorizeMethod
from compression.errors import PlanInvalid
from compression.factors import Window, kronecker_shape

Splittable = nn.Conv2d | nn.Linear


def weight_of(layer: Splittable) -> Tensor:
    """Return the weight as `n_out x n_in x kh x kw`."""
    weight = layer.weight.detach()
    return weight if weight.dim() == 4 else weight[:, :, None, None]


def window(layer: Splittable) -> Window:
    """Return kh, kw; 1, 1 for a linear layer."""
    kh, kw = weight_of(layer).shape[2:]
    return int(kh), int(kw)


def chain(layer: Splittable, method: FactorizeMethod, ranks: Sequence[int]) -> nn.Sequential:
    """Return the chain that replaces `layer`, its weights zero and the bias in its last layer.

    Strides, padding and dilation of each axis go with the factor whose window runs along it.
    Device, dtype, mode and whether weights are trained are those of `layer`.

    Args:
        layer: An ungrouped convolution or a linear layer.
        method: Which chain.
        ranks: As `compression.factors.ranks` returns them.
    """
    # Layers without storage draw no random numbers, so no generator moves.
    with torch.device("meta"):
        if method == "kronecker":
            parts = _kronecker(layer, ranks[0])
        elif isinstance(layer, nn.Linear):
            parts = _linear(layer, ranks[0])
        else:
            parts = _convolutions(layer, method, ranks)
    made = nn.Sequential(*parts).to(layer.weight.dtype).to_empty(device=layer.weight.device)
    made.requires_grad_(layer.weight.requires_grad).train(layer.training)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
        if layer.bias is not None:
            bias = _last(made).bias
            assert bias is not None
            bias.copy_(layer.bias)
            bias.requires_grad_(layer.bias.requires_grad)
            if method == "kronecker":
                _last(made).weight.fill_(1.0)
    return made


def fill(made: nn.Sequential, factors: Sequence[Tensor]) -> None:
    """Write the factors of `compression.primitives.decompositions` into a chain's layers."""
    with torch.no_grad():
        for parameter, factor in zip(factor_weights(made), factors, strict=False):
            parameter.copy_(factor.reshape(parameter.shape))


def factor_weights(made: nn.Sequential) -> list[Tensor]:
    """Return the weights of a chain in order, in the shapes of convolutions' weights."""
    return [part.weight for part in made if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d)]


def _last(made: nn.Sequential) -> nn.Linear | nn.Conv1d | nn.Conv2d:
    layers = [part for part in made if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d)]
    return layers[-1]


def _linear(layer: nn.Linear, rank: int) -> list[nn.Module]:
    return [
        nn.Linear(layer.in_features, rank, bias=False),
        nn.Linear(rank, layer.out_features, bias=layer.bias is not None),
    ]


def _axis(value: tuple[int, ...] | str, axis: int, neutral: int) -> tuple[int, int] | str:
    """Return a setting for one axis of the window, the other one left neutral."""
    if isinstance(value, str):
        return value
    return (value[0], neutral) if axis == 0 else (neutral, value[1])


def _factor(
    layer: nn.Conv2d, n_in: int, n_out: int, *, axis: int, groups: int = 1, bias: bool = False
) -> nn.Conv2d:
    """Return a convolution along one axis of the window of `layer`, or both for axis 2."""
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    return nn.Conv2d(
        n_in,
        n_out,
        kernel if axis == 2 else _axis(kernel, axis, 1),  # type: ignore[arg-type]
        stride=stride if axis == 2 else _axis(stride, axis, 1),  # type: ignore[arg-type]
        padding=layer.padding if axis == 2 else _axis(layer.padding, axis, 0),  # type: ignore[arg-type]
        dilation=dilation if axis == 2 else _axis(dilation, axis, 1),  # type: ignore[arg-type]
        groups=groups,
        bias=bias,
        padding_mode=layer.padding_mode,
    )


def _convolutions(
    layer: nn.Conv2d, method: FactorizeMethod, ranks: Sequence[int]
) -> list[nn.Module]:
    n_in, n_out, bias = layer.in_channels, layer.out_channels, layer.bias is not None
    r = ranks[0]
    match method:
        case "svd" | "channel":
            return [_factor(layer, n_in, r, axis=2), nn.Conv2d(r, n_out, 1, bias=bias)]
        case "spatial":
            return [
                _factor(layer, n_in, r, axis=0),
                _factor(layer, r, n_out, axis=1, bias=bias),
            ]
        case "tucker2":
            return [
                nn.Conv2d(n_in, r, 1, bias=False),
                _factor(layer, r, ranks[1], axis=2),
                nn.Conv2d(ranks[1], n_out, 1, bias=bias),
            ]
        case "cp":
            return [
                nn.Conv2d(n_in, r, 1, bias=False),
                _factor(layer, r, r, axis=0, groups=r),
                _factor(layer, r, r, axis=1, groups=r),
                nn.Conv2d(r, n_out, 1, bias=bias),
            ]
    raise PlanInvalid(f"Method {method!r} has no chain of convolutions")


def _kronecker(layer: Splittable, terms: int) -> list[nn.Module]:
    """Return inner and outer factor with the reshapes that give each its axis.

    The inner factor sees every block of n2 inputs as a row of the batch; the outer one mixes the
    blocks (and terms) while the inner's outputs lie along the height. No reshape moves data.
    """
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        n_out = layer.out_features
        n1, n2, m1, m2 = kronecker_shape(layer.in_features, n_out)
        # `n1 x (terms m2)` and `(n1 terms) x m2` are the same numbers in the same order.
        parts: list[nn.Module] = [
            nn.Unflatten(1, (n1, n2)),
            nn.Linear(n2, terms * m2, bias=False),
            nn.Flatten(1),
            nn.Unflatten(1, (n1 * terms, m2)),
            nn.Conv1d(n1 * terms, m1, 1, bias=False),
            nn.Flatten(1),
        ]
        if bias:
            scale = nn.Conv1d(n_out, n_out, 1, groups=n_out)
            parts += [nn.Unflatten(1, (n_out, 1)), scale, nn.Flatten(1)]
        return parts
    n_out = layer.out_channels
    n1, n2, m1, m2 = kronecker_shape(layer.in_channels, n_out)
    parts = [
        nn.Unflatten(1, (n1, n2)),
        nn.Flatten(0, 1),
        _factor(layer, n2, terms * m2, axis=2),
        nn.Unflatten(0, (-1, n1)),
        nn.Flatten(1, 2),
        nn.Unflatten(1, (n1 * terms, m2)),
        nn.Flatten(2, 3),
        nn.Conv2d(n1 * terms, m1, 1, bias=False),
        nn.Unflatten(2, (m2, -1)),
        nn.Flatten(1, 2),
    ]
    if bias:
        parts.append(nn.Conv2d(n_out, n_out, 1, groups=n_out))
    return parts
