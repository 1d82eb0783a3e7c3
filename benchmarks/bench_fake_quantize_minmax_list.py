"""fake_quantize_minmax_list: all weights of a network, 2 bytes of traffic per byte of weight."""

import pytest
import torch

from gdfq.functional import fake_quantize_minmax_list
from gdfq.ops.fake_quantize_minmax_list import fake_quantize_minmax_list_reference


def block(channels_in, channels):
    return [(channels, channels_in, 3, 3), (channels, channels, 3, 3)]


NETWORKS = {
    "resnet20": [(16, 3, 3, 3), *block(16, 16) * 3, *block(16, 32), *block(32, 32) * 2,
                 *block(32, 64), *block(64, 64) * 2, (10, 64)],
    "resnet18": [(64, 3, 7, 7), *block(64, 64) * 2, *block(64, 128), *block(128, 128),
                 *block(128, 256), *block(256, 256), *block(256, 512), *block(512, 512),
                 (1000, 512)],
    "mobilenetv2-tail": [(576, 96, 1, 1), (576, 1, 3, 3), (160, 576, 1, 1), (960, 160, 1, 1),
                         (960, 1, 3, 3), (320, 960, 1, 1), (1280, 320, 1, 1), (1000, 1280)],
}  # fmt: skip

compiled = torch.compile(fake_quantize_minmax_list_reference, dynamic=False)


@pytest.mark.parametrize("network", NETWORKS)
def test_fake_quantize_minmax_list(interleave, network):
    ws = [torch.randn(shape) for shape in NETWORKS[network]]
    bits = [4] * len(ws)
    outs = [torch.empty_like(w) for w in ws]
    interleave(
        lambda: fake_quantize_minmax_list(ws, 4),
        {
            "eager": lambda: fake_quantize_minmax_list_reference(ws, bits),
            "torch.compile": lambda: compiled(ws, bits),
            "copy": lambda: [out.copy_(w) for out, w in zip(outs, ws, strict=True)],
        },
    )
