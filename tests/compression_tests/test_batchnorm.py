"""Recalibrated statistics are the exact ones of all batches together."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compression.backend import Backend
from compression.errors import CompressionError
from compression.models.cifar_resnet import cifar_resnet
from compression.recover.batchnorm import Moments, recalibrate


def test_moments_merge_to_the_whole() -> None:
    values = torch.randn(100, 3, dtype=torch.float64)
    moments = Moments()
    for group in torch.split(values, [1, 29, 70]):
        mean = group.mean(0)
        moments.merge(len(group), mean, (group - mean).square().sum(0))
    torch.testing.assert_close(moments.mean, values.mean(0))
    torch.testing.assert_close(moments.squares / 99, values.var(0))


@pytest.mark.parametrize("bf16", [False, True])
def test_first_layer_gets_exact_statistics(bf16: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    data = torch.randn(50, 3, 6, 6) * torch.tensor([1.0, 2.0, 5.0]).view(1, 3, 1, 1) + 1.5
    recalibrate(model, torch.split(data, [20, 20, 10]), Backend(bf16=bf16))
    first = model[0]
    assert isinstance(first, nn.BatchNorm2d)
    assert first.running_mean is not None
    assert first.running_var is not None
    torch.testing.assert_close(first.running_mean, data.mean((0, 2, 3)))
    torch.testing.assert_close(first.running_var, data.transpose(0, 1).flatten(1).var(1))
    for layer in (model[0], model[2]):
        assert layer.get_buffer("running_var").dtype == torch.float32
        assert layer.get_buffer("num_batches_tracked") == 3


def test_only_batchnorm_buffers_change() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(cifar_resnet(20), nn.Dropout(0.5)).eval()
    model[1].train()
    before = copy.deepcopy(model.state_dict())
    momenta = [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    batches = list(torch.randn(3, 16, 3, 32, 32))
    recalibrate(model, batches, Backend(channels_last=True))
    for key, value in model.state_dict().items():
        is_statistic = key.rsplit(".", 1)[1] in (
            "running_mean",
            "running_var",
            "num_batches_tracked",
        )
        assert torch.equal(value, before[key]) != is_statistic, key
    assert momenta == [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not model[0].training
    assert model[1].training
    # What was there before has no influence: a second time gives the same.
    once = copy.deepcopy(model.state_dict())
    recalibrate(model, batches, Backend(channels_last=True))
    for key, value in model.state_dict().items():
        assert torch.equal(value, once[key]), key


def test_refusals() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1))
    with pytest.raises(CompressionError, match="no batch"):
        recalibrate(model, [], Backend())
    with pytest.raises(CompressionError, match=r"layer '0'.*not finite"):
        recalibrate(model, [torch.full((2, 1, 2, 2), float("inf"))], Backend())
    recalibrate(nn.Sequential(nn.ReLU()), [], Backend())
