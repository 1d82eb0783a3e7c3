"""The residual networks for small images (He et al., CVPR 2016, section 4.2)."""

from __future__ import annotations

import torch
from torch import nn

from gdfq.errors import InputError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; a 1x1 projection where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H / stride, W / stride)``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x + shortcut)


class CifarResNet(nn.Module):
    """Three stages of :class:`BasicBlock`, 16, 32 and 64 channels wide.

    ``forward`` takes float images ``(N, channels, H, W)`` and returns logits ``(N, num_classes)``.
    ``depth`` is 6 n + 2, with n blocks of two convolutions per stage.

    Raises:
        InputError: ``depth`` is not 6 n + 2 with n >= 1.
    """

    def __init__(self, depth: int, num_classes: int, channels: int = 3) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise InputError(f"depth: must be 6 n + 2 with n >= 1, got {depth!r}")
        blocks = depth // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(blocks, 16, 16, stride=1)
        self.layer2 = self._stage(blocks, 16, 32, stride=2)
        self.layer3 = self._stage(blocks, 32, 64, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(blocks: int, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            BasicBlock(in_channels, out_channels, stride),
            *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``(N, channels, H, W)`` to logits ``(N, num_classes)``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def cifar_resnet(depth: int, num_classes: int, channels: int = 3) -> CifarResNet:
    """Return a residual network of ``depth`` 20, 32, 44, 56, 110, ..., freshly initialized."""
    return CifarResNet(depth, num_classes, channels)


def resnet20(num_classes: int, channels: int = 3) -> CifarResNet:
    """Return a ResNet-20 for small images, freshly initialized."""
    return CifarResNet(20, num_classes, channels)
