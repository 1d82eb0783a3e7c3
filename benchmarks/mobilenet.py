"""A network that quantizes badly: MobileNetV2's blocks, cut to 28x28 images of one channel.

This command made its weights, ``teachers/mobilenet-v2-small.safetensors``::

    python examples/train_teacher.py --model benchmarks.mobilenet:small_mobilenet_v2 \\
        --data FOLDER --out benchmarks/teachers/mobilenet-v2-small.safetensors --epochs 6 --lr 0.1
"""

from __future__ import annotations

import torchvision
from torch import nn

# Expansion, channels, blocks, stride of the first: torchvision's, with two halvings fewer and half
# the blocks.
BLOCKS = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 1], [6, 64, 2, 2], [6, 96, 1, 1]]


def small_mobilenet_v2(num_classes: int = 10, channels: int = 1) -> nn.Module:
    """Return a network half as wide as the original, with its depthwise convolutions and ReLU6."""
    network = torchvision.models.MobileNetV2(num_classes, 0.5, BLOCKS, dropout=0.0)
    stem = network.features[0]
    stem[0] = nn.Conv2d(channels, stem[0].out_channels, 3, stride=2, padding=1, bias=False)
    nn.init.kaiming_normal_(stem[0].weight, mode="fan_out")
    return network
