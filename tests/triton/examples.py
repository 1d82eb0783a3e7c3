"""One call or more of every Triton launcher: every kernel, in each of its forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import torch
from torch import Tensor

from gdfq.ops import _backend

# The launcher of each operator.
launch = SimpleNamespace(
    **{name: _backend._triton_kernel(name) for name in _backend.triton_modules()}
)

Call = Callable[[], object]


def _x(dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    x = torch.randn(2, 16, 16, 16).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def _channels(count: int) -> list[Tensor]:
    return [torch.rand(16) + 0.5 for _ in range(count)]


def _fake_quantize(dtype: torch.dtype) -> Iterator[Call]:
    bounds = -torch.ones(()), torch.ones(())
    vectors = -torch.ones(16), torch.ones(16)
    x = _x(dtype)
    yield lambda x=x: launch.fake_quantize(x, *bounds, 4, None, "clip")
    for channels_last in (False, True):
        x = _x(dtype, channels_last)
        yield lambda x=x: launch.fake_quantize(x, *vectors, 4, 1, "clip")


def _fake_quantize_backward(dtype: torch.dtype) -> Iterator[Call]:
    vectors = -torch.ones(16), torch.ones(16)
    for channels_last in (False, True):
        x = _x(dtype, channels_last)
        yield lambda x=x: launch.fake_quantize_backward(x, x, *vectors, 4, 1)


def _fake_quantize_minmax(dtype: torch.dtype) -> Iterator[Call]:
    w = _x(dtype)
    operator = launch.fake_quantize_minmax
    for zero_in_range in (False, True):
        for axis in (0, None, 1):
            yield lambda a=(axis, "clip", zero_in_range): operator(w, 4, *a)
    last = _x(dtype, True)
    yield lambda: operator(last, 4, 1, "clip", True)


def _batch_norm_stats(dtype: torch.dtype) -> Iterator[Call]:
    for channels_last in (False, True):
        x = _x(dtype, channels_last)
        vectors = _channels(4)
        yield lambda x=x, v=vectors: launch.batch_norm_stats(x, *v, 1e-5)
        yield lambda x=x, v=vectors: launch.batch_norm_stats(x, *v[:2], None, None, 1e-5)


def _batch_norm_stats_backward(dtype: torch.dtype) -> Iterator[Call]:
    for channels_last in (False, True):
        x = _x(dtype, channels_last)
        a, b, c, d, e = _channels(5)
        for weight in (e, None):
            arguments = (x, a, b, x, c, d, weight, 1e-5)
            yield lambda a=arguments: launch.batch_norm_stats_backward(*a)


def _bn_act_arguments(dtype: torch.dtype) -> Iterator[tuple]:
    bounds = torch.zeros(()), torch.ones(())
    for channels_last in (False, True):
        x = _x(dtype, channels_last)
        full, bare = _channels(4), [*_channels(2), None, None]
        yield x, *full, 1e-5, *bounds, 4, "relu6", None, "clip"
        yield x, *full, 1e-5, *bounds, 4, "relu", torch.randn_like(x), "clip"
        yield x, *bare, 1e-5, *bounds, 4, "none", None, "identity"


def _bn_act_fake_quantize(dtype: torch.dtype) -> Iterator[Call]:
    for arguments in _bn_act_arguments(dtype):
        yield lambda a=arguments: launch.bn_act_fake_quantize(*a)


def _bn_act_fake_quantize_backward(dtype: torch.dtype) -> Iterator[Call]:
    for arguments in _bn_act_arguments(dtype):
        grad = torch.randn_like(arguments[0])
        yield lambda a=(grad, *arguments): launch.bn_act_fake_quantize_backward(*a)


def _bn_leaky_parameters() -> Iterator[tuple[Tensor | None, Tensor | None]]:
    yield torch.rand(16), torch.rand(16)
    yield torch.rand(2, 16), torch.rand(2, 16)
    yield None, None


def _bn_leaky_relu(dtype: torch.dtype) -> Iterator[Call]:
    for channels_last in (False, True):
        x = _x(dtype, channels_last)
        for parameters in _bn_leaky_parameters():
            yield lambda x=x, p=parameters: launch.bn_leaky_relu(x, *p, 1e-5, 0.2)


def _bn_leaky_relu_backward(dtype: torch.dtype) -> Iterator[Call]:
    for channels_last in (False, True):
        x = _x(dtype, channels_last)
        for parameters in _bn_leaky_parameters():
            arguments = (x, x, *_channels(2), *parameters, 1e-5, 0.2)
            yield lambda a=arguments: launch.bn_leaky_relu_backward(*a)


def _bns_loss(dtype: torch.dtype) -> Iterator[Call]:
    layers = [[torch.rand(n, dtype=torch.float32).to(dtype) for n in (16, 32)] for _ in range(4)]
    yield lambda: launch.bns_loss(*layers)


def _bns_loss_backward(dtype: torch.dtype) -> Iterator[Call]:
    layers = [[torch.rand(n, dtype=torch.float32).to(dtype) for n in (16, 32)] for _ in range(4)]
    yield lambda: launch.bns_loss_backward(torch.ones(()), *layers)


def _kd_ce_loss(dtype: torch.dtype) -> Iterator[Call]:
    student, teacher = torch.randn(2, 5, 100).to(dtype)
    hard, soft = torch.arange(5), torch.rand(5, 100)
    for labels in (hard, soft):
        yield lambda y=labels: launch.kd_ce_loss(student, teacher, y, 20.0, 1.0)


def _fake_quantize_learned_backward(dtype: torch.dtype) -> Iterator[Call]:
    for channels_last in (False, True):
        x = _x(dtype, channels_last)
        vectors = -torch.ones(16), torch.ones(16)
        yield lambda x=x, v=vectors: launch.fake_quantize_learned_backward(x, x, *v, 4, 1)
    bounds = -torch.ones(()), torch.ones(())
    yield lambda: launch.fake_quantize_learned_backward(x, x, *bounds, 4, None)


def _fake_quantize_minmax_list(dtype: torch.dtype) -> Iterator[Call]:
    ws = [_x(dtype), _x(dtype)[0]]
    operator = launch.fake_quantize_minmax_list
    for zero_in_range in (False, True):
        yield lambda z=zero_in_range: operator(ws, [4, 8], "clip", z)


def _count_changed_codes(dtype: torch.dtype) -> Iterator[Call]:
    ws = [_x(dtype), _x(dtype)[0]]
    los, his = ([bound * torch.ones(len(w)) for w in ws] for bound in (-1, 1))
    yield lambda: launch.count_changed_codes(ws, ws, torch.ones(2), los, his, [4, 8])


def _fake_quantize_minmax_list_backward(dtype: torch.dtype) -> Iterator[Call]:
    ws = [_x(dtype), _x(dtype)[0]]
    los, his = ([bound * torch.ones(len(w)) for w in ws] for bound in (-1, 1))
    yield lambda: launch.fake_quantize_minmax_list_backward(ws, ws, los, his, [4, 8])


def _buffers() -> list[Tensor]:
    return [torch.zeros(()) for _ in range(4)] + [torch.zeros((), dtype=torch.int64)]


def _observe_bn_act_fake_quantize(dtype: torch.dtype) -> Iterator[Call]:
    for x, *norm, _, _, bits, act, residual, ste in _bn_act_arguments(dtype):

        def call(x=x, norm=norm, rest=(bits, 0.9, act, residual, ste, True)) -> tuple[Tensor, ...]:
            buffers = _buffers()
            operator = launch.observe_bn_act_fake_quantize
            return operator(x, *norm, *buffers, *rest), *buffers

        yield call


def _observe_fake_quantize(dtype: torch.dtype) -> Iterator[Call]:
    x = _x(dtype)
    for zero_in_range in (False, True):

        def call(zero_in_range=zero_in_range) -> tuple[Tensor, ...]:
            buffers = _buffers()
            operator = launch.observe_fake_quantize
            return operator(x, *buffers, 4, 0.9, "identity", zero_in_range), *buffers

        yield call


def _quantize_codes(dtype: torch.dtype) -> Iterator[Call]:
    bounds, vectors = (-torch.ones(()), torch.ones(())), (-torch.ones(16), torch.ones(16))
    x = _x(dtype)
    yield lambda: launch.quantize_codes(x, *bounds, 4, None)
    for channels_last in (False, True):
        x = _x(dtype, channels_last)
        yield lambda x=x: launch.quantize_codes(x, *vectors, 4, 1)


def _pack_codes(dtype: torch.dtype) -> Iterator[Call]:
    for bits in range(2, 8):
        codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (2000,), dtype=torch.int8)
        yield lambda c=codes, b=bits: launch.pack_codes(c, b)


def _unpack_codes(dtype: torch.dtype) -> Iterator[Call]:
    for bits in range(2, 8):
        packed = torch.randint(0, 256, (250 * bits,), dtype=torch.uint8)
        yield lambda p=packed, b=bits: launch.unpack_codes(p, b, [2000])


# By operator: the functions above that have its name. A dtype that an operator does not take gives
# examples of one that it does.
EXAMPLES: dict[str, Callable[[torch.dtype], Iterator[Call]]] = {
    name: globals()[f"_{name}"] for name in _backend.triton_modules() if f"_{name}" in globals()
}
