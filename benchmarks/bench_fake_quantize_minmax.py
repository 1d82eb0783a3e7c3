"""fake_quantize_minmax of weights: 2 bytes of traffic per byte of input, ranges included."""

import torch

from gdfq.functional import fake_quantize_minmax
from gdfq.ops.fake_quantize_minmax import fake_quantize_minmax_reference

compiled = torch.compile(fake_quantize_minmax_reference, dynamic=False)


def test_fake_quantize_minmax(interleave, weight):
    w = torch.randn(weight)
    interleave(
        lambda: fake_quantize_minmax(w, 4),
        {
            "eager": lambda: fake_quantize_minmax_reference(w, 4),
            "torch.compile": lambda: compiled(w, 4),
        },
        traffic=2 * w.nbytes,
    )
