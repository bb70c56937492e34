from __future__ import annotations

import pytest

from compression.choices import KINDS, parse, text_of
from compression.decisions import (
    DECISIONS,
    DropBlock,
    Factorize,
    PruneChannels,
    QuantizeWeights,
    Share,
    Sparsify,
)
from compression.errors import PlanInvalid


@pytest.mark.parametrize(
    ("decision", "text"),
    [
        (DropBlock(), "drop"),
        (Factorize(method="spatial", rank_ratio=0.5), "spatial 0.5"),
        (Factorize(method="svd", rank_ratio=0.25, whiten=True), "svd 0.25 whitened"),
        (Sparsify(sparsity=0.8), "0.8"),
        (Sparsify(sparsity=0.5, pattern="2:4"), "0.5 2:4"),
        (Sparsify(sparsity=0.7, criterion="obs"), "0.7 obs"),
        (Sparsify(sparsity=0.5, pattern="4:8", criterion="obs"), "0.5 4:8 obs"),
        (QuantizeWeights(bits=4), "4"),
        (QuantizeWeights(bits=3, quantizer="lq"), "3 lq"),
        (Share(entries=16), "16"),
        (Share(entries=256, block=9), "256 9"),
    ],
)
def test_a_decision_and_its_text_stand_for_each_other(decision: DropBlock, text: str) -> None:
    assert text_of(decision) == text
    assert parse(decision.kind, text) == decision


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("drop_block", "yes", "'yes' is not 'drop'"),
        ("factorize", "spatial", "'spatial' is not a method, a rank ratio"),
        ("factorize", "spatial half", "'spatial half' is not"),
        ("factorize", "sideways 0.5", "method is 'sideways'"),
        ("factorize", "svd 1.5", "rank_ratio is 1.5"),
        ("sparsify", "0.5 2:4 obs more", "is not a sparsity"),
        ("sparsify", "0.6 2:4", "'2:4' means a sparsity of 0.5"),
        ("quantize_weights", "1", "bits is 1"),
        ("share", "", "'' is not a number of entries"),
        ("share", "256 65", "block is 65"),
    ],
)
def test_a_text_that_stands_for_nothing_is_refused(kind: str, text: str, message: str) -> None:
    with pytest.raises(PlanInvalid, match=message):
        parse(kind, text)


def test_channels_and_integers_are_not_chosen_by_texts() -> None:
    assert set(DECISIONS) - set(KINDS) == {"prune_channels", "quantize"}
    with pytest.raises(PlanInvalid, match="prune_channels is not chosen by a text"):
        text_of(PruneChannels(keep_channels=1))
