"""Additions to the paper's loop: one module each, all off by default.

A part is one module: its settings, formula, source, cost, and its :class:`~.part.Part`. It is named
in :data:`PARTS` and its settings in :class:`Parts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import model_validator
from torch import Tensor

from gdfq.errors import InputError
from gdfq.training.parts.average import Average, AverageSettings
from gdfq.training.parts.clipping import Clipping, ClippingSettings
from gdfq.training.parts.code_changes import CodeChanges, CodeChangeSettings
from gdfq.training.parts.hard_samples import HardSamples, HardSampleSettings
from gdfq.training.parts.learned_ranges import (
    LearnedRanges,
    LearnedRangeSettings,
    learns_ranges,
)
from gdfq.training.parts.low_pass import LowPass, LowPassSettings
from gdfq.training.parts.mixed_labels import MixedLabels, MixedLabelSettings
from gdfq.training.parts.objective import Objective, ObjectiveSettings
from gdfq.training.parts.part import Part
from gdfq.training.parts.replay import Replay, ReplaySettings
from gdfq.training.parts.statistics import StatisticsLoss, StatisticsSettings
from gdfq.training.settings import Training

if TYPE_CHECKING:
    from typing_extensions import Self

# In the order of their hooks. Objective replaces the loss, so terms that are added come behind it.
PARTS: tuple[type[Part], ...] = (
    MixedLabels,
    LowPass,
    StatisticsLoss,
    Replay,
    HardSamples,
    Objective,
    CodeChanges,
    Clipping,
    LearnedRanges,
    Average,
)


# Fields are in the order of the bases from last to first.
class Parts(
    LearnedRangeSettings,
    ReplaySettings,
    AverageSettings,
    StatisticsSettings,
    LowPassSettings,
    MixedLabelSettings,
    ClippingSettings,
    CodeChangeSettings,
    HardSampleSettings,
    ObjectiveSettings,
):
    """Additions to the loop, all off by default; off, a step is the paper's, bit for bit.

    Each is a module of :mod:`gdfq.training.parts`, with its formula, source and cost.
    """

    none: ClassVar[str] = "none, the paper's loop"

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if self.max_grad_norm is not None and self.code_change_share is not None:
            raise InputError("max_grad_norm: code_change_share decides how long gradients are")
        return self


def check_parts(settings: Parts, training: Training, learned_ranges: bool) -> None:
    """Raise InputError if ``settings`` contradict ``training`` or the student's ranges.

    ``learned_ranges``: whether ranges of the student are trained.
    """
    for part in PARTS:
        part.check_settings(settings, training, learned_ranges)


def make_parts(settings: Parts, learned_ranges: bool = False) -> list[Part]:
    """Return the parts that are on, in the order of :data:`PARTS`."""
    return [part(settings) for part in PARTS if part.is_on(settings, learned_ranges)]


def final_state(trainer: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state of the student to measure and to save.

    Args:
        trainer: of :meth:`gdfq.GDFQTrainer.state_dict`.
    """
    student, states = trainer["student"], trainer["parts"]
    for part in PARTS:
        if part.name in states:
            student = part.final_state(student, states[part.name])
    return student


__all__ = [
    "PARTS", "Part", "Parts", "check_parts", "final_state", "learns_ranges", "make_parts",
]  # fmt: skip
