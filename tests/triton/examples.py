"""One call or more of every Triton launcher: every kernel, in each of its forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gdfq.ops.triton import batch_norm_stats, fake_quantize, fake_quantize_minmax

Call = Callable[[], object]


def _x(dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    x = torch.randn(4, 16, 8, 16).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def _channels(count: int) -> list[Tensor]:
    return [torch.rand(16) + 0.5 for _ in range(count)]


def _fake_quantize(dtype: torch.dtype) -> Iterator[Call]:
    ends = -torch.ones(()), torch.ones(())
    vectors = -torch.ones(16), torch.ones(16)
    x = _x(dtype)
    yield lambda x=x: fake_quantize.fake_quantize(x, *ends, 4, None, "clip")
    for channels_last in (False, True):
        x = _x(dtype, channels_last)
        yield lambda x=x: fake_quantize.fake_quantize(x, *vectors, 4, 1, "clip")


def _fake_quantize_backward(dtype: torch.dtype) -> Iterator[Call]:
    vectors = -torch.ones(16), torch.ones(16)
    for channels_last in (False, True):
        x = _x(dtype, channels_last)
        yield lambda x=x: fake_quantize.fake_quantize_backward(x, x, *vectors, 4, 1)


def _fake_quantize_minmax(dtype: torch.dtype) -> Iterator[Call]:
    w = _x(dtype)
    for axis in (0, None, 1):
        yield lambda axis=axis: fake_quantize_minmax.fake_quantize_minmax(w, 4, axis, "clip")
    last = _x(dtype, True)
    yield lambda: fake_quantize_minmax.fake_quantize_minmax(last, 4, 1, "clip")


def _batch_norm_stats(dtype: torch.dtype) -> Iterator[Call]:
    for channels_last in (False, True):
        x = _x(dtype, channels_last)
        vectors = _channels(4)
        yield lambda x=x, v=vectors: batch_norm_stats.batch_norm_stats(x, *v, 1e-5)
        yield lambda x=x, v=vectors: batch_norm_stats.batch_norm_stats(x, *v[:2], None, None, 1e-5)


def _batch_norm_stats_backward(dtype: torch.dtype) -> Iterator[Call]:
    for channels_last in (False, True):
        x = _x(dtype, channels_last)
        a, b, c, d, e = _channels(5)
        for weight in (e, None):
            arguments = (x, a, b, x, c, d, weight, 1e-5)
            yield lambda a=arguments: batch_norm_stats.batch_norm_stats_backward(*a)


EXAMPLES: dict[str, Callable[[torch.dtype], Iterator[Call]]] = {
    "batch_norm_stats": _batch_norm_stats,
    "batch_norm_stats_backward": _batch_norm_stats_backward,
    "fake_quantize": _fake_quantize,
    "fake_quantize_backward": _fake_quantize_backward,
    "fake_quantize_minmax": _fake_quantize_minmax,
}
