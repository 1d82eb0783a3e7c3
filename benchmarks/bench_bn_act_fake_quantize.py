"""bn_act_fake_quantize: 2 bytes of traffic per byte of input forward, 3 backward."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.ste import Identity
from gdfq.functional import bn_act_fake_quantize
from gdfq.ops.bn_act_fake_quantize import bn_act_fake_quantize_reference

compiled = torch.compile(bn_act_fake_quantize_reference, dynamic=False)


def eager(x, mean, var, weight, bias, eps, lo, hi, bits, act="relu", residual=None):
    v = F.batch_norm(x, mean, var, weight, bias, eps=eps)
    return Identity.apply(F.relu(v if residual is None else v + residual), lo, hi, bits)


def arguments(shape):
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    c = shape[1]
    bounds = torch.tensor(0.0), torch.tensor(3.0)
    return x, torch.zeros(c), torch.ones(c), torch.ones(c), torch.zeros(c), 1e-5, *bounds, 4


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_bn_act_fake_quantize_forward(interleave, shape, residual):
    given = (*arguments(shape), "relu")
    given = (*given, torch.randn_like(given[0]) if residual else None)
    interleave(
        lambda: bn_act_fake_quantize(*given),
        {
            "eager": lambda: eager(*given),
            "torch.compile": lambda: compiled(*given),
        },
        traffic=(3 if residual else 2) * given[0].nbytes,
    )


compiled_eager = torch.compile(eager, dynamic=False)


def test_bn_act_fake_quantize_training(interleave, shape):
    given = arguments(shape)
    inputs = [given[0].requires_grad_(), given[3].requires_grad_(), given[4].requires_grad_()]
    grad = torch.randn_like(given[0])

    def step(function):
        return torch.autograd.grad(function(*given), inputs, grad)

    interleave(
        lambda: step(bn_act_fake_quantize),
        {
            "eager": lambda: step(eager),
            "torch.compile": lambda: step(compiled_eager),
        },
        traffic=5 * given[0].nbytes,
    )
