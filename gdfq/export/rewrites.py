"""Decompositions into operators that ``torch.onnx`` exports and runtimes compute like PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gdfq.export.pooling import weighted_sums

_aten = torch.ops.aten
Number = int | float


def _clamp(x: Tensor, min: Number | None = None, max: Number | None = None) -> Any:
    """Clamp with bounds of the same type, which ``torch.onnx`` requires."""
    if min is None or max is None or type(min) is type(max):
        return NotImplemented
    return _aten.clamp.default(x, float(min), float(max))


def _scales(
    x: Tensor, sizes: Sequence[int] | None, factors: Sequence[float] | None
) -> Iterator[tuple[int, int, float]]:
    """Yield each resampled dimension, its new size, and the number of old pixels per new one."""
    dims = len(sizes or factors or ())
    for i, dim in enumerate(range(-dims, 0)):
        size = x.shape[dim]
        if factors:
            yield dim, int(size * factors[i]), 1 / factors[i]
        elif sizes:
            yield dim, sizes[i], size / sizes[i]


def _nearest_exact(
    x: Tensor, output_size: Sequence[int] | None, scale_factors: Sequence[float] | None
) -> Tensor:
    """Select indices along each dimension; OpenVINO's resampling has a different output shape."""
    for dim, count, scale in _scales(x, output_size, scale_factors):
        places = (torch.arange(count, dtype=torch.float32) + 0.5) * scale  # float32 as in PyTorch
        x = x.index_select(dim, places.long().clamp(max=x.shape[dim] - 1))
    return x


def _triangle(x: float) -> float:
    return max(0.0, 1 - abs(x))


def _cubic(x: float) -> float:
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


def _antialiased(kernel: Callable[[float], float], reach: int) -> Callable[..., Tensor]:
    """Multiply by PyTorch's weights of pixels; OpenVINO's are different."""

    def formula(
        x: Tensor,
        output_size: Sequence[int] | None,
        align_corners: bool,
        scale_factors: Sequence[float] | None,
    ) -> Tensor:
        for dim, count, plain_scale in _scales(x, output_size, scale_factors):
            size = x.shape[dim]
            scale = (size - 1) / max(1, count - 1) if align_corners else plain_scale
            width = max(1.0, scale)
            rows = []
            for i in range(count):
                center = scale * (i + 0.5)
                first, last = (int(center + sign * reach * width + 0.5) for sign in (-1, 1))
                row = [
                    kernel((j + 0.5 - center) / width) if max(0, first) <= j < last else 0.0
                    for j in range(size)
                ]
                rows.append([weight / sum(row) for weight in row])
            x = weighted_sums(x, dim, rows)
        return x

    return formula


REWRITES: dict[Any, Any] = {
    _aten.clamp.default: _clamp,
    **{getattr(_aten, f"_upsample_nearest_exact{n}d").vec: _nearest_exact for n in (1, 2, 3)},
    _aten._upsample_bilinear2d_aa.vec: _antialiased(_triangle, 1),
    _aten._upsample_bicubic2d_aa.vec: _antialiased(_cubic, 2),
}
