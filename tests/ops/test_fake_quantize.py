import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import gdfq
from gdfq.functional import fake_quantize
from gdfq.ops.fake_quantize import (
    fake_quantize_backward_reference,
    fake_quantize_learned_backward_reference,
    fake_quantize_reference,
)
from tests.ops import draws
from tests.ops.cases import LAYOUTS, every_dtype, every_layout, every_shape, same_bits, same_strides

BITS = range(2, 9)


def oracle(x, lo, hi, bits):
    """The formula, one rounding at a time, in numpy's float32."""
    f = np.float32
    with np.errstate(all="ignore"):
        scale = f(2**bits - 1) * (f(1) / np.maximum(f(hi) - f(lo), f(1e-8)))
        zero = np.rint(scale * f(lo)) + f(2 ** (bits - 1))
        position = scale * x.astype(f) - zero
        code = np.clip(np.rint(position), f(-(2 ** (bits - 1))), f(2 ** (bits - 1) - 1))
        return (code + zero) / scale, position


def hard_values(lo, hi, bits):
    """Random values, and values beside every tie and both bounds, NaN, infinities, zeros."""
    rng = np.random.default_rng(bits)
    scale = np.float32(2**bits - 1) * (np.float32(1) / np.float32(max(hi - lo, 1e-8)))
    zero = np.rint(scale * np.float32(lo)) + 2 ** (bits - 1)
    codes = np.arange(-(2 ** (bits - 1)) - 2, 2 ** (bits - 1) + 2) + 0.5
    ties = ((codes + zero) / scale).astype(np.float32)
    beside = [ties]
    for direction in (-np.inf, np.inf):
        near = ties
        for _ in range(4):
            near = np.nextafter(near, np.float32(direction))
            beside.append(near)
    special = np.array(
        [np.nan, np.inf, -np.inf, 0.0, -0.0, 3e38, -3e38, 1e-45, lo, hi], dtype=np.float32
    )
    spread = rng.uniform(lo - abs(hi - lo), hi + abs(hi - lo), 4001).astype(np.float32)
    return np.concatenate([*beside, special, spread])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("lo", "hi"),
    [(-1.0, 1.0), (0.0, 6.0), (-0.37, 2.91), (0.5, 0.5), (3.0, 3.5), (-1e4, 2e4), (0.0, 1e-12)],
)
def test_equals_the_formula_bit_for_bit(bits, lo, hi):
    values = hard_values(lo, hi, bits)
    expected = torch.as_tensor(oracle(values, lo, hi, bits)[0])
    x, lo, hi = torch.as_tensor(values), torch.tensor(lo), torch.tensor(hi)
    assert same_bits(fake_quantize(x, lo, hi, bits), expected)
    assert same_bits(fake_quantize_reference(x, lo, hi, bits), expected)


@pytest.mark.parametrize("bits", BITS)
def test_every_value_of_the_grid_is_reached_and_no_other(bits):
    x = torch.linspace(-3, 3, 100_001)
    y = fake_quantize(x, torch.tensor(-1.0), torch.tensor(1.7), bits)
    assert len(y.unique()) == 2**bits


@every_dtype
@every_layout
@every_shape
@pytest.mark.parametrize("axis", [None, 0, 1, 3])
def test_equals_the_reference(dtype, layout, shape, axis):
    torch.manual_seed(0)
    x = LAYOUTS[layout](torch.randn(shape).to(dtype))
    entries = () if axis is None else (shape[axis],)
    lo, hi = -torch.rand(entries) - 0.1, torch.rand(entries) + 0.1
    y = fake_quantize(x, lo, hi, 3, axis)
    assert same_bits(y, fake_quantize_reference(x, lo, hi, 3, axis))
    assert same_strides(y, torch.empty_like(x))


@every_dtype
@every_layout
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("ste", ["identity", "clip"])
def test_gradient(dtype, layout, axis, ste):
    torch.manual_seed(0)
    shape = (4, 19, 7, 9)
    x = LAYOUTS[layout](torch.randn(shape).to(dtype)).requires_grad_()
    entries = () if axis is None else (shape[axis],)
    lo, hi = torch.full(entries, -0.5), torch.full(entries, 0.8)
    grad = torch.randn(shape).to(dtype)
    (dx,) = torch.autograd.grad(fake_quantize(x, lo, hi, 4, axis, ste), x, grad)
    if ste == "identity":
        assert same_bits(dx, grad)
    else:
        assert same_bits(dx, fake_quantize_backward_reference(grad, x.detach(), lo, hi, 4, axis))
        assert 0 < (dx == 0).float().mean() < 1


@pytest.mark.parametrize("bits", BITS)
def test_clip_gradient_passes_where_the_code_needs_no_clamp(bits):
    values = hard_values(-0.37, 2.91, bits)
    position = oracle(values, -0.37, 2.91, bits)[1]
    code = np.rint(position)
    inside = (code >= -(2 ** (bits - 1))) & (code <= 2 ** (bits - 1) - 1)
    x = torch.as_tensor(values).requires_grad_()
    fake_quantize(x, torch.tensor(-0.37), torch.tensor(2.91), bits, ste="clip").sum().backward()
    assert same_bits(x.grad, torch.as_tensor(inside.astype(np.float32)))


@pytest.mark.parametrize("axis", [None, 0, 1, 3])
@pytest.mark.parametrize("ste", ["identity", "clip", "learned"])
def test_zero_in_range_is_the_range_with_zero_in_it(axis, ste):
    torch.manual_seed(0)
    shape = (4, 19, 7, 9)
    entries = () if axis is None else (shape[axis],)
    x, lo = torch.randn(shape) * 3, torch.randn(entries) * 2
    hi = lo + 1
    grad = torch.randn(shape)
    given = [t.clone().requires_grad_() for t in (x, lo, hi)]
    widened = [t.clone().requires_grad_() for t in (x, lo.clamp(max=0), hi.clamp(min=0))]
    y = fake_quantize(*given, 3, axis, ste, zero_in_range=True)
    expected = fake_quantize(*widened, 3, axis, ste)
    assert same_bits(y, expected)
    options = {"allow_unused": ste != "learned"}
    actual = torch.autograd.grad(y, given, grad, **options)
    wanted = torch.autograd.grad(expected, widened, grad, **options)
    assert same_bits(actual[0], wanted[0])
    if ste == "learned":
        # No gradient to a bound that was moved.
        assert same_bits(actual[1], torch.where(lo > 0, 0.0, wanted[1]))
        assert same_bits(actual[2], torch.where(hi < 0, 0.0, wanted[2]))
    else:
        assert all(g is None or not g.any() for g in actual[1:])


@pytest.mark.parametrize(("lo", "hi"), [(0.3, 1.2), (-1.2, -0.3), (0.5, 0.5), (-0.37, 2.91)])
@pytest.mark.parametrize("bits", BITS)
def test_zero_in_range_has_zero_on_the_grid(bits, lo, hi):
    bounds = torch.tensor(lo), torch.tensor(hi)
    assert fake_quantize(torch.zeros(()), *bounds, bits, zero_in_range=True) == 0
    x = torch.as_tensor(hard_values(lo, hi, bits))
    expected = oracle(x.numpy(), min(lo, 0), max(hi, 0), bits)[0]
    assert same_bits(fake_quantize(x, *bounds, bits, zero_in_range=True), torch.as_tensor(expected))


def test_nan_range_gives_nan():
    nan = torch.tensor(float("nan"))
    for bounds in ((nan, torch.tensor(1.0)), (torch.tensor(-1.0), nan)):
        for zero_in_range in (False, True):
            y = fake_quantize(torch.randn(100), *bounds, 4, zero_in_range=zero_in_range)
            assert y.isnan().all()


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3), (0, 4, 2, 2)])
def test_empty(shape):
    x = torch.empty(shape, requires_grad=True)
    y = fake_quantize(x, torch.tensor(-1.0), torch.tensor(1.0), 4, ste="clip")
    y.sum().backward()
    assert y.shape == x.grad.shape == shape


def test_zero_dimensional():
    y = fake_quantize(torch.tensor(0.51), torch.tensor(0.0), torch.tensor(3.0), 2)
    assert y == 1.0


def test_float64_is_rounded_on_the_float32_grid():
    x = torch.randn(1000, dtype=torch.float64)
    y = fake_quantize(x, torch.tensor(-1.0), torch.tensor(1.0), 4)
    assert y.dtype == torch.float64
    expected = fake_quantize(x.float(), torch.tensor(-1.0), torch.tensor(1.0), 4)
    assert same_bits(y, expected.double())


@pytest.mark.parametrize("ste", ["identity", "clip"])
@pytest.mark.parametrize("axis", [None, 1])
def test_opcheck(ste, axis):
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    entries = () if axis is None else (3,)
    lo, hi = torch.full(entries, -1.0), torch.full(entries, 1.0)
    opcheck(torch.ops.gdfq.fake_quantize.default, (x, lo, hi, 4, axis, ste))
    opcheck(
        torch.ops.gdfq.fake_quantize_backward.default,
        (torch.randn(2, 3, 4, 4), x.detach(), lo, hi, 4, axis),
    )


def test_compiles_without_graph_break():
    def f(x):
        return (
            fake_quantize(x * 2, torch.tensor(-1.0), torch.tensor(1.0), 4, zero_in_range=True) + 1
        )

    x = torch.randn(3, 5)
    assert same_bits(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))


ZERO, ONE = torch.tensor(0.0), torch.tensor(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2), ZERO, ONE, 1), "bits: must be an int from 2 to 8, got 1"),
        ((torch.ones(2), ZERO, ONE, 9), "bits: must be an int from 2 to 8, got 9"),
        ((torch.ones(2), ZERO, ONE, 4.0), "bits: .* got 4.0"),
        ((torch.ones(2), ZERO, ONE, True), "bits: .* got True"),
        ((torch.ones(2, dtype=torch.int32), ZERO, ONE, 4), "x: dtype .* got torch.int32"),
        (([1.0], ZERO, ONE, 4), "x: must be a tensor, got list"),
        ((torch.ones(2), 0.0, ONE, 4), "lo: must be a tensor, got float"),
        ((torch.ones(2), torch.zeros(1), ONE, 4), r"lo: shape must be \(\)"),
        ((torch.ones(2, 3), torch.zeros(2), torch.ones(2), 4, 1), r"lo: shape must be \(3,\)"),
        ((torch.ones(2, 3), torch.zeros(3), torch.ones(2), 4, 1), r"hi: shape must be \(3,\)"),
        ((torch.ones(2, 3), ZERO, ONE, 4, 2), "axis: must be None or an int from -2 to 1"),
        (
            (torch.ones(2), ZERO, ONE, 4, None, "round"),
            "ste: must be one of 'identity', 'clip' or 'learned'",
        ),
        ((torch.ones(2), torch.zeros((), device="meta"), ONE, 4), "lo: must be on cpu like x"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(gdfq.InputError, match=message):
        fake_quantize(*arguments)


@given(
    bits=st.integers(2, 8),
    lo=st.floats(-1e5, 1e5, width=32),
    width=st.floats(0, 1e5, width=32),
    values=st.lists(st.floats(width=32), min_size=1, max_size=70),
)
def test_equals_the_formula_on_drawn_values(bits, lo, width, values):
    values = np.array(values, dtype=np.float32)
    hi = float(np.float32(lo) + np.float32(width))
    y = fake_quantize(torch.as_tensor(values), torch.tensor(lo), torch.tensor(hi), bits)
    assert same_bits(y, torch.as_tensor(oracle(values, lo, hi, bits)[0]))


# ---- learned range ----


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


def along(axis, dims, *vectors):
    shape = [-1 if d == axis else 1 for d in range(dims)]
    return vectors if axis is None else [v.view(shape) for v in vectors]


def lsq_plus(x, lo, hi, bits, axis=None):
    """LSQ+ as its paper writes it, with step and offset, in float64."""
    levels = 2**bits - 1
    lo, hi = along(axis, x.dim(), lo, hi)
    step, offset = (hi - lo) / levels, lo
    code = _Round.apply((x - offset) / step)
    # Not torch.clamp, whose gradient at the bounds themselves is 0.
    code = torch.where(code < 0, 0.0, torch.where(code > levels, float(levels), code))
    return code * step + offset


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("axis", [None, 0, 1, 3])
def test_learned_range_gradient_is_that_of_a_float64_surrogate(bits, layout, axis):
    torch.manual_seed(0)
    shape = (6, 20, 7, 9)
    entries = () if axis is None else (shape[axis],)
    levels = 2**bits - 1
    # Zero points that are whole numbers, so that the surrogate's grid is the operator's.
    step = 2.0**-bits
    lo = -step * torch.randint(1, levels, entries)
    hi = lo + levels * step
    x = LAYOUTS[layout](torch.randn(shape) / 2)
    # No gradient beside ties, where float32 and float64 may round to different sides.
    halves = (x - along(axis, 4, lo)[0]) / step * 2 % 1
    grad = torch.where((halves - 0.5).abs() > 0.499, 0.0, torch.randn(shape))
    tensors = [t.clone().requires_grad_() for t in (x, lo, hi)]
    actual = torch.autograd.grad(fake_quantize(*tensors, bits, axis, "learned"), tensors, grad)

    wide = [t.double().requires_grad_() for t in (x, lo, hi)]
    expected = torch.autograd.grad(lsq_plus(*wide, bits, axis), wide, grad.double())
    assert same_bits(actual[0].double(), expected[0])
    factor = (x.numel() / lo.numel() * levels) ** -0.5
    # Relative to the sum of magnitudes: the sums themselves cancel.
    magnitude = factor * grad.double().abs().sum([d for d in range(4) if d != axis])
    for i in (1, 2):
        assert ((actual[i].double() - factor * expected[i]).abs() <= 1e-6 * magnitude).all()


@every_dtype
@every_layout
@every_shape
@pytest.mark.parametrize("axis", [None, 0, 1, 3])
def test_learned_gradient_equals_the_reference(dtype, layout, shape, axis):
    torch.manual_seed(0)
    x = LAYOUTS[layout](torch.randn(shape).to(dtype))
    entries = () if axis is None else (shape[axis],)
    lo, hi = -torch.rand(entries) - 0.1, torch.rand(entries) + 0.1
    grad = torch.randn(shape).to(dtype)
    actual = torch.ops.gdfq.fake_quantize_learned_backward(grad, x, lo, hi, 4, axis)
    expected = fake_quantize_learned_backward_reference(grad, x, lo, hi, 4, axis)
    assert same_bits(actual[0], expected[0])
    assert same_strides(actual[0], torch.empty_like(x))
    # Relative to the sum of magnitudes: the sums themselves cancel.
    elements = x.numel() / lo.numel()
    magnitude = (elements / 15) ** 0.5
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-6, atol=1e-6 * magnitude)
    torch.testing.assert_close(actual[2], expected[2], rtol=1e-6, atol=1e-6 * magnitude)


def test_learned_gradient_leaves_a_nan_out():
    x = torch.randn(50)
    lo, hi = torch.tensor(-0.5), torch.tensor(0.5)
    x[7] = float("nan")
    grad = torch.ones(50)
    dx, dlo, dhi = torch.ops.gdfq.fake_quantize_learned_backward(grad, x, lo, hi, 4, None)
    expected = fake_quantize_learned_backward_reference(grad, x, lo, hi, 4)
    torch.testing.assert_close((dx, dlo, dhi), expected)
    assert dx[7] == 0
    assert dlo.isfinite()


def test_learned_range_of_an_empty_tensor():
    lo, hi = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)
    fake_quantize(torch.empty(2, 3, 0), lo, hi, 4, 1, "learned").sum().backward()
    assert same_bits(lo.grad, torch.zeros(3))
    assert same_bits(hi.grad, torch.zeros(3))


@pytest.mark.parametrize("axis", [None, 1])
def test_learned_opcheck(axis):
    entries = () if axis is None else (3,)
    lo = torch.full(entries, -1.0, requires_grad=True)
    hi = torch.full(entries, 1.0, requires_grad=True)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    opcheck(torch.ops.gdfq.fake_quantize.default, (x, lo, hi, 4, axis, "learned"))
    opcheck(
        torch.ops.gdfq.fake_quantize_learned_backward.default,
        (x.detach(), x.detach(), lo.detach(), hi.detach(), 4, axis),
    )


@given(st.data())
def test_equals_the_reference_on_drawn_tensors(data):
    shape = data.draw(draws.shapes(0, 4))
    x, grad = (data.draw(draws.tensors(shape, finite=False)) for _ in range(2))
    axis = data.draw(st.sampled_from([None, *range(len(shape))]))
    lo, hi = data.draw(draws.ranges(() if axis is None else (shape[axis],)))
    bits = data.draw(draws.every_number_of_bits)
    y = fake_quantize(x, lo, hi, bits, axis)
    assert same_bits(y, fake_quantize_reference(x, lo, hi, bits, axis))
    assert same_strides(y, torch.empty_like(x))
    given = (grad.to(x.dtype), x, lo, hi, bits, axis)
    dx = torch.ops.gdfq.fake_quantize_backward(*given)
    assert same_bits(dx, fake_quantize_backward_reference(*given))


@given(st.data())
def test_learned_gradient_on_drawn_tensors(data):
    shape = data.draw(draws.shapes(0, 4))
    x, grad = (data.draw(draws.tensors(shape)) for _ in range(2))
    axis = data.draw(st.sampled_from([None, *range(len(shape))]))
    lo, hi = data.draw(draws.ranges(() if axis is None else (shape[axis],)))
    given = (grad.to(x.dtype), x, lo, hi, data.draw(draws.every_number_of_bits), axis)
    actual = torch.ops.gdfq.fake_quantize_learned_backward(*given)
    expected = fake_quantize_learned_backward_reference(*given)
    assert same_bits(actual[0], expected[0])
    # Relative to the sum of magnitudes: the sums themselves cancel.
    tolerance = 1e-6 * max(1.0, grad.double().abs().sum().item())
    for got, wanted in zip(actual[1:], expected[1:], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=tolerance)
