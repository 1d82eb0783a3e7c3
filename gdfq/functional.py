"""The stateless functions: quantizers, and batch normalization fused with what follows it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gdfq.ops import (
    batch_norm_stats,
    bn_act_fake_quantize,
    bn_leaky_relu,
    fake_quantize,
    fake_quantize_minmax,
    fake_quantize_minmax_list,
    observe_fake_quantize,
    pack_codes,
    quantize_codes,
    unpack_codes,
    upsample_conv2d,
)
from gdfq.ops._checks import Activation, check_act

__all__ = [
    "batch_norm_stats",
    "bn_act_fake_quantize",
    "bn_leaky_relu",
    "fake_quantize",
    "fake_quantize_minmax",
    "fake_quantize_minmax_list",
    "observe_fake_quantize",
    "pack_codes",
    "quantize_codes",
    "unpack_codes",
    "upsample_conv2d",
]


def activate(x: Tensor, act: Activation) -> Tensor:
    """ReLU, ReLU6 or nothing."""
    if act == "relu":
        return F.relu(x)
    if act == "relu6":
        return F.relu6(x)
    check_act(act)
    return x
