"""A small residual network for 8x8 grey digits, sized for about a millisecond of inference.

On one thread of ONNX Runtime a network must take about a millisecond for its time to be measured
well; a minimal digit classifier takes microseconds, of which most is overhead. All widths are
multiples of 16, so that pruning to multiples of 8 has choices everywhere.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

STAGE_CHANNELS = (112, 224)
BLOCKS_PER_STAGE = 2


class DigitsBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where shapes differ.

    Reference:
        He et al. (2015), "Deep Residual Learning for Image Recognition", shortcut option B.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, `B x channels x H/stride x W/stride`."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        identity = x if self.shortcut is None else self.shortcut(x)
        return functional.relu(out + identity)


class DigitsCnn(nn.Module):
    """A stem at full resolution, two stages of residual blocks, pooling and one linear layer."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        width = STAGE_CHANNELS[0]
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        for index, channels in enumerate(STAGE_CHANNELS):
            for block in range(BLOCKS_PER_STAGE):
                stride = 2 if index > 0 and block == 0 else 1
                stages.append(DigitsBlock(width, channels, stride))
                width = channels
        self.blocks = nn.Sequential(*stages)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, `B x num_classes`."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = functional.adaptive_avg_pool2d(self.blocks(out), 1).flatten(1)
        logits: Tensor = self.linear(out)
        return logits


def digits_cnn(*, num_classes: int = 10, in_channels: int = 1) -> DigitsCnn:
    """Build the network with random weights.

    Args:
        num_classes: Width of the output.
        in_channels: Channels of an image.
    """
    return DigitsCnn(num_classes, in_channels)
