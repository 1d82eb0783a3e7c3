"""bn_leaky_relu: 3 bytes of traffic per byte of input forward, 5 backward."""

import pytest
import torch
import torch.nn.functional as F

from gdfq.functional import bn_leaky_relu

# From the generators for small and for large images.
SIZES = {
    "imagenet-b16-128x112x112": (16, 128, 112, 112),
    "small-b200-64x32x32": (200, 64, 32, 32),
    "imagenet-b16-128x56x56": (16, 128, 56, 56),
    "small-b200-128x8x8": (200, 128, 8, 8),
}


def eager(x, running_mean, running_var, weight, bias, eps):
    """Compute the layer and the activation, in stock PyTorch."""
    if weight.dim() == 1:
        v = F.batch_norm(x, running_mean, running_var, weight, bias, training=True, eps=eps)
    else:
        v = F.batch_norm(x, running_mean, running_var, training=True, eps=eps)
        v = torch.addcmul(bias[:, :, None, None], v, weight[:, :, None, None])
    return F.leaky_relu(v, 0.2)


compiled = torch.compile(eager, dynamic=False)


@pytest.mark.parametrize("conditional", [False, True], ids=["plain", "conditional"])
@pytest.mark.parametrize("size", SIZES)
def test_bn_leaky_relu_training(interleave, size, conditional):
    shape = SIZES[size]
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    entries = shape[:2] if conditional else shape[1:2]
    parameters = [torch.ones(entries), torch.zeros(entries)]
    inputs = [t.requires_grad_() for t in (x, *parameters)]
    running = torch.zeros(shape[1]), torch.ones(shape[1])
    grad = torch.randn_like(x)

    def step(function):
        return torch.autograd.grad(function(x, *running, *parameters, 0.8), inputs, grad)

    interleave(
        lambda: step(bn_leaky_relu),
        {
            "eager": lambda: step(eager),
            "torch.compile": lambda: step(compiled),
        },
        traffic=8 * x.nbytes,
    )
