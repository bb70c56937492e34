"""Supernets learn, and go on bit for bit where they were interrupted."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from compression.backend import FLOAT32, Backend
from compression.errors import CompressionError
from compression.models.digits_training import DIGITS_PREPROCESSING
from compression.recover.batchnorm import recalibrate
from compression.recover.training import TrainingData
from compression.supernets.supernet import Supernet
from compression.supernets.supernet_training import (
    SupernetRecipe,
    train_supernet,
)
from compression.supernets.widths import kept_channels
from compression.surgery import cuts_of, thin
from tests.builders import PRUNABLE
from tests.compression_tests.small_supernets import (
    DIGITS,
    KINDS,
    context_of,
    supernet_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


class Digits(nn.Module):
    """Small enough to be trained in a second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 16, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.dropout = nn.Dropout(0.05)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.norm1(self.conv1(x)))
        out = torch.relu(self.norm2(self.conv2(out)))
        out = nn.functional.adaptive_avg_pool2d(out, 2).flatten(1)
        logits: Tensor = self.linear(self.dropout(out))
        return logits


def digits() -> TrainingData:
    bunch = load_digits()
    return TrainingData(
        images=bunch.images[:1200, None].astype(np.uint8),
        labels=bunch.target[:1200].astype(np.int64),
        preprocessing=DIGITS_PREPROCESSING,
    )


RECIPE = SupernetRecipe(steps=12, batch_size=32, augment=True, checkpoint_steps=5)


def trained(
    kind: str,
    recipe: SupernetRecipe,
    data: TrainingData,
    resume: bytes | None = None,
    backend: Backend = FLOAT32,
) -> tuple[Supernet, list[bytes], list[int]]:
    supernet = supernet_of(kind, context_of(Digits, DIGITS))
    kept: list[bytes] = []
    told: list[int] = []
    train_supernet(
        supernet,
        data,
        recipe,
        generator=torch.Generator().manual_seed(3),
        backend=backend,
        progress=lambda d: told.append(int(d["step"])),
        breathe=lambda: None,
        keep=kept.append,
        resume=resume,
    )
    return supernet, kept, told


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", [FLOAT32, Backend(channels_last=True)])
def test_an_interrupted_training_goes_on_bit_for_bit(kind: str, backend: Backend) -> None:
    data = digits()
    whole, kept, told = trained(kind, RECIPE, data, backend=backend)
    assert len(kept) == 2
    assert told == [12]
    torch.rand(7)  # whatever others draw makes no difference
    resumed, later, _ = trained(kind, RECIPE, data, kept[0], backend)
    assert later == kept[1:]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_checkpoint_of_another_training_is_refused() -> None:
    data = digits()
    _, kept, _ = trained("shared", RECIPE, data)
    with pytest.raises(CompressionError, match="learning_rate"):
        trained("shared", dataclasses.replace(RECIPE, learning_rate=0.5), data, kept[0])
    with pytest.raises(CompressionError, match="supernet"):
        trained("residual", RECIPE, data, kept[0])


def score(supernet: Supernet, widths: dict[str, int], data: TrainingData) -> float:
    full = supernet.full_size(widths)
    kept = kept_channels(supernet.couplings, supernet.order, widths)
    model = thin(full, cuts_of(full, supernet.couplings.values(), kept))
    x = torch.from_numpy(data.images).float()
    x = (x / 16.0 - 0.305) / 0.376
    recalibrate(model, [x], FLOAT32)
    with torch.no_grad():
        right = model(x).argmax(1) == torch.from_numpy(data.labels)
    return float(right.float().mean())


@pytest.mark.parametrize("kind", KINDS)
def test_training_makes_all_widths_useful(kind: str) -> None:
    data = digits()
    recipe = SupernetRecipe(steps=80, batch_size=64, augment=False, learning_rate=0.1)
    supernet, _, _ = trained(kind, recipe, data)
    half = {site: counts[len(counts) // 2] for site, counts in supernet.choices.counts.items()}
    assert score(supernet, supernet.choices.widest(), data) > 0.8
    assert score(supernet, half, data) > 0.6


def test_without_labels_it_imitates_the_network_it_began_with() -> None:
    data = dataclasses.replace(digits(), labels=None)
    recipe = SupernetRecipe(steps=20, batch_size=32, augment=False, learning_rate=0.05)
    supernet, _, _ = trained("shared", recipe, data)
    dense = copy.deepcopy(context_of(Digits, DIGITS).model)
    x = (torch.from_numpy(data.images[:400]).float() / 16.0 - 0.305) / 0.376
    half = {site: counts[len(counts) // 2] for site, counts in supernet.choices.counts.items()}
    untrained = supernet_of("shared", context_of(Digits, DIGITS))
    with torch.no_grad():
        recalibrate(dense, [x], FLOAT32)
        expected = dense(x).argmax(1)
        agreements = []
        for candidate in (untrained, supernet):
            got = candidate.train().outputs(half, x, FLOAT32).argmax(1)
            agreements.append(float((got == expected).float().mean()))
    assert agreements[1] > agreements[0]


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"learning_rate": 0.0},
        {"batch_size": 1},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"label_smoothing": 1.0},
        {"checkpoint_steps": 0},
    ],
)
def test_refuses_a_recipe_out_of_range(change: dict[str, float]) -> None:
    with pytest.raises(CompressionError, match=next(iter(change))):
        SupernetRecipe(**change)  # type: ignore[arg-type]


def test_refuses_a_sandwich_of_one() -> None:
    with pytest.raises(CompressionError, match="sandwich"):
        supernet_of("shared", context_of(PRUNABLE["flatten"]), networks=1)
