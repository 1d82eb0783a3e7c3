"""observe_fake_quantize: 3 bytes of traffic per byte of input, one of them for the range."""

import torch
from torch import Tensor

from gdfq.functional import observe_fake_quantize
from gdfq.ops.observe_fake_quantize import observe_fake_quantize_reference

compiled = torch.compile(observe_fake_quantize_reference, dynamic=False)


def buffers() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    count = torch.zeros((), dtype=torch.int64)
    return torch.zeros(()), torch.zeros(()), torch.zeros(()), torch.zeros(()), count


def test_observe_fake_quantize(interleave, shape):
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    ours, theirs, others = buffers(), buffers(), buffers()
    interleave(
        lambda: observe_fake_quantize(x, *ours, 4),
        {
            "eager": lambda: observe_fake_quantize_reference(x, *theirs, 4),
            "torch.compile": lambda: compiled(x, *others, 4),
        },
        traffic=3 * x.nbytes,
    )
