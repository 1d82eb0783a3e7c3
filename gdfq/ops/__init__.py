"""The operators: one file each, with wrapper, checks, tracing kernel, gradient and reference.

Importing this package loads the native module and registers ``torch.ops.gdfq``. Which kernels run
is :func:`backend`'s to say.
"""

import torch  # noqa: F401  (its libraries must be loaded before the native module)

from gdfq.ops import (  # noqa: F401
    _backend,
    _native,
    batch_norm_stats,
    bn_act_fake_quantize,
    bn_leaky_relu,
    bns_loss,
    count_changed_codes,
    fake_quantize,
    fake_quantize_minmax,
    fake_quantize_minmax_list,
    kd_ce_loss,
    observe_bn_act_fake_quantize,
    observe_fake_quantize,
    pack_codes,
    quantize_codes,
    upsample_conv2d,
)
from gdfq.ops._backend import backend

_backend.start()

__all__ = ["backend"]
