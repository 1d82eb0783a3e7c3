"""Tensor sizes of common networks.

ResNet-20 on 32x32 images at batch 200, ResNet-18 and MobileNetV2 on 224x224 images at batch 16.
"""

Shape = tuple[int, ...]

ACTIVATIONS = {
    "mobilenetv2-b16-96x112x112": (16, 96, 112, 112),
    "resnet20-b200-16x32x32": (200, 16, 32, 32),
    "resnet18-b16-64x56x56": (16, 64, 56, 56),
    "mobilenetv2-b16-576x14x14": (16, 576, 14, 14),
    "resnet20-b200-64x8x8": (200, 64, 8, 8),
    "resnet18-b16-512x7x7": (16, 512, 7, 7),
}

WEIGHTS = {
    "resnet18-512x512x3x3": (512, 512, 3, 3),
    "resnet20-64x64x3x3": (64, 64, 3, 3),
    "mobilenetv2-1280x320x1x1": (1280, 320, 1, 1),
    "resnet18-fc-1000x512": (1000, 512),
    "resnet20-16x16x3x3": (16, 16, 3, 3),
    "mobilenetv2-960x1x3x3": (960, 1, 3, 3),
}


def resnet(widths: Shape, blocks: int, stem: Shape, classes: int) -> list[Shape]:
    """Return the weight shapes of a residual network of basic blocks."""
    shapes, channels = [stem], widths[0]
    for width in widths:
        for block in range(blocks):
            shapes += [(width, channels if block == 0 else width, 3, 3), (width, width, 3, 3)]
            if block == 0 and width != channels:
                shapes.append((width, channels, 1, 1))
        channels = width
    return [*shapes, (classes, channels)]


def mobilenetv2() -> list[Shape]:
    """Return the weight shapes of MobileNetV2 for 1,000 classes."""
    shapes, channels = [(32, 3, 3, 3)], 32
    stages = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
    for expansion, width, blocks in stages:
        for _ in range(blocks):
            inner = channels * expansion
            if expansion != 1:
                shapes.append((inner, channels, 1, 1))
            shapes += [(inner, 1, 3, 3), (width, inner, 1, 1)]
            channels = width
    return [*shapes, (1280, channels, 1, 1), (1000, 1280)]


# Every weight of each network, in order.
NETWORKS = {
    "resnet20": resnet((16, 32, 64), 3, (16, 3, 3, 3), 10),
    "resnet18": resnet((64, 128, 256, 512), 2, (64, 3, 7, 7), 1000),
    "mobilenetv2": mobilenetv2(),
}

# The channels of each network's batch norms: one after every convolution.
NORMS = {name: [s[0] for s in shapes if len(s) == 4] for name, shapes in NETWORKS.items()}
