"""The operators: one file each, with wrapper, checks, tracing kernel, gradient and reference.

Importing this package loads the native module and registers ``torch.ops.gdfq``. A device without
a native kernel runs the reference.
"""

import torch  # noqa: F401  (its libraries must be loaded before the native module)

from gdfq.ops import _native, batch_norm_stats, fake_quantize, fake_quantize_minmax  # noqa: F401
