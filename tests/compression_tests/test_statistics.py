from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from compression.artifact import Preprocessing
from compression.backend import FLOAT32
from compression.preprocess import black, preprocess
from compression.recover.augment import crop_and_flip
from compression.recover.batchnorm import recalibrate
from compression.recover.statistics import VIEWS, View, choose_view, seen_as
from tests import cifar

DARK = torch.tensor([-2.0, -1.5])


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
        return logits


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, 2, 8, 8, generator=generator) for _ in range(4)]


@pytest.mark.parametrize("view", VIEWS)
def test_the_view_of_the_training_is_found(view: View) -> None:
    torch.manual_seed(0)
    model = Normed().eval()
    recalibrate(model, seen_as(batches(), view, DARK), FLOAT32)
    before = copy.deepcopy(model.state_dict())
    assert choose_view(model, batches, DARK, FLOAT32) == view
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_a_network_without_statistics_sees_plain_images() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 3)).eval()
    assert choose_view(model, batches, DARK, FLOAT32) == "plain"


def test_a_view_shows_the_same_crops_every_time() -> None:
    first, second = (list(seen_as(batches(), "black_border", DARK)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], batches()[0])
    assert all(torch.equal(a, b) for a, b in zip(
        seen_as(batches(), "plain", DARK), batches(), strict=True))  # fmt: skip


def test_a_border_is_the_black_of_stored_pixels() -> None:
    preprocessing = Preprocessing(scale=255.0, mean=(0.5, 0.25), std=(0.25, 0.5))
    dark = black(preprocessing, 2)
    assert dark.tolist() == [-2.0, -0.5]
    assert black(Preprocessing(), 3).tolist() == [0.0, 0.0, 0.0]
    images = torch.full((16, 2, 4, 4), 7.0)
    crops = crop_and_flip(images, torch.Generator().manual_seed(0), border=dark)
    for channel, value in enumerate(dark.tolist()):
        assert set(crops[:, channel].flatten().tolist()) == {value, 7.0}


@pytest.mark.slow
def test_the_trained_resnet_was_trained_on_crops_with_black_borders(real_data: Path) -> None:
    from tests.benchmarks.cifar_engine import PREPROCESSING, chw

    model = _resnet20(real_data)
    pixels = chw(cifar.images(real_data, "train_0")[:1000])
    inputs = list(torch.split(preprocess(pixels, PREPROCESSING), 250))
    assert choose_view(model, lambda: inputs, black(PREPROCESSING, 3), FLOAT32) == "black_border"


def _resnet20(folder: Path) -> nn.Module:
    from compression.models.cifar_resnet import cifar_resnet

    model = cifar_resnet(20)
    model.load_state_dict(cifar.state_dict(folder, "cifar_resnet20"))
    return model.eval()
