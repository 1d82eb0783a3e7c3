"""Whether a file answers as the student it was made of."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gdfq.errors import InputError
from gdfq.export import runtimes
from gdfq.export.onnx_file import require

NOTICEABLE = 1e-3  # of a logit: far above float32's rounding
REQUIRED_AGREEMENT = 99.9  # percent, in exact mode
# Percent of images with a noticeable difference, in exact mode. Rounding moves activations to the
# next step of their grids in up to 2% of the images.
ALLOWED_NOTICEABLE = 5.0
# What rounding may do to a file, in terms of what it does to the student in PyTorch.
ROUNDING = 5
# In integer mode, a runtime that differs from the student so many times as another is in error.
WORSE = 5
_CHECKED = 256  # images of which the student is computed again, in float64


@dataclass(frozen=True)
class Parity:
    """A file beside its student, on the same images; shares and top-1 in percent.

    Logits differ by rounding, and where that moves an activation to the next step of its grid, by
    more: so it is the answers that are compared, the typical difference, and how many rows it is
    noticeable in. ``median_difference`` is over all logits; ``noticeable`` the share of images
    with a logit that differs by more than ``limit``. That is 1e-3; for a student of which more
    images than ``allowed_noticeable`` do, it is what its own rounding moves, if that is more:
    1e-3 plus 5 times the median over images of the largest difference from itself in float64.
    ``problem`` says why there is nothing to compare, empty if there is: the runtime refuses the
    file, or gives logits of another shape; shares are then those of a file that is all wrong.
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
        """In which respect the file does not answer as the student does; empty if in none."""
        if self.problem:
            return self.problem
        if self.agreement < REQUIRED_AGREEMENT:
            return f"{self.agreement:.2f}% same answers, below {REQUIRED_AGREEMENT}%"
        if self.noticeable > self.allowed_noticeable:
            return (
                f"logits differ by more than {self.limit:.2g} on {self.noticeable:.1f}% of the "
                f"images, where {self.allowed_noticeable:.1f}% can be rounding"
            )
        return ""

    def worse_than(self, least: float) -> str:
        """Whether it differs from the student far more than another runtime; empty if not."""
        if self.median_difference <= NOTICEABLE + WORSE * least:
            return ""
        return (
            f"logits differ by {self.median_difference:.2g} (the median), "
            f"those of another runtime by {least:.2g}"
        )


def compare(
    student: nn.Module,
    path: str | Path,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    names: Sequence[str] | None = None,
) -> list[Parity]:
    """Run the ONNX file at ``path`` and its student on the same batches, in each runtime.

    A runtime that refuses the file, or gives another shape, has a :class:`Parity` that says so.

    Args:
        student: what the file was made of.
        path: of the file.
        batches: images ``(N, C, H, W)`` float32 and labels ``(N,)`` or None, for top-1.
        names: of the runtimes, ``"onnxruntime"`` or ``"openvino"``; None is all installed.

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
    answers = torch.cat(labels) if labels else None
    top1 = None if answers is None else _percent(wanted.argmax(1) == answers)
    parities = [
        Parity(runtimes.NAMES[name], len(wanted), 0.0, math.inf, 100.0, top1,
               None if top1 is None else 0.0, problem=problems[name])
        if name in problems
        else _parity(name, torch.cat(found[name]), wanted, answers)
        for name in names
    ]  # fmt: skip
    if not any(p.noticeable > p.allowed_noticeable and not p.problem for p in parities):
        return parities
    rounding = _rounding(student, checked, wanted)
    return [
        parity
        if parity.problem
        else _parity(name, torch.cat(found[name]), wanted, answers, rounding)
        for name, parity in zip(names, parities, strict=True)
    ]


@torch.inference_mode()
def _rounding(student: nn.Module, batches: list[Tensor], logits: Tensor) -> Tensor:
    """How far float32's rounding moves each image's logits, at most: those in float64 are beside.

    All 0 for a student that does not compute in float64.
    """
    exact = copy.deepcopy(student).double()
    try:
        found = torch.cat([exact(images.double()) for images in batches])
    except RuntimeError:
        return torch.zeros(len(logits), dtype=torch.float32)
    return _of_images(found - logits[: len(found)])


@torch.inference_mode()
def difference(
    student: nn.Module, other: nn.Module, batches: Iterable[tuple[Tensor, Tensor | None]]
) -> float:
    """The largest difference between two networks' logits; 0 is bit for bit."""
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
    """The comparison, against what float32's ``rounding`` does to each image if that is known."""
    difference = torch.where(found == expected, 0.0, (found - expected).abs())
    answers, wanted = found.argmax(1), expected.argmax(1)
    limit, share = NOTICEABLE, ALLOWED_NOTICEABLE
    if rounding is not None:
        limit += ROUNDING * float(rounding.median())
        share = min(100.0, max(share, ROUNDING * _percent(rounding > limit)))
    # Three standard deviations of how many of so few images are among that share.
    allowed = share + 3 * math.sqrt(share * (100 - share) / len(found))
    return Parity(
        runtime=runtimes.NAMES[runtime],
        images=len(found),
        agreement=_percent(answers == wanted),
        median_difference=float(difference.median()),
        noticeable=_percent(~(_of_images(difference) <= limit)),
        student_top1=None if labels is None else _percent(wanted == labels),
        file_top1=None if labels is None else _percent(answers == labels),
        limit=limit,
        allowed_noticeable=min(100.0, allowed),
    )


def _of_images(difference: Tensor) -> Tensor:
    """The largest of each image's."""
    return difference.abs().flatten(1).amax(1)


def _percent(hits: Tensor) -> float:
    return 100.0 * int(hits.sum()) / hits.numel()
