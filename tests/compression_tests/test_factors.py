from __future__ import annotations

import dataclasses
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compression.counting import count_macs, count_params
from compression.decisions import Factorize, FactorizeMethod
from compression.errors import PlanInvalid
from compression.factors import (
    break_even_rank,
    expand,
    kronecker_shape,
    ranks,
    refusal,
    split_cost,
)
from compression.layer_cost import LayerCost
from compression.primitives.split_layers import chain
from compression.survey import survey

METHODS: tuple[FactorizeMethod, ...] = get_args(FactorizeMethod)


def row(layer: nn.Module, shape: tuple[int, int, int]) -> LayerCost:
    rows = survey(nn.Sequential(layer, nn.Flatten()), shape).costs.layers
    return dataclasses.replace(rows[0], in_ties=(), out_ties=())


@pytest.mark.parametrize(
    ("method", "window", "expected"),
    [
        ("svd", (1, 1), 16 * 32 / (16 + 32)),
        ("channel", (3, 3), 16 * 32 * 9 / (16 * 9 + 32)),
        ("spatial", (3, 3), 16 * 32 * 3 / (16 + 32)),
        ("spatial", (3, 5), 16 * 32 * 15 / (16 * 3 + 32 * 5)),
        ("cp", (3, 3), 16 * 32 * 9 / (16 + 32 + 6)),
        # 16 = 4 x 4 and 32 = 8 x 4.
        ("kronecker", (3, 3), 16 * 32 * 9 / (8 * 4 + 4 * 4 * 9)),
    ],
)
def test_the_break_even_rank_is_its_closed_form(
    method: FactorizeMethod, window: tuple[int, int], expected: float
) -> None:
    assert break_even_rank(method, 16, 32, window) == pytest.approx(expected)


def test_tucker_breaks_even_where_its_parts_have_the_weights_of_the_layer() -> None:
    n_in, n_out, k2 = 24, 40, 9
    r1 = break_even_rank("tucker2", n_in, n_out, (3, 3))
    r2 = r1 * n_out / n_in
    assert n_in * r1 + r1 * r2 * k2 + r2 * n_out == pytest.approx(n_in * n_out * k2)


def test_kronecker_shapes_are_the_divisors_nearest_to_the_root() -> None:
    assert kronecker_shape(64, 48) == (8, 8, 8, 6)
    assert kronecker_shape(13, 10) == (13, 1, 5, 2)


def test_ranks_round_down_but_an_exact_product_counts() -> None:
    assert ranks(Factorize(method="svd", rank_ratio=0.29), 200, 200, (1, 1)) == (29,)
    assert ranks(Factorize(method="svd", rank_ratio=0.299), 200, 200, (1, 1)) == (29,)
    assert ranks(Factorize(method="svd", rank_ratio=0.01), 20, 20, (1, 1)) == (1,)
    assert ranks(Factorize(method="tucker2", rank_ratio=0.5), 20, 40, (3, 3)) == (8, 17)


@settings(deadline=None, max_examples=60)
@given(
    method=st.sampled_from(METHODS),
    n_in=st.integers(4, 24),
    n_out=st.integers(4, 24),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    bias=st.booleans(),
    ratio=st.floats(0.05, 0.95),
)
def test_the_cost_of_a_convolution_is_that_of_the_built_chain(
    method: FactorizeMethod,
    n_in: int,
    n_out: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    bias: bool,
    ratio: float,
) -> None:
    layer = nn.Conv2d(
        n_in, n_out, kernel, stride=stride, padding=padding, dilation=dilation, bias=bias
    )
    shape = (n_in, 11, 9)
    dense = LayerCost(
        name="layer",
        op="conv",
        in_channels=n_in,
        out_channels=n_out,
        kernel=kernel[0] * kernel[1],
        positions=count_macs(layer, shape) // layer.weight.numel(),
        bias=bias,
        window=kernel,
        grid_in=shape[1:],
        grid_out=tuple(layer(torch.zeros(1, *shape)).shape[2:]),
    )
    decision = Factorize(method=method, rank_ratio=ratio)
    if refusal(dense, decision):
        with pytest.raises(PlanInvalid, match=r"Layer 'layer' cannot be factorized"):
            split_cost(dense, n_in, n_out, decision)
        return
    made = chain(layer, method, ranks(decision, n_in, n_out, kernel))
    weights, macs = split_cost(dense, n_in, n_out, decision)
    assert weights + (n_out if bias else 0) == count_params(made)
    assert macs == count_macs(made, shape)
    scale = n_out if bias and method == "kronecker" else 0
    assert weights <= layer.weight.numel() + scale


def test_the_costs_follow_the_widths_that_pruning_left() -> None:
    dense = row(nn.Conv2d(16, 32, 3, stride=2, padding=1), (16, 16, 16))
    assert (dense.window, dense.grid_in, dense.grid_out) == ((3, 3), (16, 16), (8, 8))
    thin = nn.Conv2d(10, 6, 3, stride=2, padding=1)
    for method in ("channel", "spatial", "tucker2", "cp", "kronecker"):
        decision = Factorize(method=method, rank_ratio=0.5)
        made = chain(thin, decision.method, ranks(decision, 10, 6, (3, 3)))
        weights, macs = split_cost(dense, 10, 6, decision)
        assert (weights + 6, macs) == (count_params(made), count_macs(made, (10, 16, 16)))


def test_linear_layers_on_tokens_cost_every_token() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(16, 24)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mixed: torch.Tensor = self.mix(x.flatten(2).transpose(1, 2)).mean(1)
            return mixed

    dense = row(Tokens(), (16, 5, 5))
    decision = Factorize(method="svd", rank_ratio=0.5)
    r = int(0.5 * 16 * 24 / 40)
    assert split_cost(dense, 16, 24, decision) == (r * 40, r * 40 * 25)
    assert refusal(dense, Factorize(method="kronecker", rank_ratio=0.5)) == (
        "it runs on 25 tokens; kronecker is for one vector per input"
    )


def test_a_linear_layer_of_one_vector_costs_the_built_chain() -> None:
    layer = nn.Linear(24, 20)
    dense = row(nn.Sequential(nn.Flatten(), layer), (24, 1, 1))
    for method in ("svd", "kronecker"):
        decision = Factorize(method=method, rank_ratio=0.7)
        made = nn.Sequential(
            nn.Flatten(), chain(layer, decision.method, ranks(decision, 24, 20, (1, 1)))
        )
        weights, macs = split_cost(dense, 24, 20, decision)
        assert (weights + 20, macs) == (count_params(made), count_macs(made, (24, 1, 1)))


CONV = LayerCost(
    name="c",
    op="conv",
    in_channels=16,
    out_channels=16,
    kernel=9,
    window=(3, 3),
    grid_in=(8, 8),
    grid_out=(8, 8),
)


@pytest.mark.parametrize(
    ("layer", "decision", "reason"),
    [
        ({"groups": 16}, {}, "it has 16 groups, each of which is thin already"),
        ({"window": ()}, {}, "it is no plain two-dimensional convolution or linear layer"),
        ({"calls": 2}, {}, "one forward pass calls it 2 times; exactly once is required"),
        ({"op": "norm"}, {}, "it is neither a convolution nor a linear layer"),
        ({}, {"method": "svd"}, "its window is 3 x 3; svd is for 1 x 1"),
        ({"window": (1, 1)}, {"method": "cp"}, "its window is 1 x 1; cp is for larger ones"),
        ({}, {"method": "cp", "whiten": True}, "whiten goes with svd, channel, spatial, not with"),
        ({"out_channels": 1}, {"method": "channel"}, "break-even rank of channel is 0.99; 2 is"),
    ],
)
def test_what_cannot_be_factorized_is_refused_in_words(
    layer: dict[str, Any], decision: dict[str, Any], reason: str
) -> None:
    changed = dataclasses.replace(CONV, **layer)
    chosen = dataclasses.replace(
        Factorize(method="spatial", rank_ratio=0.5),
        **decision,
    )
    assert (refusal(changed, chosen) or "").startswith(reason) or reason in str(
        refusal(changed, chosen)
    )


def test_a_decision_for_the_model_reaches_inner_layers_and_yields_to_their_own() -> None:
    layers = [dataclasses.replace(CONV, name=name) for name in ("first", "a", "b", "c", "last")]
    layers[3] = dataclasses.replace(layers[3], groups=4)
    own = Factorize(method="channel", rank_ratio=0.25)
    overall = Factorize(method="spatial", rank_ratio=0.5)
    assert expand({"model": overall, "b": own}, layers) == {"a": overall, "b": own}
    assert expand({"b": own}, layers) == {"b": own}
