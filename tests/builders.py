"""Small networks, each with one structure that makes pruning hard."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.models.cifar_resnet import CifarResNet, cifar_resnet
from compression.survey import survey
from compression.surveyed import Survey

SHAPE = (3, 16, 16)
"""C, H, W of an input of every network here."""


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Return the module in eval mode, with weights and statistics that let all channels count."""
    generator = torch.Generator().manual_seed(seed)
    model = build().eval()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.dim() > 1:
                deviation = (2.0 / tensor[0].numel()) ** 0.5
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * deviation)
            elif name.endswith(("bias", "running_mean")):
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
            elif tensor.is_floating_point():
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return model


class FlattenVgg(nn.Module):
    """Convolutions whose pixels are flattened into linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 20, 3, padding=1, bias=False),
            nn.PReLU(20),
            nn.MaxPool2d(2),
        )
        self.hidden = nn.Linear(20 * 4 * 4, 24)
        self.classifier = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.flatten(self.features(x), 1)
        out = functional.dropout(functional.relu(self.hidden(out)), training=self.training)
        logits: Tensor = self.classifier(out)
        return logits


class InvertedResidual(nn.Module):
    """Expansion, depthwise, squeeze-and-excitation, projection, with a shortcut where it fits."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        width = 3 * in_channels
        self.expand = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(
            width, width, 3, stride=stride, padding=1, groups=width, bias=False
        )
        self.norm2 = nn.BatchNorm2d(width)
        self.squeeze = nn.Conv2d(width, 6, 1)
        self.excite = nn.Conv2d(6, width, 1)
        self.project = nn.Conv2d(width, channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels)
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu6(self.norm1(self.expand(x)))
        out = functional.relu6(self.norm2(self.depthwise(out)))
        pooled = functional.adaptive_avg_pool2d(out, 1)
        out = out * torch.sigmoid(self.excite(functional.relu(self.squeeze(pooled))))
        projected: Tensor = self.norm3(self.project(out))
        return x + projected if self.residual else projected


class MobileNet(nn.Module):
    """Inverted residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(
            InvertedResidual(8, 8, 1), InvertedResidual(8, 12, 2), InvertedResidual(12, 12, 1)
        )
        self.classifier = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.blocks(functional.relu6(self.norm(self.stem(x))))
        logits: Tensor = self.classifier(out.mean((2, 3)))
        return logits


class ConcatNet(nn.Module):
    """Branches of different widths, concatenated; one of them enters twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.left = nn.Conv2d(6, 5, 1)
        self.right = nn.Conv2d(6, 7, 3, padding=1)
        self.norm = nn.BatchNorm2d(6 + 5 + 7 + 5)
        self.merge = nn.Conv2d(6 + 5 + 7 + 5, 9, 1)
        self.classifier = nn.Linear(9 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        stem = functional.relu(self.stem(x))
        left, right = self.left(stem), self.right(stem)
        out = functional.relu(self.norm(torch.cat([stem, left, right, left], 1)))
        out = functional.adaptive_avg_pool2d(self.merge(out), 2)
        logits: Tensor = self.classifier(out.flatten(1))
        return logits


class PartNet(nn.Module):
    """A wide tensor plus the concatenation of two narrow ones; the wide one is made first."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 12, 3, padding=1)
        self.left = nn.Conv2d(3, 5, 1)
        self.right = nn.Conv2d(3, 7, 1)
        self.classifier = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.wide(x) + torch.cat([self.left(x), self.right(x)], 1)
        logits: Tensor = self.classifier(functional.relu(out).mean((2, 3)))
        return logits


class NormNet(nn.Module):
    """`conv1` is mixed by a LayerNorm over channels, `conv2` by a functional one, `conv3` free."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.conv2 = nn.Conv2d(8, 10, 3, padding=1)
        self.conv3 = nn.Conv2d(10, 12, 3, padding=1)
        self.classifier = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv1(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        out = functional.softmax(self.conv2(out), 1)
        logits: Tensor = self.classifier(functional.relu(self.conv3(out)).mean((2, 3)))
        return logits


class FixedWidthNet(nn.Module):
    """`conv1` feeds code with its width written in; `conv2` is grouped; `conv3` is free."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.mix = nn.Conv2d(8, 8, 1)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1)
        self.classifier = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.mix(self.conv1(x).reshape(-1, 8, 16, 16)))
        logits: Tensor = self.classifier(functional.relu(self.conv3(out)).mean((2, 3)))
        return logits


class SharedNet(nn.Module):
    """One convolution used twice, and two linear layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 10, 1)
        self.outer = nn.Conv2d(10, 8, 1)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.classifier = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.again(functional.relu(self.again(functional.relu(self.stem(x)))))
        out = self.outer(functional.relu(self.inner(out))).mean((2, 3))
        logits: Tensor = self.classifier(self.second(functional.relu(self.first(out))))
        return logits


class OddConvs(nn.Module):
    """Convolutions whose strides, paddings and dilations differ by axis."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.odd = nn.Conv2d(12, 10, (3, 5), stride=(2, 1), padding=(1, 4), dilation=(1, 2))
        self.norm = nn.BatchNorm2d(10)
        self.same = nn.Conv2d(10, 14, 3, padding="same", padding_mode="reflect", bias=False)
        self.point = nn.Conv2d(14, 16, 1, stride=2)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.hidden = nn.Linear(16 * 4, 20)
        self.classifier = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.norm(self.odd(functional.relu(self.stem(x)))))
        out = functional.relu(self.point(functional.relu(self.same(out))))
        out = functional.adaptive_avg_pool2d(self.depthwise(out), 2).flatten(1)
        logits: Tensor = self.classifier(functional.relu(self.hidden(out)))
        return logits


class MeanPooledResNet(CifarResNet):
    """ResNet-20 with another pooling: Torch-Pruning cuts its residual stream without an error.

    The shortcuts put channels of zeros in front, so channel 5 of the first stage is channel 13 of
    the second; Torch-Pruning removes channel 5 in both.
    """

    def __init__(self) -> None:
        super().__init__(3, num_classes=10, in_channels=3)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: Tensor = self.linear(out.mean((2, 3)))
        return logits


@functools.cache
def surveyed_resnet(depth: int) -> tuple[CifarResNet, Survey]:
    """Return a CIFAR ResNet, always with the same weights, and its survey at `3 x 32 x 32`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cifar_resnet(depth)
    return model.eval(), survey(model, (3, 32, 32))


PRUNABLE: Mapping[str, Callable[[], nn.Module]] = {
    "resnet20": lambda: cifar_resnet(20),
    "flatten": FlattenVgg,
    "mobilenet": MobileNet,
    "concat": ConcatNet,
    "part": PartNet,
}
"""Networks with sites that can be pruned, by structure."""
