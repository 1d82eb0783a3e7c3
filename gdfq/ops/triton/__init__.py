"""Triton kernels: one file per operator, whose launchers have the operators' signatures.

None of them has run on a GPU: they run in Triton's interpreter and are compiled ahead of time.
Importing this package does not import Triton; the files do.
"""

from __future__ import annotations

# An operator and its backward share a file, named like the operator.
OPERATORS = (
    "batch_norm_stats",
    "batch_norm_stats_backward",
    "fake_quantize",
    "fake_quantize_backward",
    "fake_quantize_minmax",
)
