"""upsample_conv2d: 16 multiply-adds per position of the small input in place of 36."""

import pytest
import torch

from gdfq.functional import upsample_conv2d
from gdfq.ops.upsample_conv2d import upsample_conv2d_reference

SIZES = {
    "small-b200-128-128x8x8": ((200, 128, 8, 8), 128),
    "small-b200-128-64x16x16": ((200, 128, 16, 16), 64),
    "imagenet-b16-128-128x56x56": ((16, 128, 56, 56), 128),
}
compiled = torch.compile(upsample_conv2d_reference, dynamic=False)


@pytest.mark.parametrize("size", SIZES)
def test_upsample_conv2d_training(interleave, size):
    shape, out_channels = SIZES[size]
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(out_channels, shape[1], 3, 3) / 34, torch.zeros(out_channels)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    grad = torch.randn_like(upsample_conv2d(*inputs))

    def step(function):
        return torch.autograd.grad(function(*inputs), inputs, grad)

    interleave(
        lambda: step(upsample_conv2d),
        {
            "eager": lambda: step(upsample_conv2d_reference),
            "torch.compile": lambda: step(compiled),
        },
    )
