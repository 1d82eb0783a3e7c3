"""The order of a start's parts."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from gdfq.nn.weight import QuantizedWeight
from gdfq.training.start.act_ranges import set_act_ranges
from gdfq.training.start.correction import correct
from gdfq.training.start.equalization import equalize
from gdfq.training.start.images import Images
from gdfq.training.start.rounding import flip_rounding
from gdfq.training.start.settings import Start
from gdfq.training.start.weight_ranges import set_weight_ranges


def prepare(start: Start, student: nn.Module) -> None:
    """Give ``student`` the buffers that ``start`` will fill."""
    if start.weight_ranges != "minmax":
        for layer in student.modules():
            if isinstance(layer, QuantizedWeight):
                layer.keep_weight_range()


def begin(
    start: Start,
    student: nn.Module,
    teacher: nn.Module,
    images: Images,
    observe: Callable[[Images], None],
) -> None:
    """Make ``student`` ready to be fine-tuned.

    Weights first; then activation ranges, for what these weights compute; then, where statistics or
    biases are corrected, both once more, because each was set for the other as it was.

    Args:
        start: what to do.
        student: in evaluation mode, prepared.
        teacher: the float network it was made of.
        images: the calibration's.
        observe: sets activation ranges by minima and maxima.
    """
    if start.equalize:
        equalize(student)
    set_weight_ranges(student, start.weight_ranges)
    if start.rounding == "flip":
        flip_rounding(student)
    rounds = 2 if start.corrects else 1
    for _ in range(rounds):
        observe(images)
        if start.act_ranges != "minmax":
            set_act_ranges(student, images, start.act_ranges, start.percentile)
        if start.corrects:
            correct(student, teacher, images, start.bn_reestimate)
