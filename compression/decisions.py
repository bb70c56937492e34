"""What can be decided at a site: a tagged union of plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from compression.errors import PlanInvalid

FactorizeMethod = Literal["svd", "channel", "spatial", "tucker2", "cp", "kronecker"]
WeightQuantizer = Literal["uniform", "lq", "lsq", "outlier", "pow2", "normalized"]
SparsityCriterion = Literal["magnitude", "obs"]
Refit = Literal["none", "least_squares"]
Calibrator = Literal["minmax", "percentile", "entropy", "mse"]
Rounding = Literal["nearest", "adaround"]


def _one_of(owner: str, field: str, value: str, known: Any) -> None:
    if value not in get_args(known):
        raise PlanInvalid(
            f"{owner}: {field} is {value!r}; choose from {', '.join(get_args(known))}"
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DropBlock:
    """Replace a block whose input and output have one shape by the identity."""

    kind: ClassVar[str] = "drop_block"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MergePool:
    """Let a convolution do the work of the pool behind it by a longer stride.

    Attributes:
        refit: `least_squares` fits its filters to what the pool gave on calibration inputs.
    """

    kind: ClassVar[str] = "merge_pool"
    refit: Refit = "least_squares"

    def __post_init__(self) -> None:
        _one_of(self.kind, "refit", self.refit, Refit)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PruneChannels:
    """Keep `keep_channels` of a channel group, ranked by `selector`.

    Attributes:
        keep_channels: Channels (attention heads at a site of heads) that stay, at least 1.
        selector: Name in `compression.catalogue.SELECTORS`.
        refit: What is done to the layers that consume the channels: `least_squares` fits them
            to their former outputs on calibration inputs.
    """

    kind: ClassVar[str] = "prune_channels"
    keep_channels: int
    selector: str = "l2"
    refit: Refit = "none"

    def __post_init__(self) -> None:
        if self.keep_channels < 1:
            raise PlanInvalid(f"keep_channels is {self.keep_channels}; at least 1 is required")
        _one_of(self.kind, "refit", self.refit, Refit)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Factorize:
    """Replace a layer by two or more thinner ones in sequence.

    Attributes:
        method: `svd` for linear layers and 1 x 1 convolutions; `channel` (k x k to r, 1 x 1 from
            r), `spatial` (k x 1 to r, 1 x k from r), `tucker2` (1 x 1, k x k, 1 x 1), `cp` and
            `kronecker` for convolutions.
        rank_ratio: Rank as a share of the rank at which the parts have as many parameters as the
            layer they replace (after channels were pruned); in (0, 1).
        whiten: Minimise the error of the layer's outputs on calibration inputs, not that of its
            weights.
    """

    kind: ClassVar[str] = "factorize"
    method: FactorizeMethod
    rank_ratio: float
    whiten: bool = False

    def __post_init__(self) -> None:
        _one_of(self.kind, "method", self.method, FactorizeMethod)
        if not 0.0 < self.rank_ratio < 1.0:
            raise PlanInvalid(f"factorize: rank_ratio is {self.rank_ratio}; it must be in (0, 1)")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sparsify:
    """Set weights to zero and keep them there.

    At a layer's site it decides that layer; at the model's site it decides all layers but the
    first and the last under one global threshold.

    Attributes:
        sparsity: Share of zeros, in (0, 1); with a pattern it is that of the pattern.
        pattern: `unstructured`, or `n:m` where at most n of m weights in a row of the reduction
            axis stay.
        criterion: `magnitude`, or `obs` (layer-wise optimal brain surgeon on calibration inputs).
    """

    kind: ClassVar[str] = "sparsify"
    sparsity: float = 0.5
    pattern: str = "unstructured"
    criterion: SparsityCriterion = "magnitude"

    def __post_init__(self) -> None:
        _one_of(self.kind, "criterion", self.criterion, SparsityCriterion)
        if not 0.0 < self.sparsity < 1.0:
            raise PlanInvalid(f"sparsify: sparsity is {self.sparsity}; it must be in (0, 1)")
        if self.pattern != "unstructured":
            stays, of = self.n_of_m()
            if abs(self.sparsity - (1 - stays / of)) > 1e-9:
                raise PlanInvalid(
                    f"sparsify: pattern {self.pattern!r} means a sparsity of {1 - stays / of:g}; "
                    f"{self.sparsity:g} was given"
                )

    def n_of_m(self) -> tuple[int, int]:
        """Return n and m of the pattern.

        Raises:
            PlanInvalid: It is not `n:m` with 0 < n < m <= 32.
        """
        left, colon, right = self.pattern.partition(":")
        if not (colon and left.isdecimal() and right.isdecimal()):
            raise PlanInvalid(
                f"sparsify: pattern is {self.pattern!r}; unstructured or n:m is known"
            )
        stays, of = int(left), int(right)
        if not 0 < stays < of <= 32:
            raise PlanInvalid(f"sparsify: pattern is {self.pattern!r}; 0 < n < m <= 32 is required")
        return stays, of


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeWeights:
    """Store a layer's weights in few bits; they are computed with as floats (size only).

    At a layer's site it decides that layer, at the model's site all convolutions and linear
    layers. The first and the last layer keep 8 bits there.

    Attributes:
        bits: 2 to 8.
        quantizer: `uniform` (per output channel, symmetric), `lq` (LQ-Nets), `lsq` (learned step
            size), `outlier` (value-aware: the largest 1 % in 16 bits), `pow2` (INQ: powers of
            two) or `normalized` (weights normalised first).
    """

    kind: ClassVar[str] = "quantize_weights"
    bits: int
    quantizer: WeightQuantizer = "uniform"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise PlanInvalid(f"quantize_weights: bits is {self.bits}; 2..8 is allowed")
        _one_of(self.kind, "quantizer", self.quantizer, WeightQuantizer)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Let a layer's weights take values of a small codebook (size only).

    At a layer's site it decides that layer, at the model's site all convolutions and linear
    layers.

    Attributes:
        entries: Size of the codebook, 2 to 4096; small layers get fewer.
        block: Weights per entry: 1 shares scalars, more shares vectors of that many neighbouring
            weights of one filter (product quantization).
    """

    kind: ClassVar[str] = "share"
    entries: int
    block: int = 1

    def __post_init__(self) -> None:
        if not 2 <= self.entries <= 4096:
            raise PlanInvalid(f"share: entries is {self.entries}; 2..4096 is allowed")
        if not 1 <= self.block <= 64:
            raise PlanInvalid(f"share: block is {self.block}; 1..64 is allowed")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quantize:
    """Store weights and compute activations as integers (static post-training quantization).

    Attributes:
        weight_bits: Bits of a weight; 8.
        activation_bits: Bits of an activation; 8.
        calibrator: How activation ranges are found.
        equalize: Even out the ranges of neighbouring layers' channels first.
        bias_correction: Remove the mean shift of each layer's outputs afterwards.
        rounding: Of weights: `nearest`, or `adaround` (learned on calibration inputs).
        keep_float: Names of layers that stay in float32, sorted.
    """

    kind: ClassVar[str] = "quantize"
    weight_bits: int = 8
    activation_bits: int = 8
    calibrator: Calibrator = "minmax"
    equalize: bool = False
    bias_correction: bool = False
    rounding: Rounding = "nearest"
    keep_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.weight_bits, self.activation_bits) != (8, 8):
            raise PlanInvalid(
                f"quantize asks for {self.weight_bits}/{self.activation_bits} bits; 8/8 exists"
            )
        _one_of(self.kind, "calibrator", self.calibrator, Calibrator)
        _one_of(self.kind, "rounding", self.rounding, Rounding)
        object.__setattr__(self, "keep_float", tuple(sorted(self.keep_float)))


Decision = (
    DropBlock
    | MergePool
    | PruneChannels
    | Factorize
    | Sparsify
    | QuantizeWeights
    | Share
    | Quantize
)

ORDER: tuple[type[Decision], ...] = (
    DropBlock,
    MergePool,
    PruneChannels,
    Factorize,
    Sparsify,
    QuantizeWeights,
    Share,
    Quantize,
)
"""The one order in which decisions are carried out, whatever the plan's own order."""

DECISIONS: Mapping[str, type[Decision]] = {decision.kind: decision for decision in ORDER}


_LATER: Mapping[str, frozenset[str]] = {
    PruneChannels.kind: frozenset({"refit"}),
    Quantize.kind: frozenset({"equalize", "bias_correction", "rounding"}),
}


def decision_to_json(decision: Decision) -> dict[str, Any]:
    """Return the decision as plain JSON data with its kind.

    Fields that came later are left out at their defaults, so the digest of a plan stays what it
    was before they existed.
    """
    data: dict[str, Any] = {"kind": decision.kind}
    for field in dataclasses.fields(decision):
        value = getattr(decision, field.name)
        if field.name in _LATER.get(decision.kind, ()) and value == field.default:
            continue
        data[field.name] = list(value) if isinstance(value, tuple) else value
    return data


def decision_from_json(data: Mapping[str, Any]) -> Decision:
    """Rebuild a decision; fields left out have their defaults.

    Raises:
        PlanInvalid: The kind is unknown, or a field is missing, unknown or out of range.
    """
    fields = dict(data)
    kind = fields.pop("kind", None)
    if kind not in DECISIONS:
        raise PlanInvalid(f"Unknown decision kind {kind!r}; known: {', '.join(sorted(DECISIONS))}")
    fields = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
    try:
        return DECISIONS[kind](**fields)
    except TypeError as error:
        raise PlanInvalid(f"Decision {kind!r}: {error}") from error
