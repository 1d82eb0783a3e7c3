"""Activation ranges from generated images."""

from __future__ import annotations

from contextlib import nullcontext

from torch import nn

from gdfq.convert.fusion import FusedModel
from gdfq.nn import QAct
from gdfq.training.start.images import Images


def observe_ranges(student: nn.Module, fused: FusedModel | None, images: Images) -> None:
    """Set the student's activation ranges by the minima and maxima over ``images``.

    Args:
        student: whose quantizers are set.
        fused: its fused form, if there is one; it sees the images then.
        images: all batches.
    """
    quantizers = [
        module
        for module in student.modules()
        if isinstance(module, QAct) and not module.dynamic_range
    ]
    if not quantizers:
        return
    for quantizer in quantizers:
        quantizer.reset_range()
        quantizer.train()
    try:
        with fused.weights_kept() if fused else nullcontext():
            images.through(fused or student)
    finally:
        for quantizer in quantizers:
            quantizer.eval()
