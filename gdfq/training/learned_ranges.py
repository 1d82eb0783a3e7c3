"""Ranges that are trained: their share of the student's optimizer, and what keeps them ranges.

Source: Esser et al., "Learned Step Size Quantization", ICLR 2020; Bhalgat et al., "LSQ+", CVPR
workshops 2020. A range's gradient is scaled as there, by ``1 / sqrt(elements * levels)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gdfq.nn import QAct
from gdfq.nn.weight import QuantizedWeight


class LearnedRanges:
    """The ranges of ``student`` that are parameters.

    An update may halve a range's width at most: what is more is taken back, from both ends
    alike where both are trained. So a range stays one whatever the learning rate.

    Args:
        student: from :func:`gdfq.quantize_model`.
    """

    def __init__(self, student: nn.Module) -> None:
        self.lower: list[Tensor] = []
        self.upper: list[Tensor] = []
        self.contain_zero: list[bool] = []
        for module in student.modules():
            if isinstance(module, QAct) and module.learned:
                self._add(module.lo, module.hi, module.zero_in_range)
            if isinstance(module, QuantizedWeight) and module.learned_weight_range:
                assert module.weight_lo is not None
                assert module.weight_hi is not None
                self._add(module.weight_lo, module.weight_hi, module.zero_in_range)
        self.parameters = [end for end in self.lower + self.upper if isinstance(end, nn.Parameter)]

    def _add(self, lo: Tensor, hi: Tensor, contain_zero: bool) -> None:
        self.lower.append(lo)
        self.upper.append(hi)
        self.contain_zero.append(contain_zero)

    def groups(self, student: nn.Module, rate: Tensor) -> Any:
        """What the student's optimizer is given: ranges apart, without weight decay."""
        if not self.parameters:
            return student.parameters()
        ranges = set(self.parameters)
        others = [p for p in student.parameters() if p not in ranges]
        return [
            {"params": others},
            {"params": self.parameters, "lr": rate, "weight_decay": 0.0},
        ]

    @torch.no_grad()
    def widths(self) -> list[Tensor]:
        """The widths as they are, for :meth:`limit` after the update."""
        return [hi - lo for lo, hi in zip(self.lower, self.upper, strict=True)]

    @torch.no_grad()
    def limit(self, widths: list[Tensor]) -> None:
        """Take back what an update took from ranges of ``widths`` beyond a half of them."""
        for lo, hi, width, zero in zip(
            self.lower, self.upper, widths, self.contain_zero, strict=True
        ):
            missing = (width / 2 - (hi - lo)).clamp_(min=0)
            if isinstance(lo, nn.Parameter):
                missing = missing / 2
                lo.sub_(missing)
            hi.add_(missing)
            if zero:
                hi.clamp_(min=0)
                if isinstance(lo, nn.Parameter):
                    lo.clamp_(max=0)
