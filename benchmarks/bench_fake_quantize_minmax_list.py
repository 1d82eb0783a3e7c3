"""fake_quantize_minmax_list: all weights of a network, 2 bytes of traffic per byte of weight."""

import pytest
import torch

from benchmarks.sizes import NETWORKS
from gdfq.functional import fake_quantize_minmax_list
from gdfq.ops.fake_quantize_minmax_list import fake_quantize_minmax_list_reference

compiled = torch.compile(fake_quantize_minmax_list_reference, dynamic=False)


@pytest.mark.parametrize("network", NETWORKS)
def test_fake_quantize_minmax_list(interleave, network):
    ws = [torch.randn(shape) for shape in NETWORKS[network]]
    bits = [4] * len(ws)
    interleave(
        lambda: fake_quantize_minmax_list(ws, 4),
        {
            "eager": lambda: fake_quantize_minmax_list_reference(ws, bits),
            "torch.compile": lambda: compiled(ws, bits),
        },
        traffic=2 * sum(w.nbytes for w in ws),
    )
