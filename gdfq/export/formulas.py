"""Decompositions of this package's operators into PyTorch's, for exported students."""

from __future__ import annotations

from typing import Any

import torch

from gdfq.ops.fake_quantize import fake_quantize_reference
from gdfq.ops.fake_quantize_minmax import fake_quantize_minmax_reference

FORMULAS: dict[Any, Any] = {
    torch.ops.gdfq.fake_quantize.default: fake_quantize_reference,
    torch.ops.gdfq.fake_quantize_minmax.default: fake_quantize_minmax_reference,
}
