"""The operators: one file each, with wrapper, checks, tracing kernel, gradient and reference.

Importing this package loads the native module, which registers ``torch.ops.gdfq``. Which kernels
run is :func:`backend`'s to say.
"""

import torch  # noqa: F401  (its libraries must be loaded before the native module)

from gdfq.ops import _native  # noqa: F401  isort: skip
from gdfq.ops import _backend
from gdfq.ops._backend import backend
from gdfq.ops.batch_norm_stats import batch_norm_stats
from gdfq.ops.bn_act_fake_quantize import bn_act_fake_quantize
from gdfq.ops.bn_leaky_relu import bn_leaky_relu
from gdfq.ops.bns_loss import bns_loss
from gdfq.ops.fake_quantize import fake_quantize
from gdfq.ops.fake_quantize_minmax import fake_quantize_minmax
from gdfq.ops.fake_quantize_minmax_list import fake_quantize_minmax_list
from gdfq.ops.kd_ce_loss import kd_ce_loss
from gdfq.ops.observe_fake_quantize import observe_fake_quantize
from gdfq.ops.pack_codes import pack_codes, unpack_codes
from gdfq.ops.quantize_codes import quantize_codes
from gdfq.ops.upsample_conv2d import upsample_conv2d

_backend.start()

__all__ = [
    "backend",
    "batch_norm_stats",
    "bn_act_fake_quantize",
    "bn_leaky_relu",
    "bns_loss",
    "fake_quantize",
    "fake_quantize_minmax",
    "fake_quantize_minmax_list",
    "kd_ce_loss",
    "observe_fake_quantize",
    "pack_codes",
    "quantize_codes",
    "unpack_codes",
    "upsample_conv2d",
]
