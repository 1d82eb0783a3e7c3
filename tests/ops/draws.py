"""What hypothesis draws for the operators' tests: tensors of any shape, strides and values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.cases import DTYPES

Shape = tuple[int, ...]

dtypes = st.sampled_from(DTYPES)
extremes = st.sampled_from((math.nan, math.inf, -math.inf, 3e38, -6e4, 1e-45, -0.0))
every_number_of_bits = st.integers(2, 8)


def shapes(low: int, high: int, side: int = 9) -> st.SearchStrategy[Shape]:
    """Shapes of ``low`` to ``high`` dimensions; dimension 1, the channels, is wider at times."""
    sides = st.integers(1, side)
    wide = st.one_of(sides, st.integers(1, 70))

    def of(dims: int) -> st.SearchStrategy[Shape]:
        return st.tuples(*(wide if d == 1 else sides for d in range(dims)))

    return st.integers(low, high).flatmap(of)


@st.composite
def strided(draw: st.DrawFn, x: Tensor) -> Tensor:
    """``x`` off alignment, in memory of any order of dimensions, with gaps and expanded ones."""
    order = draw(st.permutations(range(x.dim())))
    expanded = [size > 0 and draw(st.integers(0, 9)) == 9 for size in x.shape]
    sizes = [1 if alone else size for alone, size in zip(expanded, x.shape, strict=True)]
    offset, reach, strides = draw(st.integers(0, 3)), 1, [0] * x.dim()
    for d in order:
        strides[d] = reach
        reach *= sizes[d] * draw(st.sampled_from((1, 1, 1, 2)))
    room = x.new_zeros(offset + max(1, reach) * 2)
    view = room.as_strided(sizes, strides, offset)
    view.copy_(x[tuple(slice(size) for size in sizes)] if x.dim() else x)
    return view.expand(x.shape)


@st.composite
def tensors(
    draw: st.DrawFn,
    shape: Sequence[int],
    dtype: torch.dtype | None = None,
    finite: bool = True,
) -> Tensor:
    """Normal numbers of any spread, some replaced by drawn ones; ``dtype``: None for any."""
    dtype = draw(dtypes) if dtype is None else dtype
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    flat = torch.randn(math.prod(shape), generator=generator, device="cpu")
    flat *= draw(st.sampled_from((1.0, 1.0, 0.01, 30.0)))
    values = st.floats(-100, 100) if finite else st.one_of(st.floats(-100, 100), extremes)
    chosen = draw(st.lists(values, max_size=4))[: len(flat)]
    places = torch.randperm(len(flat), generator=generator, device="cpu")[: len(chosen)]
    flat[places] = torch.tensor(chosen, device="cpu")
    x = flat.view(tuple(shape)).to(device=torch.get_default_device(), dtype=dtype)
    return draw(strided(x))


@st.composite
def ranges(draw: st.DrawFn, entries: Shape) -> tuple[Tensor, Tensor]:
    """Both bounds of ranges, some of no width."""
    lo = draw(tensors(entries, torch.float32))
    width = draw(tensors(entries, torch.float32)).abs()
    return lo, lo + width


@st.composite
def batch_norms(draw: st.DrawFn, channels: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Running mean and variance, weight and bias, the last two None at times."""
    mean, var, weight, bias = (draw(tensors((channels,), torch.float32)) for _ in range(4))
    affine = draw(st.booleans())
    return mean, var.abs() + 0.1, weight if affine else None, bias if affine else None
