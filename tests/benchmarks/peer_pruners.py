"""Torch-Pruning's own pruners on a CIFAR ResNet, at a bound on MACs.

Reference:
    Fang et al. (2023), "DepGraph: Towards Any Structural Pruning", https://arxiv.org/abs/2301.12900;
    Fang et al. (2024), "Isomorphic Pruning for Vision Models", https://arxiv.org/abs/2407.04616.

The library asks for a pruning ratio, not for MACs; the ratio is found by bisection. Each contender
runs twice: on the whole network, as its documentation shows, and with the residual stream among
the `ignored_layers`, because the library passes channel indices through the padding of the
parameter-free shortcuts unchanged: either the layers behind no longer fit, which is a failed row,
or the channels that are added to each other are not those that were, which are counted.

Isomorphic ranking does not differ from global ranking where the stream is kept: the inner widths
of all blocks are of one kind.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.counting import count_macs, count_params
from compression.models.cifar_resnet import BasicBlock, CifarResNet

SHAPE = (3, 32, 32)
HALVINGS = 14
MOST_PRUNED = 0.95
"""Above this ratio no network is left to speak of."""

Criterion = Literal["l2", "bn_scale", "taylor"]
Scope = Literal["uniform", "global", "isomorphic"]
Labelled = Sequence[tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True, slots=True)
class PeerPruner:
    """One contender.

    Attributes:
        criterion: Group importance: L2 norms, BatchNorm scales, or first-order Taylor.
        scope: One ratio for each layer, one ranking of all, or one of each kind of group.
        keeps_stream: Whether the residual stream is ignored.
    """

    criterion: Criterion
    scope: Scope
    keeps_stream: bool

    @property
    def name(self) -> str:
        """Return how its row is called."""
        stream = ", stream kept" if self.keeps_stream else ""
        return f"torch_pruning {self.criterion} {self.scope}{stream}"


_RANKINGS: tuple[tuple[Criterion, Scope], ...] = (
    ("l2", "uniform"),
    ("l2", "global"),
    ("l2", "isomorphic"),
    ("bn_scale", "global"),
    ("taylor", "global"),
)

CONTENDERS: tuple[PeerPruner, ...] = tuple(
    PeerPruner(criterion, scope, keeps_stream)
    for keeps_stream in (False, True)
    for criterion, scope in _RANKINGS
)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PeerPruned:
    """What a contender made.

    Attributes:
        model: In eval mode, with the dense network's statistics of the channels that stayed.
        ratio: The pruning ratio that it was given.
        misaligned: Channels at shortcuts that are added to others than in the dense network.
    """

    model: nn.Module
    ratio: float
    misaligned: int


def installed() -> bool:
    """Return whether Torch-Pruning is there."""
    return importlib.util.find_spec("torch_pruning") is not None


def pruned_to(dense: CifarResNet, peer: PeerPruner, max_macs: int, batches: Labelled) -> PeerPruned:
    """Return the contender's network of the smallest ratio found that keeps the bound.

    Args:
        dense: Left as it is.
        peer: Who prunes.
        max_macs: Bound, counted by `compression.counting`.
        batches: Labelled inputs, for gradients.

    Raises:
        ValueError: `MOST_PRUNED` does not keep the bound, or the library left a network whose
            layers do not fit each other.
    """
    gradients = _gradients(dense, batches) if peer.criterion == "taylor" else {}
    low, high = 0.0, MOST_PRUNED
    best: PeerPruned | None = None
    ratio = high
    for _ in range(HALVINGS):
        made = _pruned(dense, peer, ratio, gradients)
        try:
            macs = count_macs(made.model, SHAPE)
        except RuntimeError as error:
            raise ValueError(
                f"{peer.name}: at ratio {ratio:.4f} the network no longer runs: {error}"
            ) from error
        if macs <= max_macs:
            best, high = made, ratio
        elif best is None:
            raise ValueError(f"{peer.name}: ratio {ratio} leaves more than {max_macs} MACs")
        else:
            low = ratio
        ratio = (low + high) / 2
    assert best is not None
    return best


def _pruned(
    dense: CifarResNet, peer: PeerPruner, ratio: float, gradients: dict[str, Tensor]
) -> PeerPruned:
    # The benchmark must start, and say so, where the peer is absent.
    import torch_pruning

    model = copy.deepcopy(dense).eval()
    for name, parameter in model.named_parameters():
        if name in gradients:
            parameter.grad = gradients[name].clone()
    _tag(model)
    importance = {
        "l2": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2),
        "bn_scale": torch_pruning.importance.BNScaleImportance,
        "taylor": torch_pruning.importance.GroupTaylorImportance,
    }[peer.criterion]()
    algorithms = torch_pruning.pruner
    kind = algorithms.BNScalePruner if peer.criterion == "bn_scale" else algorithms.MagnitudePruner
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind(
            model,
            torch.zeros(1, *SHAPE),
            importance=importance,
            pruning_ratio=ratio,
            global_pruning=peer.scope != "uniform",
            isomorphic=peer.scope == "isomorphic",
            ignored_layers=[model.linear, *(_stream(model) if peer.keeps_stream else ())],
        ).step()
    if count_params(model) == count_params(dense) and ratio > 0.1:
        raise ValueError(f"{peer.name}: nothing was pruned at ratio {ratio}")
    kept = _untag(model, dense)
    model.zero_grad(set_to_none=True)
    return PeerPruned(model=model, ratio=ratio, misaligned=_misaligned(model, kept))


def _stream(model: CifarResNet) -> list[nn.Module]:
    blocks = [module for module in model.modules() if isinstance(module, BasicBlock)]
    return [model.conv1, *(block.conv2 for block in blocks)]


def _gradients(dense: nn.Module, batches: Labelled) -> dict[str, Tensor]:
    model = copy.deepcopy(dense).eval()
    for inputs, labels in batches:
        (functional.cross_entropy(model(inputs), labels) / len(batches)).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}


def _tag(model: nn.Module) -> None:
    """Write each channel's number where no criterion looks: into the running means."""
    for norm in _norms(model).values():
        norm.running_mean = torch.arange(norm.num_features, dtype=torch.float32)


def _untag(model: nn.Module, dense: nn.Module) -> dict[str, Tensor]:
    """Return the channels that stayed at each BatchNorm, whose means are put back."""
    kept = {}
    whole = _norms(dense)
    for name, norm in _norms(model).items():
        means = whole[name].running_mean
        assert norm.running_mean is not None
        assert means is not None
        kept[name] = norm.running_mean.long()
        norm.running_mean = means[kept[name]].clone()
    return kept


def _misaligned(model: CifarResNet, kept: dict[str, Tensor]) -> int:
    """Count what the padded shortcuts add to another channel than in the dense network."""
    wrong = 0
    stream = "bn1"
    for name, block in model.named_modules():
        if isinstance(block, BasicBlock) and block.shortcut is not None:
            before = block.shortcut.channels_before
            source, target = kept[stream], kept[f"{name}.bn2"]
            landed = target[before : before + len(source)]
            wrong += int((landed != source + before).sum())
            stream = f"{name}.bn2"
    return wrong
