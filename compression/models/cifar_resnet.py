"""The CIFAR form of ResNet: three stages of basic blocks, shortcuts without weights.

Reference:
    He et al. (2015), "Deep Residual Learning for Image Recognition", section 4.2;
    https://arxiv.org/abs/1512.03385. Depth is `6n + 2`, stages are 16, 32 and 64 channels wide.

Parameter names follow the widespread PyTorch port (`conv1`, `bn1`, `layer1.0.conv1`, ...,
`linear`), so that published checkpoints load unchanged.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

STAGE_CHANNELS = (16, 32, 64)


class PaddedShortcut(nn.Module):
    """Option A: every second pixel, and channels of zeros on both sides; no weights.

    Attributes:
        channels_before: Zero channels in front of the input's.
        channels_after: Zero channels behind them.
    """

    def __init__(self, channels_before: int, channels_after: int) -> None:
        super().__init__()
        self.channels_before = channels_before
        self.channels_after = channels_after

    def forward(self, x: Tensor) -> Tensor:
        """Map `B x C x H x W` to `B x (before + C + after) x ceil(H/2) x ceil(W/2)`."""
        padding = (0, 0, 0, 0, self.channels_before, self.channels_after)
        return functional.pad(x[:, :, ::2, ::2], padding)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them.

    Attributes:
        shortcut: None where the input is added as it is.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: PaddedShortcut | None = None
        if stride != 1 or in_channels != channels:
            before = (channels - in_channels) // 2
            self.shortcut = PaddedShortcut(before, channels - in_channels - before)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, `B x channels x H/stride x W/stride`."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        identity = x if self.shortcut is None else self.shortcut(x)
        return functional.relu(out + identity)


class CifarResNet(nn.Module):
    """A stem of 16 channels, three stages, global average pooling and one linear layer."""

    def __init__(self, blocks_per_stage: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        width = STAGE_CHANNELS[0]
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, STAGE_CHANNELS[0], blocks_per_stage, stride=1)
        self.layer2 = _stage(STAGE_CHANNELS[0], STAGE_CHANNELS[1], blocks_per_stage, stride=2)
        self.layer3 = _stage(STAGE_CHANNELS[1], STAGE_CHANNELS[2], blocks_per_stage, stride=2)
        self.linear = nn.Linear(STAGE_CHANNELS[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, `B x num_classes`."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = functional.adaptive_avg_pool2d(out, 1).flatten(1)
        logits: Tensor = self.linear(out)
        return logits


def _stage(in_channels: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


def cifar_resnet(depth: int, *, num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """Build the network of `depth` layers with random weights.

    Args:
        depth: `6n + 2` with n >= 1: 20, 32, 44, 56, 110.
        num_classes: Width of the output.
        in_channels: Channels of an image.

    Raises:
        ValueError: The depth is not of that form.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth is {depth}; a CIFAR ResNet has 6n + 2 layers with n >= 1")
    return CifarResNet(blocks, num_classes, in_channels)
