"""The arithmetic of convolutions and matrix products during a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch

from gdfq.errors import InputError
from gdfq.ops._checks import check_choice

Precision = Literal["fp32", "tf32", "bf16"]


def check_precision(precision: str, device: torch.device, name: str = "precision") -> None:
    """Raise an InputError if there is no such precision, or ``device`` doesn't have it."""
    check_choice(name, precision, get_args(Precision))
    if precision == "tf32" and device.type != "cuda":
        raise InputError(f"{name}: 'tf32' needs a CUDA device, the teacher is on {device}")


@contextmanager
def multiplications(precision: Precision, device: torch.device) -> Iterator[None]:
    """Make CUDA's float32 products exact for ``"fp32"``, TensorFloat-32 for the others.

    The process's own settings are put back afterwards; on the CPU nothing is changed.
    """
    if device.type != "cuda":
        yield
        return
    chosen = "ieee" if precision == "fp32" else "tf32"
    backends: tuple[Any, ...] = (
        torch.backends.cuda.matmul,
        torch.backends.cudnn.conv,  # type: ignore[attr-defined]
    )
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = chosen
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return a context for forwards: convolutions in bfloat16 for ``"bf16"``, else no change.

    Weights' casts are not cached: a step captured in a CUDA graph must make them anew.
    """
    return torch.autocast(
        device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False
    )
