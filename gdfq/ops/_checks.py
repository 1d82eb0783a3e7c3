"""Argument checks shared by the operators' wrappers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gdfq.errors import InputError

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MIN_BITS, MAX_BITS = 2, 8

Ste = Literal["identity", "clip"]
LearnedSte = Literal["identity", "clip", "learned"]
Activation = Literal["relu", "relu6", "none"]


def check_bits(bits: int, name: str = "bits") -> None:
    """``bits`` is an int from 2 to 8."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        raise InputError(f"{name}: must be an int from {MIN_BITS} to {MAX_BITS}, got {bits!r}")


def check_ste(ste: str, learned: bool = False) -> None:
    """``ste`` names a straight-through estimator."""
    if ste not in ("identity", "clip", *(["learned"] if learned else [])):
        names = "'identity', 'clip' or 'learned'" if learned else "'identity' or 'clip'"
        raise InputError(f"ste: must be {names}, got {ste!r}")


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
    if (
        isinstance(axis, bool)
        or not isinstance(axis, int)
        or not -tensor.dim() <= axis < tensor.dim()
    ):
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
        raise InputError(f"{name}: must be on {like.device} like x, got {tensor.device}")


def check_range(lo: Tensor, hi: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    """``lo`` and ``hi`` are floats of ``shape`` on the device of ``x``."""
    for name, end in (("lo", lo), ("hi", hi)):
        check_float(end, name)
        if tuple(end.shape) != shape:
            raise InputError(
                f"{name}: shape must be {shape} for x of shape {tuple(x.shape)}, "
                f"got {tuple(end.shape)}"
            )
        if end.device != x.device:
            raise InputError(f"{name}: must be on {x.device} like x, got {end.device}")


def check_written(tensors: dict[str, Tensor]) -> None:
    """No element of these 0-d or 1-d tensors, which are written in place, is in two places."""
    if torch.compiler.is_compiling():  # memory has no addresses there
        return
    places: dict[str, tuple[int, range]] = {}
    for name, tensor in tensors.items():
        length, step = (tensor.shape[0], tensor.stride(0)) if tensor.dim() else (1, 1)
        if length > 1 and step == 0:
            raise InputError(f"{name}: its elements share memory, got stride 0; it is written to")
        size, start = tensor.element_size(), tensor.storage_offset() * tensor.element_size()
        here = range(start, start + length * max(1, step) * size, max(1, step) * size)
        storage = tensor.untyped_storage()._cdata
        for other, (storage_there, there) in places.items():
            if storage == storage_there and _overlap(here, size, there, tensors[other]):
                raise InputError(
                    f"{other}, {name}: must not share memory, for both are written to; got bytes "
                    f"{there.start} to {there.stop - 1} and {here.start} to {here.stop - 1} of one "
                    "storage"
                )
        places[name] = storage, here


def _overlap(here: range, size: int, there: range, other: Tensor) -> bool:
    """Whether elements of ``size`` bytes at ``here`` touch those of ``other`` at ``there``."""
    if here.stop <= there.start or there.stop <= here.start:
        return False
    taken = {start + byte for start in there for byte in range(other.element_size())}
    return any(start + byte in taken for start in here for byte in range(size))


def check_act(act: str) -> None:
    """``act`` names an activation."""
    if act not in ("relu", "relu6", "none"):
        raise InputError(f"act: must be 'relu', 'relu6' or 'none', got {act!r}")


def check_same(tensor: Tensor | None, name: str, like: Tensor, like_name: str) -> None:
    """``tensor`` is None or has the shape, dtype and device of ``like``."""
    if tensor is None:
        return
    check_float(tensor, name)
    for what in ("shape", "dtype", "device"):
        actual, expected = getattr(tensor, what), getattr(like, what)
        if actual != expected:
            if what == "shape":
                actual, expected = tuple(actual), tuple(expected)
            raise InputError(f"{name}: {what} must be {expected} like {like_name}, got {actual}")


def check_batch_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> None:
    """``x`` is ``(N, C, ...)`` and everything else fits its C channels."""
    check_float(x, "x")
    if x.dim() < 2:
        raise InputError(f"x: must be (N, C, ...), got shape {tuple(x.shape)}")
    if not eps > 0:
        raise InputError(f"eps: must be > 0, got {eps!r}")
    check_vector(running_mean, x.shape[1], "running_mean", like=x)
    check_vector(running_var, x.shape[1], "running_var", like=x)
    check_vector(weight, x.shape[1], "weight", like=x)
    check_vector(bias, x.shape[1], "bias", like=x)


def check_moving_range(
    x: Tensor,
    average_lo: Tensor,
    average_hi: Tensor,
    lo: Tensor,
    hi: Tensor,
    num_batches_tracked: Tensor,
    momentum: float,
) -> None:
    """``momentum`` is in [0, 1), and the five buffers are different numbers on ``x``'s device."""
    if not 0 <= momentum < 1:
        raise InputError(f"momentum: must be in [0, 1), got {momentum!r}")
    buffers = {
        "average_lo": (average_lo, torch.float32),
        "average_hi": (average_hi, torch.float32),
        "lo": (lo, torch.float32),
        "hi": (hi, torch.float32),
        "num_batches_tracked": (num_batches_tracked, torch.int64),
    }
    for name, (buffer, dtype) in buffers.items():
        if tuple(buffer.shape) != () or buffer.dtype != dtype:
            raise InputError(
                f"{name}: must be 0-d {dtype}, got {buffer.dtype} of shape {tuple(buffer.shape)}"
            )
        if buffer.device != x.device:
            raise InputError(f"{name}: must be on {x.device} like x, got {buffer.device}")
    check_written({name: buffer for name, (buffer, _) in buffers.items()})
