"""Triton kernels: one file per operator, whose launchers have the operators' signatures.

None of them has run on a GPU: they run in Triton's interpreter and are compiled ahead of time.
Importing this package does not import Triton; the files do.
"""

from __future__ import annotations

# Each operator's file; an operator and its backward share one.
OPERATORS = {
    "batch_norm_stats": "batch_norm_stats",
    "batch_norm_stats_backward": "batch_norm_stats",
    "bn_act_fake_quantize": "bn_act_fake_quantize",
    "bn_act_fake_quantize_backward": "bn_act_fake_quantize",
    "bn_leaky_relu": "bn_leaky_relu",
    "bn_leaky_relu_backward": "bn_leaky_relu",
    "bns_loss": "bns_loss",
    "bns_loss_backward": "bns_loss",
    "count_changed_codes": "count_changed_codes",
    "fake_quantize": "fake_quantize",
    "fake_quantize_backward": "fake_quantize",
    "fake_quantize_learned_backward": "fake_quantize",
    "fake_quantize_minmax": "fake_quantize_minmax",
    "fake_quantize_minmax_list": "fake_quantize_minmax_list",
    "fake_quantize_minmax_list_backward": "fake_quantize_minmax_list",
    "kd_ce_loss": "kd_ce_loss",
    "observe_bn_act_fake_quantize": "observe_bn_act_fake_quantize",
    "observe_fake_quantize": "observe_fake_quantize",
    "pack_codes": "pack_codes",
    "quantize_codes": "quantize_codes",
    "unpack_codes": "pack_codes",
}
