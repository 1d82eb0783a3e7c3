"""Dtypes, layouts and awkward shapes that every operator is tested on, and shared comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Rows of 49 elements are never 16-byte aligned, 1 and 3 channels fill no vector, 130 crosses one.
SHAPES_4D = (
    (2, 3, 5, 7),
    (1, 1, 1, 1),
    (4, 16, 7, 7),
    (3, 130, 1, 2),
    (2, 64, 16, 9),
    (5, 8, 28, 28),
)


def _sliced(x: Tensor) -> Tensor:
    """The values of ``x`` in every second place of a larger tensor, one element off alignment."""
    room = x.new_zeros((*x.shape[:-1], 2 * x.shape[-1] + 1))
    view = room[..., 1::2]
    view.copy_(x)
    return view


def _offset(x: Tensor) -> Tensor:
    """A contiguous copy whose storage starts one element after an aligned address."""
    room = x.new_zeros(x.numel() + 1)
    view = room[1:].view(x.shape)
    view.copy_(x)
    return view


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "offset": _offset,
    "sliced": _sliced,
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "batch_expanded": lambda x: x[:1].expand(x.shape),
}

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
every_shape = pytest.mark.parametrize("shape", SHAPES_4D, ids=lambda s: "x".join(map(str, s)))


with_zero = pytest.mark.parametrize("zero_in_range", [False, True], ids=["as_it_is", "with_zero"])


def off_zero(x: Tensor) -> Tensor:
    """``x`` with its entries of dimension 0 in turns below, around and above 0."""
    shift = 6 * (torch.arange(len(x), device=x.device) % 3 - 1)
    return x + shift.to(x.dtype).view(-1, *[1] * (x.dim() - 1))


def same_bits(actual: Tensor, expected: Tensor) -> bool:
    """Equal values, NaN equal to NaN, and one dtype and shape; -0 equals 0."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    return True


def same_strides(actual: Tensor, expected: Tensor) -> bool:
    """Equal strides; that of a dimension of size 1 has no meaning."""
    pairs = zip(actual.shape, actual.stride(), expected.stride(), strict=True)
    return all(one == other for size, one, other in pairs if size > 1)


every_unknown_label = pytest.mark.parametrize("label", [-1, 300, 2**40])


def check_unknown_label(operator: Callable[..., Any], label: int, dtype: torch.dtype) -> None:
    """``kd_ce_loss`` gives a NaN loss, and the row the gradient of the divergence alone."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 300, dtype=dtype)
    labels = torch.randint(300, (4,))
    known = F.one_hot(labels, 300).to(dtype)
    labels[2], known[2] = label, 0
    loss, gradient = operator(student, teacher, labels, 20.0, 1.0)
    expected_loss, expected = operator(student, teacher, known, 20.0, 1.0)
    assert loss.isnan()
    assert expected_loss.isfinite()
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-12)
