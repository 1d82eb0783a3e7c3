"""Triton kernels: one file per operator, whose launchers have the operators' signatures.

None of them has run on a GPU: they run in Triton's interpreter and are compiled ahead of time.
Importing this package does not import Triton; the files do.
"""

from __future__ import annotations

# Each operator's file; an operator and its backward share one.
OPERATORS = {
    "batch_norm_stats": "batch_norm_stats",
    "batch_norm_stats_backward": "batch_norm_stats",
    "fake_quantize": "fake_quantize",
    "fake_quantize_backward": "fake_quantize",
    "fake_quantize_minmax": "fake_quantize_minmax",
}
