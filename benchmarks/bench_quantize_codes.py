"""quantize_codes of float32 weights: 5 bytes of traffic an element."""

import torch

from gdfq.functional import quantize_codes
from gdfq.ops.quantize_codes import quantize_codes_reference

compiled = torch.compile(quantize_codes_reference, dynamic=False)


def test_quantize_codes(interleave, weight):
    w = torch.randn(weight)
    lo, hi = torch.full(weight[:1], -2.0), torch.full(weight[:1], 2.0)
    interleave(
        lambda: quantize_codes(w, lo, hi, 4, 0),
        {
            "eager": lambda: quantize_codes_reference(w, lo, hi, 4, 0),
            "torch.compile": lambda: compiled(w, lo, hi, 4, 0),
        },
        traffic=5 * w.numel(),
    )
