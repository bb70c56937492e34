"""Small members of the families of torchvision, and the table of all of them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import (
    DenseNet,
    MNASNet,
    MobileNetV2,
    ResNet,
    ShuffleNetV2,
    SqueezeNet,
    SwinTransformer,
    VisionTransformer,
)
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.maxvit import MaxVit
from torchvision.models.resnet import Bottleneck
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

from compression.apply import ApplyContext, apply
from compression.certificate import certify
from compression.decisions import PruneChannels
from compression.export import export_onnx, parity
from compression.plan import Plan
from compression.survey import survey
from tests.benchmarks.coverage import GOLDEN, TARGET, names
from tests.builders import seeded

SHAPE = (3, 32, 32)

_SWIN = {"patch_size": [4, 4], "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 4]}


def swin() -> Any:
    return SwinTransformer(**_SWIN, window_size=[3, 3], num_classes=10)


def swin_v2() -> Any:
    return SwinTransformer(
        **_SWIN,
        window_size=[3, 3],
        num_classes=10,
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )


def vit() -> Any:
    return VisionTransformer(32, 16, 2, 4, 16, 24, num_classes=10)


def maxvit() -> Any:
    return MaxVit((32, 32), 8, 2, [8, 12], [1, 1], 4, 0.0, num_classes=10)


def convnext() -> Any:
    return ConvNeXt([CNBlockConfig(8, 12, 1), CNBlockConfig(12, None, 1)], num_classes=10)


FAMILIES: Mapping[str, Callable[[], nn.Module]] = {
    "resnext": lambda: ResNet(Bottleneck, [1, 1, 1, 1], 10, groups=4, width_per_group=8),
    "densenet": lambda: DenseNet(4, (2, 2), 8, num_classes=10),
    "shufflenet": lambda: ShuffleNetV2([2, 2, 2], [8, 16, 24, 32, 40], num_classes=10),
    "mobilenet": lambda: MobileNetV2(10, width_mult=0.1),
    "mnasnet": lambda: MNASNet(0.1, 10),
    "squeezenet": lambda: SqueezeNet("1_1", 10),
    "convnext": convnext,
    "vit": vit,
    "swin": swin,
    "swin_v2": swin_v2,
    "maxvit": maxvit,
}


@functools.cache
def context(name: str) -> ApplyContext:
    model = seeded(FAMILIES[name])
    return ApplyContext.build(model, survey(model, SHAPE), SHAPE)


def half(name: str) -> Plan:
    return Plan.of(
        {
            site.name: [PruneChannels(keep_channels=max(1, site.channels // 2))]
            for site in context(name).survey.prunable()
        }
    )


@pytest.mark.parametrize("name", list(FAMILIES))
def test_half_of_every_site_of_a_family_is_certified_and_exported(name: str) -> None:
    plan = half(name)
    applied = apply(plan, context(name))
    certify(context(name).model, applied, plan, SHAPE)
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    applied.model(x).sum().backward()
    assert parity(export_onnx(applied.model, SHAPE), applied.model, x) <= 1e-4
    assert len(context(name).survey.prunable()) >= 2


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("vit", {"encoder.layers.encoder_layer_0.self_attention": 4}),
        ("swin", {"features.1.0.attn.qkv": 2, "features.3.0.attn.qkv": 4}),
        ("swin_v2", {"features.1.1.attn.qkv": 2, "features.3.0.attn.qkv": 4}),
        ("maxvit", {"blocks.0.layers.0.layers.grid_attention.attn_layer.1.to_qkv": 2}),
    ],
)
def test_attention_heads_are_sites(name: str, heads: Mapping[str, int]) -> None:
    found = {site.name: site.channels for site in context(name).survey.prunable()}
    assert {site: found.get(site) for site in heads} == heads


@pytest.mark.parametrize(("name", "head"), [("vit", 4), ("swin", 4), ("swin_v2", 4), ("maxvit", 4)])
def test_the_attributes_of_an_attention_layer_say_what_its_tensors_are(
    name: str, head: int
) -> None:
    thin = apply(half(name), context(name)).model
    kept = {}
    for path, module in thin.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            kept[path] = module.num_heads
            assert module.in_proj_weight.shape == (3 * module.num_heads * head, module.embed_dim)
            assert module.out_proj.in_features == module.num_heads * module.head_dim
        elif hasattr(module, "qkv") or hasattr(module, "to_qkv"):
            attention = module
            count = attention.n_heads if hasattr(module, "to_qkv") else attention.num_heads
            entrance = attention.to_qkv if hasattr(module, "to_qkv") else attention.qkv
            kept[path] = count
            assert entrance.out_features == entrance.weight.shape[0] == 3 * count * head
    decided = {
        site.name.removesuffix(".qkv").removesuffix(".to_qkv"): max(1, site.channels // 2)
        for site in context(name).survey.prunable()
    }
    assert kept
    assert kept == {path: decided[path] for path in kept}


def test_a_convolution_in_groups_keeps_its_groups() -> None:
    thin = apply(half("resnext"), context("resnext")).model
    convolution = thin.get_submodule("layer1.0.conv2")
    assert isinstance(convolution, nn.Conv2d)
    assert (convolution.groups, convolution.in_channels, convolution.out_channels) == (4, 16, 16)
    assert tuple(convolution.weight.shape) == (16, 4, 3, 3)


def test_the_table_reaches_the_target_and_every_refusal_has_a_reason() -> None:
    rows = {row["model"]: row for row in json.loads(GOLDEN.read_text())}
    assert set(rows) <= set(names())
    covered = {name: row for name, row in rows.items() if row["refused"] is None}
    assert len(covered) >= TARGET
    assert all(rows[name]["refused"] for name in set(rows) - set(covered))
    assert all(row["params_after"] < row["params"] for row in covered.values())
    assert all(row["parity"] <= 1e-4 for row in covered.values())
