"""The steps of a start, in order: checks, calibration, the end of training."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn

from gdfq.distributed import World
from gdfq.nn import QAct
from gdfq.nn.qact import observing_copy
from gdfq.nn.weight import QuantizedWeight, WeightQuantizer
from gdfq.training.start.act_ranges import set_act_ranges
from gdfq.training.start.correction import correct
from gdfq.training.start.equalization import equalize
from gdfq.training.start.images import Images
from gdfq.training.start.rounding import flip_rounding
from gdfq.training.start.settings import Start
from gdfq.training.start.weight_ranges import set_weight_ranges


def check(start: Start, student: nn.Module) -> None:
    """Raise InputError if ``start`` sets ranges that ``student`` computes on the fly."""
    modules = [*student.modules()]
    acts = any(isinstance(m, QAct) and m.dynamic_range for m in modules)
    weights = any(
        isinstance(m, (QuantizedWeight, WeightQuantizer)) and m.dynamic_range for m in modules
    )
    start.check_dynamic_ranges(acts, weights)


def try_correction(start: Start, student: nn.Module, teacher: nn.Module, images: Tensor) -> None:
    """Raise InputError if ``start`` corrects what the networks do not allow, tried on a copy."""
    if start.corrects or start.bn_reestimate_end:
        given = Images(lambda images, labels: images.clone(), [(images, images)], World())
        correct(observing_copy(student), teacher, given, start.bn_reestimate)


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


def end(
    start: Start, student: nn.Module, teacher: nn.Module, images: Callable[[], Images]
) -> nn.Module:
    """Return the student when training has ended: ``student``, or a corrected copy.

    Args:
        start: what to do.
        student: in evaluation mode; it stays as it is.
        teacher: the float network it was made of.
        images: makes new images where they are needed.
    """
    if not start.bn_reestimate_end:
        return student
    corrected = copy.deepcopy(student)
    correct(corrected, teacher, images(), spread=True)
    return corrected
