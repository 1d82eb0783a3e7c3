"""Ranges that are trained, at a learning rate of their own and without weight decay.

On if the student was made with ``learned_ranges``. ``range_lr`` follows the student's schedule.
An update may halve a range's width at most: what is more is taken back, from both bounds alike
where both are trained, so that a range keeps a positive width at any learning rate.

Source: Esser et al., "Learned Step Size Quantization", ICLR 2020; Bhalgat et al., "LSQ+", CVPR
workshops 2020. A range's gradient is scaled as there, by ``1 / sqrt(elements * levels)``.
Costs a few operations on tensors of a number per range.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from gdfq.errors import InputError
from gdfq.nn import QAct
from gdfq.nn.weight import QuantizedWeight
from gdfq.settings import Positive, Settings
from gdfq.training.parts.part import Loop, Part
from gdfq.training.schedules import LearningRate
from gdfq.training.settings import Training


class LearnedRangeSettings(Settings):
    """Settings of learned ranges."""

    range_lr: Positive = Field(1e-2, description="learning rate of ranges that are learned")


class LearnedRanges(Part):
    """The ranges of the student that are parameters."""

    settings: LearnedRangeSettings

    @classmethod
    def is_on(cls, settings: Settings, learned_ranges: bool) -> bool:
        """Return ``learned_ranges``: whether ranges of the student are trained."""
        return learned_ranges

    @classmethod
    def check_settings(cls, settings: Settings, training: Training, learned_ranges: bool) -> None:
        """Raise InputError if there is a learning rate, and nothing that has it."""
        if "range_lr" in settings.changed() and not learned_ranges:
            raise InputError(
                "range_lr: has no effect without learned_ranges; make the student with "
                "learned_ranges = 'act', 'weight' or 'both'"
            )

    def setup(self, loop: Loop) -> None:
        """Find the ranges."""
        self.lower: list[Tensor] = []
        self.upper: list[Tensor] = []
        self.contain_zero: list[bool] = []
        self.before: list[Tensor] = []
        for module in filter(_is_learned, loop.student.modules()):
            if isinstance(module, QAct):
                self._add(module.lo, module.hi, module.zero_in_range)
            if isinstance(module, QuantizedWeight):
                assert module.weight_lo is not None
                assert module.weight_hi is not None
                self._add(module.weight_lo, module.weight_hi, module.zero_in_range)
        self.parameters = [
            bound for bound in self.lower + self.upper if isinstance(bound, nn.Parameter)
        ]

    def parameter_groups(self, groups: list[dict[str, Any]], rate: LearningRate) -> Any:
        """Return the groups with ranges apart, without weight decay."""
        ranges = set(self.parameters)
        others = [{**g, "params": [p for p in g["params"] if p not in ranges]} for g in groups]
        own = rate.follower(self.settings.range_lr)
        return [*others, {"params": self.parameters, "lr": own, "weight_decay": 0.0}]

    def gradients(self, parameters: list[Tensor], rate: Tensor) -> None:
        """Remember the widths."""
        self.before = self.widths()

    def after_update(self) -> None:
        """Limit the widths."""
        before, self.before = self.before, []
        self.limit(before)

    def _add(self, lo: Tensor, hi: Tensor, contain_zero: bool) -> None:
        self.lower.append(lo)
        self.upper.append(hi)
        self.contain_zero.append(contain_zero)

    @torch.no_grad()
    def widths(self) -> list[Tensor]:
        """Return the widths of all ranges."""
        return [hi - lo for lo, hi in zip(self.lower, self.upper, strict=True)]

    @torch.no_grad()
    def limit(self, widths: list[Tensor]) -> None:
        """Take back what an update took from ranges of ``widths`` beyond half of each."""
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


def learns_ranges(student: nn.Module) -> bool:
    """Return whether ranges of ``student`` are trained."""
    return any(map(_is_learned, student.modules()))


def _is_learned(module: nn.Module) -> bool:
    if isinstance(module, QAct):
        return module.learned
    return isinstance(module, QuantizedWeight) and module.learned_weight_range
