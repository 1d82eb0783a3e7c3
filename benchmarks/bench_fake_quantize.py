"""fake_quantize over a given range: 2 bytes of traffic per byte of input, 3 backward."""

import pytest
import torch

from benchmarks.sizes import ACTIVATIONS
from benchmarks.ste import Round
from gdfq.functional import fake_quantize
from gdfq.ops.fake_quantize import fake_quantize_reference

compiled = torch.compile(fake_quantize_reference, dynamic=False)


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_fake_quantize_per_tensor(interleave, shape, layout):
    memory_format = getattr(torch, layout if layout == "channels_last" else "contiguous_format")
    x = torch.randn(shape).contiguous(memory_format=memory_format)
    lo, hi = torch.tensor(-2.0), torch.tensor(2.0)
    scale, zero = 4 / 15, 8
    interleave(
        lambda: fake_quantize(x, lo, hi, 4),
        {
            "eager": lambda: fake_quantize_reference(x, lo, hi, 4),
            "torch.compile": lambda: compiled(x, lo, hi, 4),
            "aten": lambda: torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 15),
        },
        traffic=2 * x.nbytes,
    )


def test_fake_quantize_per_channel(interleave, shape):
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    channels = shape[1]
    lo, hi = torch.full((channels,), -2.0), torch.full((channels,), 2.0)
    scale, zero = torch.full((channels,), 4 / 15), torch.full((channels,), 8, dtype=torch.int32)
    interleave(
        lambda: fake_quantize(x, lo, hi, 4, axis=1),
        {
            "eager": lambda: fake_quantize_reference(x, lo, hi, 4, axis=1),
            "torch.compile": lambda: compiled(x, lo, hi, 4, axis=1),
            "aten": lambda: torch.fake_quantize_per_channel_affine(x, scale, zero, 1, 0, 15),
        },
        traffic=2 * x.nbytes,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("size", ["resnet18-b16-64x56x56", "resnet20-b200-16x32x32"])
def test_fake_quantize_half(interleave, size, dtype):
    x = torch.randn(ACTIVATIONS[size]).contiguous(memory_format=torch.channels_last).to(dtype)
    lo, hi = torch.tensor(-2.0), torch.tensor(2.0)
    interleave(
        lambda: fake_quantize(x, lo, hi, 4),
        {
            "eager": lambda: fake_quantize_reference(x, lo, hi, 4),
            "torch.compile": lambda: compiled(x, lo, hi, 4),
        },
        traffic=2 * x.nbytes,
    )


def clip(x, lo, hi, bits):
    """Compute ``clip`` in plain PyTorch, or ``learned`` if lo and hi require gradients."""
    levels = 2**bits - 1
    step = (hi - lo) / levels
    return Round.apply(torch.clamp((x - lo) / step, 0, levels)) * step + lo


compiled_clip = torch.compile(clip, dynamic=False)


@pytest.mark.parametrize("ste", ["clip", "learned"])
def test_fake_quantize_training(interleave, shape, ste):
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()
    lo, hi = torch.tensor(-2.0), torch.tensor(2.0)
    inputs = [x]
    if ste == "learned":
        inputs += [lo.requires_grad_(), hi.requires_grad_()]
    grad = torch.randn_like(x)

    def step(y):
        return torch.autograd.grad(y, inputs, grad)

    interleave(
        lambda: step(fake_quantize(x, lo, hi, 4, ste=ste)),
        {
            "eager": lambda: step(clip(x, lo, hi, 4)),
            "torch.compile": lambda: step(compiled_clip(x, lo, hi, 4)),
        },
        traffic=5 * x.nbytes,
    )
