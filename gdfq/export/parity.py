"""Comparison of an ONNX file, run in each runtime, with its student."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gdfq.data import counted_classes
from gdfq.errors import InputError
from gdfq.export import runtimes
from gdfq.export.onnx_file import require

NOTICEABLE = 1e-3  # difference of logits, far above float32 rounding
REQUIRED_AGREEMENT = 99.9  # percent, in exact mode
# Percent of images with a noticeable difference, in exact mode. Rounding moves activations by one
# step of their grids in up to 2% of the images.
ALLOWED_NOTICEABLE = 5.0
# Allowed effect of rounding in a runtime, relative to its effect in PyTorch.
ROUNDING = 5
# In integer mode, allowed difference to the student, relative to that of the best runtime.
WORSE = 5
_CHECKED = 256  # images for which the student is also computed in float64


@dataclass(frozen=True)
class Parity:
    """Comparison of a file with its student on the same images.

    Logits differ by rounding, and by more where rounding moves an activation by one step of its
    grid. So predictions, the typical difference, and the share of images with a noticeable one are
    compared.

    Attributes:
        agreement: percent of images with equal predictions.
        median_difference: over all logits, absolute.
        noticeable: percent of images with a logit that differs by more than ``limit``.
        student_top1, file_top1: accuracy in percent; None without labels.
        limit: 1e-3. If more images than ``allowed_noticeable`` exceed it: 1e-3 plus 5 times the
            median over images of the student's largest difference from itself in float64.
        allowed_noticeable: upper bound of ``noticeable``, in percent.
        problem: why there is nothing to compare, e.g. the runtime rejects the file; the measures
            are then those of an entirely wrong file. Else empty.
    """

    runtime: str
    images: int
    agreement: float
    median_difference: float
    noticeable: float
    student_top1: float | None
    file_top1: float | None
    limit: float = NOTICEABLE
    allowed_noticeable: float = ALLOWED_NOTICEABLE
    problem: str = ""

    @property
    def wrong(self) -> str:
        """Why the file fails the comparison in exact mode; empty if it passes."""
        if self.problem:
            return self.problem
        if self.agreement < REQUIRED_AGREEMENT:
            return f"{self.agreement:.2f}% equal predictions, below {REQUIRED_AGREEMENT}%"
        if self.noticeable > self.allowed_noticeable:
            return (
                f"logits differ by more than {self.limit:.2g} on {self.noticeable:.1f}% of the "
                f"images, where {self.allowed_noticeable:.1f}% can be rounding"
            )
        return ""

    def worse_than(self, best: float) -> str:
        """Say that it differs far more than the runtime with median difference ``best``, or ""."""
        if self.median_difference <= NOTICEABLE + WORSE * best:
            return ""
        return (
            f"logits differ by {self.median_difference:.2g} (the median), "
            f"those of another runtime by {best:.2g}"
        )


def compare(
    student: nn.Module,
    path: str | Path,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    names: Sequence[str] | None = None,
) -> list[Parity]:
    """Compare the ONNX file ``path`` with its student on the same batches, in each runtime.

    If a runtime rejects the file or returns another shape, :attr:`Parity.problem` says so.

    Args:
        student: that the file was exported from.
        path: of the file.
        batches: images ``(N, C, H, W)`` float32, and labels of :class:`gdfq.data.Batches`, or None.
        names: of runtimes, ``"onnxruntime"`` or ``"openvino"``; None selects all installed.

    Raises:
        InputError: the package of a runtime is missing.
    """
    names = runtimes.installed() if names is None else names
    runners: dict[str, runtimes.Runner] = {}
    problems: dict[str, str] = {}
    for name in names:
        require(name)
        try:
            runners[name] = runtimes.open_model(name, path)
        except InputError as error:
            problems[name] = str(error)
    labels: list[Tensor] = []
    expected: list[Tensor] = []
    checked: list[Tensor] = []
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for images, given in batches:
        with torch.inference_mode():
            expected.append(student(images).float())
        if sum(map(len, checked)) < _CHECKED:
            checked.append(images[:_CHECKED])
        for name, runner in runners.items():
            if name in problems:
                continue
            try:
                logits = torch.from_numpy(runner(images.numpy()).copy())
            except Exception as error:  # the classes of its errors are not public
                problems[name] = f"{runtimes.NAMES[name]} fails: {runtimes.line(error)}"
                continue
            if logits.shape != expected[-1].shape:
                shapes = tuple(logits.shape), tuple(expected[-1].shape)
                problems[name] = f"logits of shape {shapes[0]}, the student's have {shapes[1]}"
            found[name].append(logits)
        if given is not None:
            labels.append(given)
    wanted = torch.cat(expected)
    classes = torch.cat(labels) if labels else None
    top1 = None if classes is None else _top1(wanted.argmax(1), classes)
    parities = [
        Parity(runtimes.NAMES[name], len(wanted), 0.0, math.inf, 100.0, top1,
               None if top1 is None else 0.0, problem=problems[name])
        if name in problems
        else _parity(name, torch.cat(found[name]), wanted, classes)
        for name in names
    ]  # fmt: skip
    if not any(p.noticeable > p.allowed_noticeable and not p.problem for p in parities):
        return parities
    rounding = _rounding(student, checked, wanted)
    return [
        parity
        if parity.problem
        else _parity(name, torch.cat(found[name]), wanted, classes, rounding)
        for name, parity in zip(names, parities, strict=True)
    ]


@torch.inference_mode()
def _rounding(student: nn.Module, batches: list[Tensor], logits: Tensor) -> Tensor:
    """Return each image's largest difference between logits in float32 and in float64.

    All 0 for a student that cannot compute in float64.
    """
    exact = copy.deepcopy(student).double()
    try:
        found = torch.cat([exact(images.double()) for images in batches])
    except RuntimeError:
        return torch.zeros(len(logits), dtype=torch.float32)
    return _max_per_image(found - logits[: len(found)])


@torch.inference_mode()
def difference(
    student: nn.Module, other: nn.Module, batches: Iterable[tuple[Tensor, Tensor | None]]
) -> float:
    """Return the largest absolute difference between two networks' logits; 0 is bit for bit."""
    largest = 0.0
    for images, _ in batches:
        expected, found = student(images), other(images)
        if found.shape != expected.shape:
            return math.inf
        if not torch.equal(expected, found):
            largest = max(largest, float((found - expected).abs().max()))
    return largest


def _parity(
    runtime: str,
    found: Tensor,
    expected: Tensor,
    labels: Tensor | None,
    rounding: Tensor | None = None,
) -> Parity:
    """Compare logits; ``rounding`` is the effect of float32 on each image, if it is known."""
    difference = torch.where(found == expected, 0.0, (found - expected).abs())
    predicted, wanted = found.argmax(1), expected.argmax(1)
    limit, share = NOTICEABLE, ALLOWED_NOTICEABLE
    if rounding is not None:
        limit += ROUNDING * float(rounding.median())
        share = min(100.0, max(share, ROUNDING * _percent(rounding > limit)))
    # Plus three standard deviations of a share estimated from len(found) images.
    allowed = share + 3 * math.sqrt(share * (100 - share) / len(found))
    return Parity(
        runtime=runtimes.NAMES[runtime],
        images=len(found),
        agreement=_percent(predicted == wanted),
        median_difference=float(difference.median()),
        noticeable=_percent(~(_max_per_image(difference) <= limit)),
        student_top1=None if labels is None else _top1(wanted, labels),
        file_top1=None if labels is None else _top1(predicted, labels),
        limit=limit,
        allowed_noticeable=min(100.0, allowed),
    )


def _max_per_image(difference: Tensor) -> Tensor:
    return difference.abs().flatten(1).amax(1)


def _top1(predicted: Tensor, labels: Tensor) -> float:
    return _percent(predicted == counted_classes(labels, predicted))


def _percent(hits: Tensor) -> float:
    return 100.0 * int(hits.sum()) / hits.numel()
