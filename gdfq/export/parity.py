"""Whether a file answers as the student it was made of."""

from __future__ import annotations

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


@torch.inference_mode()
def logits_of(student: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """``(N, classes)`` float32."""
    return torch.cat([student(batch) for batch in images.split(batch_size)]).float()


def compare(
    runtime: str,
    path: str | Path,
    images: Tensor,
    expected: Tensor,
    labels: Tensor | None = None,
    batch_size: int = 250,
) -> Parity:
    """Run the ONNX file at ``path`` on ``images`` and compare with the student's logits.

    Args:
        runtime: ``"onnxruntime"`` or ``"openvino"``.
        path: of the file.
        images: ``(N, C, H, W)`` float32.
        expected: the student's logits, see :func:`logits_of`, made with the same ``batch_size``.
        labels: ``(N,)``, for top-1.
        batch_size: images per run.

    Raises:
        InputError: see :func:`gdfq.export.runtimes.open_model`.
    """
    found = runtimes.run(runtimes.open_model(runtime, path), images, batch_size)
    difference = (found - expected).abs()
    answers, wanted = found.argmax(1), expected.argmax(1)
    return Parity(
        runtime=runtimes.NAMES[runtime],
        images=len(images),
        agreement=_percent(answers == wanted),
        median_difference=float(difference.median()),
        noticeable=_percent((difference > NOTICEABLE).any(1)),
        student_top1=None if labels is None else _percent(wanted == labels),
        file_top1=None if labels is None else _percent(answers == labels),
    )


def _percent(hits: Tensor) -> float:
    return 100.0 * float(hits.float().mean())
