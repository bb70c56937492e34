"""The forward passes for fewer heads equal those of the whole layers where no head is gone."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from compression.attention import attention_of, open_to_fewer_heads
from compression.surgery import Cut, cuts_of, thin
from tests.builders import seeded


def opened(module: nn.Module) -> nn.Module:
    copied = copy.deepcopy(module)
    open_to_fewer_heads(copied)
    return copied


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(7, 9), (6, 6), (3, 8), (2, 3)])
@pytest.mark.parametrize("shift", [[0, 0], [1, 1], [1, 0]])
@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
def test_shifted_windows(kind: type[nn.Module], shift: list[int], size: tuple[int, int]) -> None:
    layer = seeded(lambda: kind(12, [3, 3], shift, 3))
    x = normal(2, *size, 12)
    assert torch.allclose(opened(layer)(x), layer(x), atol=1e-5)


def test_partitions() -> None:
    layer = seeded(lambda: RelativePositionalMultiHeadAttention(12, 4, 9))
    x = normal(2, 5, 9, 12)
    assert torch.allclose(opened(layer)(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("masks", ["none", "boolean", "added"])
def test_self_attention(batch_first: bool, need_weights: bool, masks: str) -> None:
    layer = seeded(lambda: nn.MultiheadAttention(12, 3, batch_first=batch_first))
    x = normal(4, 5, 12)
    batch, tokens = (4, 5) if batch_first else (5, 4)
    mask = torch.ones(tokens, tokens).triu(1).bool()
    padding = torch.zeros(batch, tokens).bool()
    padding[0, -1] = True
    if masks == "added":
        mask, padding = (torch.where(m, -torch.inf, 0.25) for m in (mask, padding))
    options: dict[str, Any] = {"need_weights": need_weights}
    if masks != "none":
        options |= {"attn_mask": mask, "key_padding_mask": padding}
    expected, weights = layer(x, x, x, **options)
    actual, found = opened(layer)(x, x, x, **options)
    assert torch.allclose(actual, expected, atol=1e-5)
    assert (found is None) == (weights is None)
    assert found is None or torch.allclose(found, weights, atol=1e-6)


def test_an_unbatched_query_of_another_length_is_attended() -> None:
    layer = seeded(lambda: nn.MultiheadAttention(12, 3))
    query, key = normal(4, 12), normal(6, 12)
    expected, weights = layer(query, key, key, average_attn_weights=False)
    actual, found = opened(layer)(query, key, key, average_attn_weights=False)
    assert torch.allclose(actual, expected, atol=1e-5)
    assert torch.allclose(found, weights, atol=1e-6)


def test_a_thinned_layer_is_copied_and_pickled_with_its_forward_pass() -> None:
    model = nn.ModuleDict({"attn": seeded(lambda: nn.MultiheadAttention(12, 3))})
    attention = attention_of("attn", model.get_submodule("attn"))
    assert attention is not None
    cuts = cuts_of(model, [attention.coupling], {"attn": torch.tensor([0, 2]).numpy()})
    thinned = thin(model, cuts).get_submodule("attn")
    assert isinstance(thinned, nn.MultiheadAttention)
    x = normal(4, 2, 12)
    expected = thinned(x, x, x)[0]
    other = copy.deepcopy(thinned)
    with torch.no_grad():
        thinned.in_proj_weight.zero_()
    assert torch.equal(other(x, x, x)[0], expected)
    assert torch.equal(pickle.loads(pickle.dumps(other))(x, x, x)[0], expected)
    assert isinstance(cuts["attn"], Cut)


def test_layers_with_keys_of_their_own_width_keep_their_heads() -> None:
    attention = attention_of("attn", nn.MultiheadAttention(12, 3, kdim=8))
    assert attention is not None
    assert attention.coupling.obstacle == "'attn' has keys or values of their own kind"


def test_other_layers_are_no_attention() -> None:
    assert attention_of("linear", nn.Linear(3, 3)) is None
