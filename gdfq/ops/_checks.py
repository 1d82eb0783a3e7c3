"""Argument checks shared by the operators' wrappers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gdfq.errors import InputError

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MIN_BITS, MAX_BITS = 2, 8

Ste = Literal["identity", "clip"]


def check_bits(bits: int, name: str = "bits") -> None:
    """``bits`` is an int from 2 to 8."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        raise InputError(f"{name}: must be an int from {MIN_BITS} to {MAX_BITS}, got {bits!r}")


def check_ste(ste: str) -> None:
    """``ste`` names a straight-through estimator."""
    if ste not in ("identity", "clip"):
        raise InputError(f"ste: must be 'identity' or 'clip', got {ste!r}")


def check_float(tensor: Tensor, name: str) -> None:
    """``tensor`` is a tensor of a floating-point dtype the operators take."""
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name}: must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATS:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        raise InputError(f"{name}: dtype must be one of {allowed}, got {tensor.dtype}")


def check_axis(axis: int | None, tensor: Tensor, name: str) -> int | None:
    """``axis`` as a non-negative number, or None."""
    if axis is None:
        return None
    if not isinstance(axis, int) or not -tensor.dim() <= axis < tensor.dim():
        raise InputError(
            f"axis: must be None or an int from {-tensor.dim()} to {tensor.dim() - 1} for {name} "
            f"of shape {tuple(tensor.shape)}, got {axis!r}"
        )
    return axis % tensor.dim()


def check_vector(tensor: Tensor | None, entries: int, name: str, like: Tensor) -> None:
    """``tensor`` is None or has ``entries`` floats on the device of ``like``."""
    if tensor is None:
        return
    check_float(tensor, name)
    if tuple(tensor.shape) != (entries,):
        raise InputError(f"{name}: shape must be ({entries},), got {tuple(tensor.shape)}")
    if tensor.device != like.device:
        raise InputError(f"{name}: must be on {like.device}, got {tensor.device}")
