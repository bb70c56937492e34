"""The CIFAR form of VGG-16: thirteen 3x3 convolutions with BatchNorm and one linear layer.

Reference:
    Simonyan & Zisserman (2015), "Very Deep Convolutional Networks for Large-Scale Image
    Recognition", configuration D; https://arxiv.org/abs/1409.1556. BatchNorm and the single
    classifier layer on 512 pooled features follow Li et al. (2017), "Pruning Filters for
    Efficient ConvNets", section 4.1; https://arxiv.org/abs/1608.08710.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the convolutions between two poolings."""


class CifarVgg(nn.Module):
    """`features` of the five stages, each but the last followed by 2x2 max pooling."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = in_channels
        for index, stage in enumerate(STAGES):
            for channels in stage:
                layers.append(nn.Conv2d(width, channels, 3, padding=1, bias=False))
                layers += [nn.BatchNorm2d(channels), nn.ReLU()]
                width = channels
            if index < len(STAGES) - 1:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, `B x num_classes`; images are at least 16 pixels wide and high."""
        out = functional.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        logits: Tensor = self.classifier(out)
        return logits


def cifar_vgg16(*, num_classes: int = 10, in_channels: int = 3) -> CifarVgg:
    """Build VGG-16 with random weights.

    Args:
        num_classes: Width of the output.
        in_channels: Channels of an image.
    """
    return CifarVgg(num_classes, in_channels)
