"""Additions to the paper's loop: one module each, all off by default."""

from __future__ import annotations

from torch import nn

from gdfq.training.parts.average import Average
from gdfq.training.parts.clipping import Clipping
from gdfq.training.parts.code_changes import CodeChanges
from gdfq.training.parts.hard_samples import HardSamples
from gdfq.training.parts.learned_ranges import LearnedRanges
from gdfq.training.parts.low_pass import LowPass
from gdfq.training.parts.mixed_labels import MixedLabels
from gdfq.training.parts.objective import Objective
from gdfq.training.parts.part import Part
from gdfq.training.parts.replay import Replay
from gdfq.training.parts.settings import Parts
from gdfq.training.parts.statistics import StatisticsLoss

# In the order in which their hooks are called.
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


def make_parts(settings: Parts, student: nn.Module | None = None) -> list[Part]:
    """Return the parts that are on, in the order of :data:`PARTS`.

    Args:
        settings: of all parts.
        student: that is trained; None for images alone.
    """
    return [part(settings) for part in PARTS if part.is_on(settings, student)]


__all__ = ["PARTS", "Part", "Parts", "make_parts"]
