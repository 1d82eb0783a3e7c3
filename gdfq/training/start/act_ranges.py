"""Activation ranges from the distribution of the values.

MSE-optimal: Sung et al., "Resiliency of Deep Neural Networks under Quantization", 2015;
Banner et al., "Post Training 4-bit Quantization of Convolutional Networks", NeurIPS 2019.
Percentiles: Li et al., "Fully Quantized Network for Object Detection", CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gdfq.nn import QAct
from gdfq.nn.qact import activate
from gdfq.ops.fake_quantize import fake_quantize
from gdfq.training.start.images import Images

BINS = 2048
CANDIDATES = 100  # of a bound, in a search over one bound
COARSE = 48  # of each bound, in a search over both
CHUNK = 2**24  # up to where float32 counts exactly


class Histogram:
    """How often an activation's values fall into each of :data:`BINS` equal parts of its range.

    Attributes:
        lo, hi: the minimum and maximum, 0-d float32.
        counts: ``(BINS,)`` float64.
    """

    def __init__(self, lo: Tensor, hi: Tensor) -> None:
        self.lo, self.hi = lo, hi
        self.counts = torch.zeros(BINS, dtype=torch.float64, device=lo.device)

    def add(self, x: Tensor) -> None:
        """Count the values of ``x``, all within the range."""
        width = torch.clamp(self.hi - self.lo, min=1e-30)
        for part in x.flatten().split(CHUNK):
            # To [0, 1], so that the bounds need not be read: histc takes them as numbers.
            self.counts += torch.histc((part.float() - self.lo) / width, BINS, 0.0, 1.0)

    @property
    def values(self) -> Tensor:
        """The middle of each part, ``(BINS,)`` float32."""
        middles = (torch.arange(BINS, device=self.lo.device, dtype=torch.float32) + 0.5) / BINS
        return self.lo + middles * (self.hi - self.lo)

    def percentile(self, percent: float) -> Tensor:
        """Return the upper edge of the bin that ``percent`` percent of all values reach, 0-d."""
        reached = self.counts.cumsum(0) >= self.counts.sum() * (percent / 100)
        part = reached.double().argmax()
        return (self.lo + (part + 1) / BINS * (self.hi - self.lo)).float()


@torch.no_grad()
def set_act_ranges(student: nn.Module, images: Images, how: str, percentile: float) -> None:
    """Set the range of every :class:`QAct` of ``student``, which has ranges, from ``images``.

    Two passes: one for each activation's minimum and maximum, one for a histogram between them.
    Ranges are chosen for what the student computes with the ranges it has so far.

    Args:
        student: in evaluation mode.
        images: the calibration's.
        how: ``"mse"`` or ``"percentile"``.
        percentile: for the latter.
    """
    quantizers = [module for module in student.modules() if isinstance(module, QAct)]
    bounds = {
        q: torch.full((2,), -torch.inf, device=q.lo.device, dtype=torch.float32) for q in quantizers
    }

    def widen(q: QAct, x: Tensor) -> None:
        lo, hi = torch.aminmax(x)
        torch.maximum(bounds[q], torch.stack([-lo, hi]).float(), out=bounds[q])

    with _seen(quantizers, widen):
        images.through(student)
    # An activation that the images never reach keeps its range.
    together = torch.stack([bounds[q] for q in quantizers])
    images.world.max(together, "activation ranges")
    for q, pair in zip(quantizers, together.unbind(), strict=True):
        bounds[q] = pair
    histograms = {q: Histogram(-pair[0], pair[1]) for q, pair in bounds.items()}
    with _seen(quantizers, lambda q, x: histograms[q].add(x)):
        images.through(student)
    counts = torch.stack([histograms[q].counts for q in quantizers])
    images.world.sum(counts, "activation ranges")
    for q, row in zip(quantizers, counts.unbind(), strict=True):
        histogram = histograms[q]
        histogram.counts = row
        if not bool(row.sum() > 0) or not bool(torch.isfinite(bounds[q]).all()):
            continue
        lo, hi = (
            mse_bounds(histogram, q) if how == "mse" else _percentiles(histogram, q, percentile)
        )
        q.lo.copy_(lo)
        q.hi.copy_(hi)


def mse_bounds(histogram: Histogram, q: QAct) -> tuple[Tensor, Tensor]:
    """Return the MSE-optimal lower and upper bound of ``q`` over ``histogram``, 0-d each.

    Where all values have one sign, as behind ReLU, the bound at 0's side stays and the other is
    one of :data:`CANDIDATES`; else both move, first coarsely, then around the best.
    """
    lowest, highest = histogram.lo, histogram.hi
    ones = torch.linspace(1 / CANDIDATES, 1, CANDIDATES, device=lowest.device, dtype=torch.float32)
    if _one_sided(q):
        lo, hi = lowest.expand(CANDIDATES), lowest + (highest - lowest) * ones
        best = _errors(histogram, lo, hi, q.act_bits).argmin()
        return lo[best], hi[best]
    width = highest - lowest
    steps = torch.arange(COARSE, device=lowest.device, dtype=torch.float32) / COARSE
    around = torch.arange(-4, 5, device=lowest.device, dtype=torch.float32) / COARSE
    moved_in = torch.zeros(2, device=lowest.device, dtype=torch.float32)  # shares of the width
    for offsets in (steps, around / 4, around / 16, around / 64):
        first, second = (moved_in.view(2, 1) + offsets).clamp(0, 1).unbind()
        lo = (lowest + width * first).repeat_interleave(len(second))
        hi = (highest - width * second).repeat(len(first))
        errors = _errors(histogram, lo, hi, q.act_bits)
        best = errors.masked_fill(lo >= hi, torch.inf).argmin()
        moved_in = torch.stack([first[best // len(second)], second[best % len(second)]])
    return lo[best], hi[best]


def _errors(histogram: Histogram, lo: Tensor, hi: Tensor, bits: int) -> Tensor:
    """Return the squared error over ``histogram`` of each range ``lo`` to ``hi``, ``(ranges,)``."""
    values = histogram.values
    errors = []
    for first, last in zip(lo.split(64), hi.split(64), strict=True):
        rows = values.expand(len(first), -1).contiguous()
        wrong = (
            fake_quantize(rows, first.contiguous(), last.contiguous(), bits, axis=0) - rows
        ).double()
        errors.append((wrong.square() * histogram.counts).sum(1))
    return torch.cat(errors)


def _percentiles(histogram: Histogram, q: QAct, percent: float) -> tuple[Tensor, Tensor]:
    hi = histogram.percentile(percent)
    if _one_sided(q):
        return histogram.lo, hi
    flipped = Histogram(-histogram.hi, -histogram.lo)
    flipped.counts = histogram.counts.flip(0)
    return -flipped.percentile(percent), hi


def _one_sided(q: QAct) -> bool:
    return q.act != "none"


@contextmanager
def _seen(quantizers: Sequence[QAct], look: Callable[[QAct, Tensor], Any]) -> Iterator[None]:
    """Call ``look`` with what each of ``quantizers`` is about to quantize."""

    def hook(q: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(q, QAct)
        if inputs[0].numel():
            look(q, activate(inputs[0], q.act))

    handles = [q.register_forward_pre_hook(hook) for q in quantizers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
