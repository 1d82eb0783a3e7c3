"""observe_bn_act_fake_quantize: 3 bytes of traffic per byte of input, one of them for the range."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gdfq.functional import observe_bn_act_fake_quantize
from gdfq.ops.observe_bn_act_fake_quantize import observe_bn_act_fake_quantize_reference
from gdfq.ops.observe_fake_quantize import observe_fake_quantize_reference

compiled = torch.compile(observe_bn_act_fake_quantize_reference, dynamic=False)


def buffers() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    count = torch.zeros((), dtype=torch.int64)
    return torch.zeros(()), torch.zeros(()), torch.zeros(()), torch.zeros(()), count


def eager(x, mean, var, weight, bias, eps, *rest):
    a, b, lo, hi, count, bits, momentum, _, residual = rest
    v = F.batch_norm(x, mean, var, weight, bias, eps=eps)
    v = F.relu(v if residual is None else v + residual)
    return observe_fake_quantize_reference(v, a, b, lo, hi, count, bits, momentum)


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_observe_bn_act_fake_quantize(interleave, shape, residual):
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    c = shape[1]
    norm = torch.zeros(c), torch.ones(c), torch.ones(c), torch.zeros(c), 1e-5
    rest: Any = (4, 0.9, "relu", torch.randn_like(x) if residual else None)
    ours, theirs, others = buffers(), buffers(), buffers()
    out = torch.empty_like(x)
    interleave(
        lambda: observe_bn_act_fake_quantize(x, *norm, *ours, *rest),
        {
            "eager": lambda: eager(x, *norm, *theirs, *rest),
            "torch.compile": lambda: compiled(x, *norm, *others, *rest),
            "copy": lambda: out.copy_(x),
        },
    )
