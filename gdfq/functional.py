"""Stateless operators: quantizers, and batch normalization fused with what follows it."""

from __future__ import annotations

from gdfq.ops.batch_norm_stats import batch_norm_stats
from gdfq.ops.bn_act_fake_quantize import bn_act_fake_quantize
from gdfq.ops.bn_leaky_relu import bn_leaky_relu
from gdfq.ops.count_changed_codes import count_changed_codes
from gdfq.ops.fake_quantize import fake_quantize
from gdfq.ops.fake_quantize_minmax import fake_quantize_minmax
from gdfq.ops.fake_quantize_minmax_list import fake_quantize_minmax_list
from gdfq.ops.observe_bn_act_fake_quantize import observe_bn_act_fake_quantize
from gdfq.ops.observe_fake_quantize import observe_fake_quantize
from gdfq.ops.pack_codes import pack_codes, unpack_codes
from gdfq.ops.quantize_codes import quantize_codes
from gdfq.ops.upsample_conv2d import upsample_conv2d

__all__ = [
    "batch_norm_stats",
    "bn_act_fake_quantize",
    "bn_leaky_relu",
    "count_changed_codes",
    "fake_quantize",
    "fake_quantize_minmax",
    "fake_quantize_minmax_list",
    "observe_bn_act_fake_quantize",
    "observe_fake_quantize",
    "pack_codes",
    "quantize_codes",
    "unpack_codes",
    "upsample_conv2d",
]
