"""Dynamic ranges, computed on the fly, and their granularity.

An activation ``(N, C, ...)`` has one range for each sample and channel, a convolution's weight one
for each kernel (the weights between one input and one output channel): the minimum and maximum in
that call. With fewer elements than quantization levels, a range would keep values instead of
quantizing them (exactly so for a 1x1 kernel). There each sample, or each output, has one range.

Source: Hong et al., "GranQ: Granular Zero-Shot Quantization with Channel-Wise Activation Scaling in
QAT", arXiv 2503.18339, 2025.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def range_axes(shape: Sequence[int], bits: int) -> tuple[int, ...] | None:
    """Return the leading dimensions with one range for each index.

    ``(0, 1)`` if the remaining dimensions have at least ``2**bits`` elements, else ``(0,)``. None,
    a single range, for fewer than two dimensions.
    """
    if len(shape) < 2:
        return None
    return (0, 1) if math.prod(shape[2:]) >= 2**bits else (0,)
