"""The order of a start's parts."""

from __future__ import annotations

from torch import nn

from gdfq.training.start.act_ranges import set_act_ranges
from gdfq.training.start.images import Images
from gdfq.training.start.settings import Start


def finish_start(start: Start, student: nn.Module, images: Images) -> None:
    """What ``start`` asks for once ``student`` has activation ranges from minima and maxima."""
    if start.act_ranges != "minmax":
        set_act_ranges(student, images, start.act_ranges, start.percentile)
