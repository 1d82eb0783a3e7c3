"""fake_quantize over a given range: 2 bytes of traffic per byte of input."""

import pytest
import torch

from gdfq.functional import fake_quantize
from gdfq.ops.fake_quantize import fake_quantize_reference

compiled = torch.compile(fake_quantize_reference, dynamic=False)


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_fake_quantize_per_tensor(interleave, shape, layout):
    memory_format = getattr(torch, layout if layout == "channels_last" else "contiguous_format")
    x = torch.randn(shape).contiguous(memory_format=memory_format)
    lo, hi = torch.tensor(-2.0), torch.tensor(2.0)
    out = torch.empty_like(x)
    scale, zero = 4 / 15, 8
    interleave(
        lambda: fake_quantize(x, lo, hi, 4),
        {
            "eager": lambda: fake_quantize_reference(x, lo, hi, 4),
            "torch.compile": lambda: compiled(x, lo, hi, 4),
            "aten": lambda: torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 15),
            "copy": lambda: out.copy_(x),
        },
    )


def test_fake_quantize_per_channel(interleave, shape):
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    channels = shape[1]
    lo, hi = torch.full((channels,), -2.0), torch.full((channels,), 2.0)
    out = torch.empty_like(x)
    scale, zero = torch.full((channels,), 4 / 15), torch.full((channels,), 8, dtype=torch.int32)
    interleave(
        lambda: fake_quantize(x, lo, hi, 4, axis=1),
        {
            "eager": lambda: fake_quantize_reference(x, lo, hi, 4, axis=1),
            "torch.compile": lambda: compiled(x, lo, hi, 4, axis=1),
            "aten": lambda: torch.fake_quantize_per_channel_affine(x, scale, zero, 1, 0, 15),
            "copy": lambda: out.copy_(x),
        },
    )
