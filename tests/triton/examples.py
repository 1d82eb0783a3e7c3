"""One call or more of every Triton launcher: every kernel, in each of its forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gdfq.ops.triton import (
    batch_norm_stats,
    bn_act_fake_quantize,
    bn_leaky_relu,
    bns_loss,
    count_changed_codes,
    fake_quantize,
    fake_quantize_minmax,
    fake_quantize_minmax_list,
    kd_ce_loss,
    observe_bn_act_fake_quantize,
    observe_fake_quantize,
    pack_codes,
    quantize_codes,
)

Call = Callable[[], object]


def _x(dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    x = torch.randn(2, 16, 16, 16).to(dtype)
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
    operator = fake_quantize_minmax.fake_quantize_minmax
    for zero_in_range in (False, True):
        for axis in (0, None, 1):
            yield lambda a=(axis, "clip", zero_in_range): operator(w, 4, *a)
    last = _x(dtype, True)
    yield lambda: operator(last, 4, 1, "clip", True)


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


def _bn_act_arguments(dtype: torch.dtype) -> Iterator[tuple]:
    ends = torch.zeros(()), torch.ones(())
    for channels_last in (False, True):
        x = _x(dtype, channels_last)
        full, bare = _channels(4), [*_channels(2), None, None]
        yield x, *full, 1e-5, *ends, 4, "relu6", None, "clip"
        yield x, *full, 1e-5, *ends, 4, "relu", torch.randn_like(x), "clip"
        yield x, *bare, 1e-5, *ends, 4, "none", None, "identity"


def _bn_act_fake_quantize(dtype: torch.dtype) -> Iterator[Call]:
    for arguments in _bn_act_arguments(dtype):
        yield lambda a=arguments: bn_act_fake_quantize.bn_act_fake_quantize(*a)


def _bn_act_fake_quantize_backward(dtype: torch.dtype) -> Iterator[Call]:
    for arguments in _bn_act_arguments(dtype):
        grad = torch.randn_like(arguments[0])
        yield lambda a=(grad, *arguments): bn_act_fake_quantize.bn_act_fake_quantize_backward(*a)


def _bn_leaky_parameters() -> Iterator[tuple[Tensor | None, Tensor | None]]:
    yield torch.rand(16), torch.rand(16)
    yield torch.rand(2, 16), torch.rand(2, 16)
    yield None, None


def _bn_leaky_relu(dtype: torch.dtype) -> Iterator[Call]:
    for channels_last in (False, True):
        x = _x(dtype, channels_last)
        for parameters in _bn_leaky_parameters():
            yield lambda x=x, p=parameters: bn_leaky_relu.bn_leaky_relu(x, *p, 1e-5, 0.2)


def _bn_leaky_relu_backward(dtype: torch.dtype) -> Iterator[Call]:
    for channels_last in (False, True):
        x = _x(dtype, channels_last)
        for parameters in _bn_leaky_parameters():
            arguments = (x, x, *_channels(2), *parameters, 1e-5, 0.2)
            yield lambda a=arguments: bn_leaky_relu.bn_leaky_relu_backward(*a)


def _bns_loss(dtype: torch.dtype) -> Iterator[Call]:
    layers = [[torch.rand(n, dtype=torch.float32).to(dtype) for n in (16, 32)] for _ in range(4)]
    yield lambda: bns_loss.bns_loss(*layers)


def _bns_loss_backward(dtype: torch.dtype) -> Iterator[Call]:
    layers = [[torch.rand(n, dtype=torch.float32).to(dtype) for n in (16, 32)] for _ in range(4)]
    yield lambda: bns_loss.bns_loss_backward(torch.ones(()), *layers)


def _kd_ce_loss(dtype: torch.dtype) -> Iterator[Call]:
    student, teacher = torch.randn(2, 5, 100).to(dtype)
    hard, soft = torch.arange(5), torch.rand(5, 100)
    for labels in (hard, soft):
        yield lambda y=labels: kd_ce_loss.kd_ce_loss(student, teacher, y, 20.0, 1.0)


def _fake_quantize_learned_backward(dtype: torch.dtype) -> Iterator[Call]:
    for channels_last in (False, True):
        x = _x(dtype, channels_last)
        vectors = -torch.ones(16), torch.ones(16)
        yield lambda x=x, v=vectors: fake_quantize.fake_quantize_learned_backward(x, x, *v, 4, 1)
    ends = -torch.ones(()), torch.ones(())
    yield lambda: fake_quantize.fake_quantize_learned_backward(x, x, *ends, 4, None)


def _fake_quantize_minmax_list(dtype: torch.dtype) -> Iterator[Call]:
    ws = [_x(dtype), _x(dtype)[0]]
    operator = fake_quantize_minmax_list.fake_quantize_minmax_list
    for zero_in_range in (False, True):
        yield lambda z=zero_in_range: operator(ws, [4, 8], "clip", z)


def _count_changed_codes(dtype: torch.dtype) -> Iterator[Call]:
    ws = [_x(dtype), _x(dtype)[0]]
    los, his = ([end * torch.ones(len(w)) for w in ws] for end in (-1, 1))
    yield lambda: count_changed_codes.count_changed_codes(ws, ws, torch.ones(2), los, his, [4, 8])


def _fake_quantize_minmax_list_backward(dtype: torch.dtype) -> Iterator[Call]:
    ws = [_x(dtype), _x(dtype)[0]]
    los, his = ([end * torch.ones(len(w)) for w in ws] for end in (-1, 1))
    yield lambda: fake_quantize_minmax_list.fake_quantize_minmax_list_backward(
        ws, ws, los, his, [4, 8]
    )


def _buffers() -> list[Tensor]:
    return [torch.zeros(()) for _ in range(4)] + [torch.zeros((), dtype=torch.int64)]


def _observe_bn_act_fake_quantize(dtype: torch.dtype) -> Iterator[Call]:
    for x, *norm, _, _, bits, act, residual, ste in _bn_act_arguments(dtype):

        def call(x=x, norm=norm, rest=(bits, 0.9, act, residual, ste, True)) -> tuple[Tensor, ...]:
            buffers = _buffers()
            operator = observe_bn_act_fake_quantize.observe_bn_act_fake_quantize
            return operator(x, *norm, *buffers, *rest), *buffers

        yield call


def _observe_fake_quantize(dtype: torch.dtype) -> Iterator[Call]:
    x = _x(dtype)
    for zero_in_range in (False, True):

        def call(zero_in_range=zero_in_range) -> tuple[Tensor, ...]:
            buffers = _buffers()
            operator = observe_fake_quantize.observe_fake_quantize
            return operator(x, *buffers, 4, 0.9, "identity", zero_in_range), *buffers

        yield call


def _quantize_codes(dtype: torch.dtype) -> Iterator[Call]:
    ends, vectors = (-torch.ones(()), torch.ones(())), (-torch.ones(16), torch.ones(16))
    x = _x(dtype)
    yield lambda: quantize_codes.quantize_codes(x, *ends, 4, None)
    for channels_last in (False, True):
        x = _x(dtype, channels_last)
        yield lambda x=x: quantize_codes.quantize_codes(x, *vectors, 4, 1)


def _pack_codes(dtype: torch.dtype) -> Iterator[Call]:
    for bits in range(2, 8):
        codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (2000,), dtype=torch.int8)
        yield lambda c=codes, b=bits: pack_codes.pack_codes(c, b)


def _unpack_codes(dtype: torch.dtype) -> Iterator[Call]:
    for bits in range(2, 8):
        packed = torch.randint(0, 256, (250 * bits,), dtype=torch.uint8)
        yield lambda p=packed, b=bits: pack_codes.unpack_codes(p, b, [2000])


# By operator; of dtypes that an operator does not take its examples make one that it does.
EXAMPLES: dict[str, Callable[[torch.dtype], Iterator[Call]]] = {
    "batch_norm_stats": _batch_norm_stats,
    "batch_norm_stats_backward": _batch_norm_stats_backward,
    "bn_act_fake_quantize": _bn_act_fake_quantize,
    "bn_act_fake_quantize_backward": _bn_act_fake_quantize_backward,
    "bn_leaky_relu": _bn_leaky_relu,
    "bn_leaky_relu_backward": _bn_leaky_relu_backward,
    "bns_loss": _bns_loss,
    "bns_loss_backward": _bns_loss_backward,
    "fake_quantize": _fake_quantize,
    "fake_quantize_backward": _fake_quantize_backward,
    "fake_quantize_learned_backward": _fake_quantize_learned_backward,
    "fake_quantize_minmax": _fake_quantize_minmax,
    "count_changed_codes": _count_changed_codes,
    "fake_quantize_minmax_list": _fake_quantize_minmax_list,
    "fake_quantize_minmax_list_backward": _fake_quantize_minmax_list_backward,
    "kd_ce_loss": _kd_ce_loss,
    "observe_bn_act_fake_quantize": _observe_bn_act_fake_quantize,
    "observe_fake_quantize": _observe_fake_quantize,
    "pack_codes": _pack_codes,
    "quantize_codes": _quantize_codes,
    "unpack_codes": _unpack_codes,
}
