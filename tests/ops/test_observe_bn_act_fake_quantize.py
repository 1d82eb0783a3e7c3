import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import gdfq
from gdfq.functional import (
    bn_act_fake_quantize,
    observe_bn_act_fake_quantize,
    observe_fake_quantize,
)
from gdfq.ops.bn_act_fake_quantize import _activate, _normalize, bn_act_fake_quantize_reference
from gdfq.ops.observe_bn_act_fake_quantize import observe_bn_act_fake_quantize_reference
from tests.ops.cases import (
    LAYOUTS,
    every_dtype,
    every_layout,
    every_shape,
    same_bits,
    same_strides,
    with_zero,
)

every_act = pytest.mark.parametrize("act", ["relu", "relu6", "none"])
with_residual = pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])


def buffers():
    return [*(torch.zeros(()) for _ in range(4)), torch.zeros((), dtype=torch.int64)]


def batch_norm(channels, dtype=torch.float32):
    torch.manual_seed(1)
    mean, weight, bias = torch.randn(3, channels, dtype=dtype)
    return mean, torch.rand(channels, dtype=dtype) + 0.1, weight, bias, 1e-5


@every_dtype
@every_layout
@every_shape
@every_act
@with_residual
@with_zero
def test_is_its_parts(dtype, layout, shape, act, residual, zero_in_range):
    """Bit for bit: normalized, added and activated in float32, observed, and rounded last."""
    torch.manual_seed(0)
    norm, ours, expected = batch_norm(shape[1]), buffers(), buffers()
    if zero_in_range:
        norm = (*norm[:3], norm[3] + 9, norm[4])  # values above 0
    for other in ("contiguous", layout):
        x = LAYOUTS[layout](torch.randn(shape).to(dtype))
        added = LAYOUTS[other](torch.randn(shape).to(dtype)) if residual else None
        y = observe_bn_act_fake_quantize(
            x, *norm, *ours, 3, 0.9, act, added, "identity", zero_in_range
        )
        v = _activate(_normalize(x, *norm, added)[0], act)
        wanted = observe_fake_quantize(v, *expected, 3, zero_in_range=zero_in_range)
        assert same_bits(y, wanted.to(dtype))
        for actual, wanted in zip(ours, expected, strict=True):
            assert same_bits(actual, wanted)
        lo, hi = ours[2:4]
        assert same_strides(y, bn_act_fake_quantize_reference(x, *norm, lo, hi, 3, act, added))


@every_dtype
@every_layout
@every_act
@with_residual
@pytest.mark.parametrize("ste", ["identity", "clip"])
def test_gradients_are_those_of_the_moved_range(dtype, layout, act, residual, ste):
    torch.manual_seed(0)
    shape = (4, 19, 7, 9)
    state, (mean, var, weight, bias, eps) = buffers(), batch_norm(19)
    narrow = torch.randn(2, 19, 3, 3) / 4
    observe_bn_act_fake_quantize(narrow.to(dtype), mean, var, weight, bias, eps, *state, 4)
    x = LAYOUTS[layout]((torch.randn(shape) * 3).to(dtype)).requires_grad_()
    added = torch.randn(shape).to(dtype).requires_grad_() if residual else None
    weight.requires_grad_(), bias.requires_grad_()
    grad = torch.randn(shape).to(dtype)
    norm, rest = (mean, var, weight, bias, eps), (act, added, ste)
    inputs = [x, weight, bias, *([added] if residual else [])]
    y = observe_bn_act_fake_quantize(x, *norm, *state, 4, 0.9, *rest)
    lo, hi = state[2].clone(), state[3].clone()
    with torch.no_grad():  # moves the range before backward
        observe_bn_act_fake_quantize(x * 9, *norm, *state, 4, 0.9, act)
    actual = torch.autograd.grad(y, inputs, grad)
    expected = torch.autograd.grad(bn_act_fake_quantize(x, *norm, lo, hi, 4, *rest), inputs, grad)
    for a, b in zip(actual, expected, strict=True):
        assert same_bits(a, b)
    if ste == "clip" and act == "none":
        assert 0 < (actual[0] == 0).float().mean() < 1


@pytest.mark.parametrize("which", ["weight", "residual"])
def test_one_input_alone_requires_grad(which):
    norm = batch_norm(3)
    x, added = torch.randn(2, 2, 3, 4, 4)
    one = (norm[2] if which == "weight" else added).requires_grad_()
    observe_bn_act_fake_quantize(x, *norm, *buffers(), 4, 0.9, "none", added).sum().backward()
    expected = torch.ones_like(added)
    if which == "weight":
        normalized = (x - norm[0][:, None, None]) / (norm[1] + norm[4]).sqrt()[:, None, None]
        expected = normalized.sum((0, 2, 3))
    torch.testing.assert_close(one.grad, expected, rtol=1e-5, atol=1e-5)


def test_autograd_notices_a_moved_range():
    state, norm = buffers(), batch_norm(3)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    observe_bn_act_fake_quantize(x, *norm, *state, 4)
    y = bn_act_fake_quantize(x, *norm, state[2], state[3], 4)
    observe_bn_act_fake_quantize(x, *norm, *state, 4)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 3, 2, 3), (3, 8, 5, 5), (1, 2, 9, 9)])
def test_extremes_are_found_everywhere(layout, shape):
    norm = (*batch_norm(shape[1])[:2], None, None, 1e-5)
    for position in range(torch.Size(shape).numel()):
        for far in (-50.0, 50.0, float("nan")):
            x = torch.randn(shape)
            x.view(-1)[position] = far
            x, state = LAYOUTS[layout](x), buffers()
            y = observe_bn_act_fake_quantize(x, *norm, *state, 4, 0.0, "none")
            v = _normalize(x, *norm, None)[0]
            assert same_bits(state[2], v.min())
            assert same_bits(state[3], v.max())
            assert y.isnan().all() == (far != far)


def test_more_elements_than_one_round_of_blocks():
    x = torch.zeros(1, 128, 66_000, 1).contiguous(memory_format=torch.channels_last)
    x[0, 0, 0, 0], x[0, -1, -1, 0] = -3.0, 5.0
    norm, state = (torch.zeros(128), torch.ones(128), None, None, 1e-30), buffers()
    observe_bn_act_fake_quantize(x, *norm, *state, 4, 0.0, "none")
    assert (state[2].item(), state[3].item()) == (-3.0, 5.0)


def test_infinities():
    inf, norm = float("inf"), (torch.zeros(2), torch.ones(2), None, None, 1e-5)
    for act in ("relu", "relu6", "none"):
        x = torch.tensor([[inf, -inf], [1.0, 2.0]])
        ours, expected = buffers(), buffers()
        y = observe_bn_act_fake_quantize(x, *norm, *ours, 4, 0.9, act)
        wanted = observe_bn_act_fake_quantize_reference(x, *norm, *expected, 4, 0.9, act)
        assert same_bits(y, wanted)
        assert same_bits(torch.stack(ours[:4]), torch.stack(expected[:4]))


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
def test_empty_batch_moves_nothing(shape):
    state, (mean, var, weight, bias, eps) = buffers(), batch_norm(3)
    weight.requires_grad_()
    x = torch.empty(shape, requires_grad=True)
    y = observe_bn_act_fake_quantize(x, mean, var, weight, bias, eps, *state, 4)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    assert same_bits(weight.grad, torch.zeros(3))
    assert [b.item() for b in state] == [0] * 5


def test_double():
    x, norm, ours, expected = torch.randn(2, 3, 4, 4), batch_norm(3), buffers(), buffers()
    y = observe_bn_act_fake_quantize(x.double(), *norm, *ours, 4, 0.9, "relu", x.double())
    wanted = observe_bn_act_fake_quantize(x, *norm, *expected, 4, 0.9, "relu", x)
    assert same_bits(y, wanted.double())
    assert same_bits(torch.stack(ours[:4]), torch.stack(expected[:4]))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(24, 20, 61, 67), (30, 64, 7, 7), (40, 6000, 1, 1)])
def test_result_does_not_depend_on_the_number_of_threads(layout, shape):
    torch.manual_seed(0)
    x = LAYOUTS[layout](torch.randn(shape))
    norm = batch_norm(shape[1])
    threads = torch.get_num_threads()
    results = []
    for number in (1, 3):
        torch.set_num_threads(number)
        state = buffers()
        results.append([observe_bn_act_fake_quantize(x, *norm, *state, 4, 0.0, "none"), *state])
    torch.set_num_threads(threads)
    for first, second in zip(*results, strict=True):
        assert same_bits(first, second)
    v = _normalize(x, *norm, None)[0]
    assert same_bits(results[0][3], v.min())
    assert same_bits(results[0][4], v.max())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("affine", [True, False])
@with_residual
def test_opcheck(layout, affine, residual):
    x = LAYOUTS[layout](torch.randn(2, 3, 4, 4)).requires_grad_()
    added = torch.randn(2, 3, 4, 4, requires_grad=True) if residual else None
    mean, var, weight, bias, eps = batch_norm(3)
    weight, bias = (weight.requires_grad_(), bias) if affine else (None, None)
    arguments = (x, mean, var, weight, bias, eps, *buffers(), 4, 0.9, "relu", added, "clip", affine)
    opcheck(torch.ops.gdfq.observe_bn_act_fake_quantize.default, arguments)


def test_second_derivative_is_refused():
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    grad = torch.ones(4, 3, 2, 2, requires_grad=True)
    y = observe_bn_act_fake_quantize(x, *batch_norm(3), *buffers(), 4)
    (dx,) = torch.autograd.grad(y, x, grad, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        dx.sum().backward()


def test_compiles_without_graph_break():
    norm = batch_norm(3)

    def f(x, *state):
        return observe_bn_act_fake_quantize(x * 2, *norm, *state, 4, residual=x) + 1

    results = []
    for function in (f, torch.compile(f, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        state, x = buffers(), torch.randn(2, 3, 4, 4, requires_grad=True)
        y = function(x, *state)
        results.append([y, *torch.autograd.grad(y.square().sum(), x), *state])
    for first, second in zip(*results, strict=True):
        assert same_bits(first, second)


C3, B = torch.ones(3), buffers()
X, NORM = torch.ones(2, 3), (C3, C3, C3, C3, 1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3), *NORM, *B, 4), r"x: must be \(N, C, ...\)"),
        ((X.int(), *NORM, *B, 4), "x: dtype"),
        ((X, torch.ones(4), *NORM[1:], *B, 4), r"running_mean: shape must be \(3,\)"),
        ((X, *NORM[:4], 0.0, *B, 4), "eps: must be > 0, got 0.0"),
        ((X, *NORM, *B, 9), "bits: .* got 9"),
        ((X, *NORM, *B, 4, 1.0), r"momentum: must be in \[0, 1\), got 1.0"),
        ((X, *NORM, *B, 4, 0.9, "gelu"), "act: .* got 'gelu'"),
        ((X, *NORM, *B, 4, 0.9, "relu", C3), r"residual: shape must be \(2, 3\)"),
        ((X, *NORM, *B, 4, 0.9, "relu", None, "learned"), "ste: .* got 'learned'"),
        ((X, *NORM, torch.zeros(1), *B[1:], 4), r"average_lo: must be 0-d .* shape \(1,\)"),
        ((X, *NORM, *B[:2], B[2].double(), *B[3:], 4), "lo: must be 0-d torch.float32"),
        ((X, *NORM, *B[:4], B[0], 4), "num_batches_tracked: must be 0-d torch.int64"),
        ((X, *NORM, *B[:3], B[3].to("meta"), B[4], 4), "hi: must be on cpu like x"),
        ((X, *NORM, B[0], B[0], *B[2:], 4), "average_lo, average_hi: must not share memory"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(gdfq.InputError, match=message):
        observe_bn_act_fake_quantize(*arguments)


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 70), st.integers(1, 9), st.integers(1, 9)),
    bits=st.integers(2, 8),
    momentum=st.floats(0, 0.99),
    act=st.sampled_from(["relu", "relu6", "none"]),
    layout=st.sampled_from(sorted(LAYOUTS)),
    residual=st.booleans(),
    zero=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_reference_on_drawn_shapes(
    shape, bits, momentum, act, layout, residual, zero, seed
):
    torch.manual_seed(seed)
    norm, ours, expected = batch_norm(shape[1]), buffers(), buffers()
    for _ in range(2):
        x = LAYOUTS[layout](torch.randn(shape) * 3)
        added = torch.randn(shape) if residual else None
        options = (bits, momentum, act, added, "identity", zero)
        y = observe_bn_act_fake_quantize(x, *norm, *ours, *options)
        observe_bn_act_fake_quantize_reference(x, *norm, *expected, *options)
        lo, hi = ours[2:4]
        assert same_bits(y, bn_act_fake_quantize_reference(x, *norm, lo, hi, bits, act, added))
    for actual, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=1e-30)
