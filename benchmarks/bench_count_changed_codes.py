"""count_changed_codes: all weights of a network and an update of them, 2 bytes read per byte."""

import pytest
import torch

from benchmarks.sizes import NETWORKS
from gdfq.functional import count_changed_codes
from gdfq.ops.count_changed_codes import count_changed_codes_reference

compiled = torch.compile(count_changed_codes_reference, dynamic=False)


@pytest.mark.parametrize("network", NETWORKS)
def test_count_changed_codes(interleave, network):
    ws, updates = ([torch.randn(shape) for shape in NETWORKS[network]] for _ in range(2))
    his = [w.flatten(1).amax(1) for w in ws]
    given = ws, updates, torch.full((len(ws),), 0.01), [-hi for hi in his], his, [4] * len(ws)
    interleave(
        lambda: count_changed_codes(*given),
        {
            "eager": lambda: count_changed_codes_reference(*given),
            "torch.compile": lambda: compiled(*given),
        },
        traffic=2 * sum(w.nbytes for w in ws),
    )
