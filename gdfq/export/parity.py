"""Whether a file answers as the student it was made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gdfq.export import runtimes

NOTICEABLE = 1e-3  # of a logit: far above float32's rounding
REQUIRED_AGREEMENT = 99.9  # percent, in exact mode


@dataclass(frozen=True)
class Parity:
    """A file beside its student, on the same images; shares and top-1 in percent.

    Logits differ by rounding, and where that moves an activation to the next step of its grid, by
    more: so it is the answers that are compared, the typical difference, and how many rows it is
    noticeable in. ``median_difference`` is over all logits; ``noticeable`` the share of images
    with a logit that differs by more than 1e-3.
    """

    runtime: str
    images: int
    agreement: float
    median_difference: float
    noticeable: float
    student_top1: float | None
    file_top1: float | None


def compare(
    student: nn.Module,
    path: str | Path,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    names: Sequence[str] | None = None,
) -> list[Parity]:
    """Run the ONNX file at ``path`` and its student on the same batches, in each runtime.

    Args:
        student: what the file was made of.
        path: of the file.
        batches: images ``(N, C, H, W)`` float32 and labels ``(N,)`` or None, for top-1.
        names: of the runtimes, ``"onnxruntime"`` or ``"openvino"``; None is all installed.

    Raises:
        InputError: see :func:`gdfq.export.runtimes.open_model`.
    """
    names = runtimes.installed() if names is None else names
    runners = {name: runtimes.open_model(name, path) for name in names}
    labels: list[Tensor] = []
    expected: list[Tensor] = []
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for images, given in batches:
        with torch.inference_mode():
            expected.append(student(images).float())
        for name, runner in runners.items():
            found[name].append(torch.from_numpy(runner(images.numpy()).copy()))
        if given is not None:
            labels.append(given)
    wanted = torch.cat(expected)
    answers = torch.cat(labels) if labels else None
    return [_parity(name, torch.cat(found[name]), wanted, answers) for name in names]


@torch.inference_mode()
def difference(
    student: nn.Module, other: nn.Module, batches: Iterable[tuple[Tensor, Tensor | None]]
) -> float:
    """The largest difference between two networks' logits; 0 is bit for bit."""
    largest = 0.0
    for images, _ in batches:
        expected, found = student(images), other(images)
        if not torch.equal(expected, found):
            largest = max(largest, float((found - expected).abs().max()))
    return largest


def _parity(runtime: str, found: Tensor, expected: Tensor, labels: Tensor | None) -> Parity:
    difference = (found - expected).abs()
    answers, wanted = found.argmax(1), expected.argmax(1)
    return Parity(
        runtime=runtimes.NAMES[runtime],
        images=len(found),
        agreement=_percent(answers == wanted),
        median_difference=float(difference.median()),
        noticeable=_percent((difference > NOTICEABLE).any(1)),
        student_top1=None if labels is None else _percent(wanted == labels),
        file_top1=None if labels is None else _percent(answers == labels),
    )


def _percent(hits: Tensor) -> float:
    return 100.0 * int(hits.sum()) / len(hits)
