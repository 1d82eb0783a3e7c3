"""Which ranges are taken in the call itself, and what each of them is for.

An activation ``(N, C, ...)`` has a range for each sample's each channel, a convolution's weight one
for each kernel (the weights that join one input channel with one output): minimum and maximum, as
they are when the quantizer is called. A range over fewer elements than a quantizer has levels would
keep values rather than quantize them (of a 1x1 kernel, exactly); there each sample, or each output,
has one range.

Source: Hong et al., "GranQ: Granular Zero-Shot Quantization with Channel-Wise Activation Scaling in
QAT", arXiv 2503.18339, 2025.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from gdfq.ops._checks import check_choice

DynamicRanges = Literal["none", "act", "weight", "both"]


def check_dynamic_ranges(dynamic_ranges: str) -> None:
    """Raise an InputError unless ``dynamic_ranges`` is one of the four."""
    check_choice("dynamic_ranges", dynamic_ranges, get_args(DynamicRanges))


def has_dynamic(dynamic_ranges: str, what: str) -> bool:
    """Whether the ranges of ``what``, ``"act"`` or ``"weight"``, are dynamic."""
    return dynamic_ranges in (what, "both")


def range_axes(shape: Sequence[int], bits: int) -> tuple[int, ...] | None:
    """The leading dimensions of which each entry has a range.

    ``(0, 1)`` where what is behind them has at least ``2**bits`` elements, else ``(0,)``; None, one
    range for all, where there is nothing behind the first.
    """
    if len(shape) < 2:
        return None
    return (0, 1) if math.prod(shape[2:]) >= 2**bits else (0,)
