"""Argument checks shared by the operators' wrappers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from gdfq.errors import InputError
from gdfq.settings import one_of

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MIN_BITS, MAX_BITS = 2, 8

Ste = Literal["identity", "clip"]
LearnedSte = Literal["identity", "clip", "learned"]
Activation = Literal["relu", "relu6", "none"]


def check_bits(bits: int, name: str = "bits") -> int:
    """Return ``bits``, an int from 2 to 8, also of NumPy, as Python's."""
    if isinstance(bits, (np.generic, np.ndarray)):
        bits = bits.tolist()
    if isinstance(bits, bool) or not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        raise InputError(f"{name}: must be an int from {MIN_BITS} to {MAX_BITS}, got {bits!r}")
    return bits


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Check that ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise InputError(f"{name}: must be {one_of(allowed)}, got {value!r}")


def check_ste(ste: str, learned: bool = False) -> None:
    """Check that ``ste`` names a straight-through estimator."""
    check_choice("ste", ste, get_args(LearnedSte if learned else Ste))


def check_float(tensor: Tensor, name: str) -> None:
    """Check that ``tensor`` is a tensor of a floating-point dtype the operators take."""
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name}: must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATS:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        raise InputError(f"{name}: dtype must be one of {allowed}, got {tensor.dtype}")


def check_axis(axis: int | None, tensor: Tensor, name: str) -> int | None:
    """Return ``axis`` as a non-negative number, or None."""
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
    """Check that ``tensor`` is None or has ``entries`` floats on the device of ``like``."""
    if tensor is None:
        return
    check_float(tensor, name)
    if tuple(tensor.shape) != (entries,):
        raise InputError(f"{name}: shape must be ({entries},), got {tuple(tensor.shape)}")
    if tensor.device != like.device:
        raise InputError(f"{name}: must be on {like.device} like x, got {tensor.device}")


def check_range(
    lo: Tensor,
    hi: Tensor,
    shape: tuple[int, ...],
    x: Tensor,
    names: tuple[str, str] = ("lo", "hi"),
) -> None:
    """Check that ``lo`` and ``hi`` are floats of ``shape`` on the device of ``x``."""
    for name, bound in zip(names, (lo, hi), strict=True):
        check_float(bound, name)
        if tuple(bound.shape) != shape:
            raise InputError(
                f"{name}: shape must be {shape} for x of shape {tuple(x.shape)}, "
                f"got {tuple(bound.shape)}"
            )
        if bound.device != x.device:
            raise InputError(f"{name}: must be on {x.device} like x, got {bound.device}")


def check_written(written: dict[str, Tensor], read: dict[str, Tensor | None]) -> None:
    """Check that ``written``, 0-d or 1-d tensors, share no memory with each other or ``read``."""
    if torch.compiler.is_compiling():  # memory has no addresses there
        return
    storages: dict[int, list[str]] = {}
    for name, tensor in written.items():
        if tensor.dim() and tensor.shape[0] > 1 and tensor.stride(0) == 0:
            raise InputError(f"{name}: its elements share memory, got stride 0; it is written to")
        storage = _storage(tensor)
        if storage is None:
            continue
        for other in storages.setdefault(storage, []):
            _check_apart(other, written[other], name, tensor, "both are written to")
        storages[storage].append(name)
    for name, other_tensor in read.items():
        if other_tensor is None:
            continue
        for other in storages.get(_storage(other_tensor) or 0, ()):
            _check_apart(other, written[other], name, other_tensor, f"{other} is written to")


def _storage(tensor: Tensor) -> int | None:
    """Return the address of the tensor's storage; None if a transform's wrapper has none."""
    try:
        return tensor.untyped_storage()._cdata
    except NotImplementedError:
        return None


def _check_apart(name: str, one: Tensor, other_name: str, other: Tensor, reason: str) -> None:
    """Check that ``one``, 0-d or 1-d, touches no byte of ``other`` in the same storage."""
    here, there = _bytes(one), _bytes(other)
    if not range(max(here.start, there.start), min(here.stop, there.stop)):
        return
    size, other_size = one.element_size(), other.element_size()
    step = one.stride(0) * size if one.dim() else size
    dims = [(n, s * other_size) for n, s in zip(other.shape, other.stride(), strict=True) if s]
    dims.sort(key=lambda dim: dim[1], reverse=True)
    if any(
        _touches(here.start + i * step - there.start, size, other_size, dims)
        for i in range(one.numel())
    ):
        raise InputError(
            f"{name}, {other_name}: must not share memory, for {reason}; got bytes "
            f"{here.start} to {here.stop - 1} and {there.start} to {there.stop - 1} of one storage"
        )


def _bytes(tensor: Tensor) -> range:
    """Return the range from the tensor's first to its last byte in its storage."""
    size, start = tensor.element_size(), tensor.storage_offset() * tensor.element_size()
    if not tensor.numel():
        return range(start, start)
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return range(start, start + (last + 1) * size)


def _touches(start: int, size: int, other_size: int, dims: list[tuple[int, int]]) -> bool:
    """Whether ``size`` bytes at ``start`` touch an element of ``dims`` (length, step), at 0."""
    if not dims:
        return -size < start < other_size
    (length, step), *rest = dims
    reach = sum((n - 1) * s for n, s in rest) + other_size - 1
    first, last = max(0, -((reach - start) // step)), min(length - 1, (start + size - 1) // step)
    return any(_touches(start - i * step, size, other_size, rest) for i in range(first, last + 1))


def check_act(act: str) -> None:
    """Check that ``act`` names an activation."""
    check_choice("act", act, get_args(Activation))


def check_same(tensor: Tensor | None, name: str, like: Tensor, like_name: str) -> None:
    """Check that ``tensor`` is None or has the shape, dtype and device of ``like``."""
    if tensor is None:
        return
    check_float(tensor, name)
    for attribute in ("shape", "dtype", "device"):
        actual, expected = getattr(tensor, attribute), getattr(like, attribute)
        if actual != expected:
            if attribute == "shape":
                actual, expected = tuple(actual), tuple(expected)
            raise InputError(
                f"{name}: {attribute} must be {expected} like {like_name}, got {actual}"
            )


def check_batch_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> None:
    """Check that ``x`` is ``(N, C, ...)`` and everything else fits its C channels."""
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
    read: dict[str, Tensor | None],
) -> None:
    """Check that ``momentum`` is in [0, 1) and the buffers are 0-d and share no memory.

    Neither with each other nor with the tensors in ``read``.
    """
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
    check_written({name: buffer for name, (buffer, _) in buffers.items()}, read)
