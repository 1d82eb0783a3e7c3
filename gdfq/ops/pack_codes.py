"""Codes of 2 to 7 bits as a dense stream of bits, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gdfq.errors import InputError
from gdfq.ops._backend import register_reference

PACKED_BITS = range(2, 8)  # codes of 8 bits are bytes already

_pack_op = torch.ops.gdfq.pack_codes
_unpack_op = torch.ops.gdfq.unpack_codes


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack int8 codes into a stream of bits.

    Args:
        codes: int8, any shape, from ``-2**(bits - 1)`` to ``2**(bits - 1) - 1``.
        bits: 2 to 7.

    Returns:
        uint8 of ``ceil(codes.numel() * bits / 8)`` bytes. In row-major order, code i, with
        ``2**(bits - 1)`` added, takes bits ``i * bits`` to ``(i + 1) * bits - 1`` of the stream,
        least significant first; the last byte is padded with zeros.

    Raises:
        InputError: the dtype or ``bits`` is not one of the above.
        ValueError: on the CPU, a code is out of range. Elsewhere its low bits are packed.
    """
    _check(codes, "codes", torch.int8, bits)
    return _pack_op(codes, bits)


def unpack_codes(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """Unpack the codes that :func:`pack_codes` packed.

    Args:
        packed: uint8, ``(ceil(prod(shape) * bits / 8),)``.
        bits: 2 to 7.
        shape: shape of the codes.

    Returns:
        Contiguous int8 codes of that shape.

    Raises:
        InputError: the dtype, ``bits``, ``shape`` or the number of bytes is not one of the above.
    """
    _check(packed, "packed", torch.uint8, bits)
    shape = list(shape)
    if any(not isinstance(size, int) or size < 0 for size in shape):
        raise InputError(f"shape: must be ints >= 0, got {shape!r}")
    needed = -(-math.prod(shape) * bits // 8)
    if tuple(packed.shape) != (needed,):
        raise InputError(
            f"packed: shape must be ({needed},) for codes of shape {tuple(shape)} and {bits} "
            f"bits, got {tuple(packed.shape)}"
        )
    return _unpack_op(packed, bits, shape)


def _check(tensor: Tensor, name: str, dtype: torch.dtype, bits: int) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
        raise InputError(
            f"{name}: must be a tensor of {dtype}, got {getattr(tensor, 'dtype', type(tensor))}"
        )
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in PACKED_BITS:
        raise InputError(f"bits: must be an int from 2 to 7, got {bits!r}")


@torch.library.register_fake("gdfq::pack_codes")
def _fake_pack(codes: Tensor, bits: int) -> Tensor:
    return codes.new_empty(((codes.numel() * bits + 7) // 8,), dtype=torch.uint8)


@torch.library.register_fake("gdfq::unpack_codes")
def _fake_unpack(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    return packed.new_empty(shape, dtype=torch.int8)


# ---- reference ----


def check_codes(codes: Tensor, bits: int) -> None:
    """Check on the CPU that codes are in range; elsewhere that would wait for the device."""
    half = 2 ** (bits - 1)
    if codes.device.type == "cpu" and not ((codes >= -half) & (codes < half)).all():
        raise ValueError(f"codes: must be from {-half} to {half - 1} for {bits} bits")


def pack_codes_reference(codes: Tensor, bits: int) -> Tensor:
    """Compute :func:`pack_codes` in plain PyTorch."""
    check_codes(codes, bits)
    shifted = codes.flatten().to(torch.int32) + 2 ** (bits - 1)
    stream = (shifted[:, None] >> torch.arange(bits, device=codes.device) & 1).flatten()
    stream = torch.nn.functional.pad(stream, (0, -len(stream) % 8)).view(-1, 8)
    return (stream << torch.arange(8, device=codes.device)).sum(1).to(torch.uint8)


def unpack_codes_reference(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """Compute :func:`unpack_codes` in plain PyTorch."""
    stream = (
        packed.to(torch.int32)[:, None] >> torch.arange(8, device=packed.device) & 1
    ).flatten()
    numel = math.prod(shape)
    stream = stream[: numel * bits].view(numel, bits)
    shifted = (stream << torch.arange(bits, device=packed.device)).sum(1)
    return (shifted - 2 ** (bits - 1)).to(torch.int8).view(shape)


register_reference("pack_codes", pack_codes_reference)
register_reference("unpack_codes", unpack_codes_reference)
