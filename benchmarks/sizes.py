"""Tensor sizes from the networks people quantize."""

ACTIVATIONS = {
    "resnet20-b200-16x32x32": (200, 16, 32, 32),
    "resnet20-b200-32x16x16": (200, 32, 16, 16),
    "resnet20-b200-64x8x8": (200, 64, 8, 8),
    "resnet18-b16-64x56x56": (16, 64, 56, 56),
    "resnet18-b16-512x7x7": (16, 512, 7, 7),
    "mobilenetv2-b16-96x112x112": (16, 96, 112, 112),
}

WEIGHTS = {
    "resnet20-64x64x3x3": (64, 64, 3, 3),
    "resnet18-512x512x3x3": (512, 512, 3, 3),
    "mobilenetv2-960x1x3x3": (960, 1, 3, 3),
    "resnet18-fc-1000x512": (1000, 512),
}
