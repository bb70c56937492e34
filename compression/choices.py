"""Decisions as short texts: the choices of a knob, and what a job's `methods` lists.

`drop` | `merge` | `spatial 0.5`, `svd 0.25 whitened` | `0.8`, `0.5 2:4`, `0.7 obs` | `4`, `3 lq`
| `16`, `256 9`; what each word means is in `compression.decisions`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

from compression.decisions import (
    Decision,
    DropBlock,
    Factorize,
    MergePool,
    QuantizeWeights,
    Share,
    Sparsify,
    SparsityCriterion,
)
from compression.errors import PlanInvalid


def parse(kind: str, text: str) -> Decision:
    """Return the decision of a kind that a text stands for.

    Raises:
        PlanInvalid: It stands for none; the message says what is expected.
    """
    reader, expected = _READERS[kind]
    try:
        return reader(*text.split())
    except PlanInvalid:
        raise
    except (TypeError, ValueError) as error:
        raise PlanInvalid(f"{kind}: {text!r} is not {expected}") from error


def text_of(decision: Decision) -> str:
    """Return the one text of a decision, from which `parse` makes an equal one."""
    match decision:
        case DropBlock():
            return "drop"
        case MergePool(refit=refit):
            return "merge" if refit == "least_squares" else "merge unfitted"
        case Factorize(method=method, rank_ratio=ratio, whiten=whiten):
            return f"{method} {ratio:g}" + (" whitened" if whiten else "")
        case Sparsify(sparsity=sparsity, pattern=pattern, criterion=criterion):
            words = [f"{sparsity:g}"]
            words += [pattern] if pattern != Sparsify().pattern else []
            return " ".join([*words, *([criterion] if criterion != "magnitude" else [])])
        case QuantizeWeights(bits=bits, quantizer=quantizer):
            return f"{bits}" + (f" {quantizer}" if quantizer != "uniform" else "")
        case Share(entries=entries, block=block):
            return f"{entries}" + (f" {block}" if block != 1 else "")
    raise PlanInvalid(f"{decision.kind} is not chosen by a text")


def _drop(word: str) -> DropBlock:
    if word != "drop":
        raise ValueError(word)
    return DropBlock()


def _merge(word: str, unfitted: str = "") -> MergePool:
    if word != "merge" or unfitted not in ("", "unfitted"):
        raise ValueError(word)
    return MergePool(refit="none" if unfitted else "least_squares")


def _factorize(method: Any, ratio: str, whitened: str = "") -> Factorize:
    if whitened not in ("", "whitened"):
        raise ValueError(whitened)
    return Factorize(method=method, rank_ratio=float(ratio), whiten=bool(whitened))


def _sparsify(sparsity: str, *rest: str) -> Sparsify:
    pattern, criterion = Sparsify().pattern, Sparsify().criterion
    for word in rest:
        if word in get_args(SparsityCriterion):
            criterion = word  # type: ignore[assignment]  # it is one of the names
        else:
            pattern = word
    if len(rest) > 2:
        raise ValueError(rest)
    return Sparsify(sparsity=float(sparsity), pattern=pattern, criterion=criterion)


def _quantize_weights(bits: str, quantizer: Any = "uniform") -> QuantizeWeights:
    return QuantizeWeights(bits=int(bits), quantizer=quantizer)


def _share(entries: str, block: str = "1") -> Share:
    return Share(entries=int(entries), block=int(block))


_READERS: Mapping[str, tuple[Callable[..., Decision], str]] = {
    DropBlock.kind: (_drop, "'drop'"),
    MergePool.kind: (_merge, "'merge' or 'merge unfitted'"),
    Factorize.kind: (_factorize, "a method, a rank ratio and perhaps 'whitened'"),
    Sparsify.kind: (_sparsify, "a sparsity, perhaps a pattern n:m, perhaps a criterion"),
    QuantizeWeights.kind: (_quantize_weights, "a number of bits and perhaps a quantizer"),
    Share.kind: (_share, "a number of entries and perhaps a block length"),
}

KINDS = tuple(_READERS)
"""Kinds of decisions that are chosen by a text, and the fields of their knobs."""
