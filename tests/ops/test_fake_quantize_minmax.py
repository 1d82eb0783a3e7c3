import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import gdfq
from gdfq.functional import fake_quantize, fake_quantize_minmax
from gdfq.ops.fake_quantize_minmax import fake_quantize_minmax_reference
from tests.ops import draws
from tests.ops.cases import (
    LAYOUTS,
    every_dtype,
    every_layout,
    every_shape,
    off_zero,
    same_bits,
    same_strides,
    with_zero,
)


@every_dtype
@every_layout
@every_shape
@pytest.mark.parametrize("axis", [None, 0, 1])
@with_zero
def test_equals_the_reference(dtype, layout, shape, axis, zero_in_range):
    torch.manual_seed(0)
    w = LAYOUTS[layout](off_zero(torch.randn(shape)).to(dtype))
    given = (w, 3, axis, "identity", zero_in_range)
    y, lo, hi = torch.ops.gdfq.fake_quantize_minmax(*given)
    for actual, expected in zip((y, lo, hi), fake_quantize_minmax_reference(*given), strict=True):
        assert same_bits(actual, expected)
    if zero_in_range:
        assert (lo <= 0).all()
        assert (hi >= 0).all()
    assert same_strides(y, torch.empty_like(w))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("ste", ["identity", "clip"])
@with_zero
def test_equals_fake_quantize_over_minimum_and_maximum(bits, ste, zero_in_range):
    w = off_zero(torch.randn(7, 5, 3, 3))
    v = w.clone().requires_grad_()
    w.requires_grad_()
    rows = w.detach().flatten(1)
    lo, hi = rows.amin(1), rows.amax(1)
    expected = fake_quantize(v, lo, hi, bits, 0, ste, zero_in_range)
    actual = fake_quantize_minmax(w, bits, 0, ste, zero_in_range)
    assert same_bits(actual, expected)
    grad = torch.randn_like(w)
    gradients = (torch.autograd.grad(y, x, grad)[0] for y, x in ((actual, w), (expected, v)))
    assert same_bits(*gradients)


def test_zero_in_range_has_zero_on_the_grid():
    w = torch.full((3, 9), 0.7)
    w[1], w[2, ::2] = -0.7, 0.0
    y = fake_quantize_minmax(w, 4, zero_in_range=True)
    torch.testing.assert_close(y, w)
    assert same_bits(y[2, ::2], torch.zeros(5))


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_nan_stays_with_zero_in_range(axis):
    w = torch.rand(3, 5) + 1
    w[1, 1] = float("nan")
    y = fake_quantize_minmax(w, 4, axis, zero_in_range=True)
    assert same_bits(y, fake_quantize_minmax_reference(w, 4, axis, "clip", True)[0])
    assert y[1, 1].isnan()


def test_matrix_and_vector():
    w = torch.randn(10, 33)
    assert same_bits(fake_quantize_minmax(w, 4), fake_quantize_minmax_reference(w, 4)[0])
    v = torch.randn(10)
    # A channel of one element is a constant channel: its range has no width.
    assert fake_quantize_minmax(v, 4).isfinite().all()


def test_nan_stays_in_its_channel():
    w = torch.randn(4, 40)
    for position in range(40):
        bad = w.clone()
        bad[2, position] = float("nan")
        y = fake_quantize_minmax(bad, 4)
        assert y[2].isnan().all()
        assert same_bits(y[[0, 1, 3]], fake_quantize_minmax(w, 4)[[0, 1, 3]])


def test_constant_channel_is_finite():
    w = torch.full((2, 9), 0.7)
    assert fake_quantize_minmax(w, 4).isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
@pytest.mark.parametrize("axis", [None, 0])
def test_empty(shape, axis):
    assert fake_quantize_minmax(torch.empty(shape), 4, axis).shape == shape


@pytest.mark.parametrize("ste", ["identity", "clip"])
def test_gradient(ste):
    w = torch.randn(6, 4, 3, 3, requires_grad=True)
    grad = torch.randn_like(w)
    (dw,) = torch.autograd.grad(fake_quantize_minmax(w, 3, ste=ste), w, grad)
    if ste == "clip":
        rows = w.detach().flatten(1)
        v = w.detach().requires_grad_()
        y = fake_quantize(v, rows.amin(1), rows.amax(1), 3, axis=0, ste="clip")
        (grad,) = torch.autograd.grad(y, v, grad)
    assert same_bits(dw, grad)


@pytest.mark.parametrize("ste", ["identity", "clip"])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_opcheck(ste, axis):
    w = torch.randn(4, 3, 3, 3, requires_grad=True)
    opcheck(torch.ops.gdfq.fake_quantize_minmax.default, (w, 4, axis, ste, axis == 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2, 2), 1), "bits: .* got 1"),
        ((torch.ones(2, 2), 4, 2), "axis: .* got 2"),
        ((torch.ones(2, 2).long(), 4), "w: dtype .* got torch.int64"),
        ((torch.ones(2, 2), 4, 0, "x"), "ste: .* got 'x'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(gdfq.InputError, match=message):
        fake_quantize_minmax(*arguments)


@every_dtype
@every_layout
@every_shape
def test_two_leading_axes(dtype, layout, shape):
    torch.manual_seed(0)
    w = LAYOUTS[layout](torch.randn(shape).to(dtype))
    y = fake_quantize_minmax(w, 3, axis=(0, 1), zero_in_range=True)
    for o in range(shape[0]):
        for i in range(min(3, shape[1])):
            alone = fake_quantize_minmax(w[o, i], 3, axis=None, zero_in_range=True)
            assert same_bits(y[o, i], alone)
    assert same_bits(fake_quantize_minmax(w, 3, axis=(0,)), fake_quantize_minmax(w, 3, axis=0))
    memory_format = torch._prims_common.suggest_memory_format(w)
    assert y.is_contiguous(memory_format=memory_format)


def test_gradient_along_two_leading_axes():
    w = torch.randn(4, 3, 3, 3, requires_grad=True)
    grad = torch.randn_like(w)
    (dw,) = torch.autograd.grad(fake_quantize_minmax(w, 3, (0, 1), "clip"), w, grad)
    v = w.detach().flatten(0, 1).requires_grad_()
    (expected,) = torch.autograd.grad(fake_quantize_minmax(v, 3, 0, "clip"), v, grad.flatten(0, 1))
    assert same_bits(dw, expected.view(dw.shape))


@pytest.mark.parametrize("axis", [(1, 0), (0, 2), (), (0, 1, 2)])
def test_other_axes_are_refused(axis):
    with pytest.raises(gdfq.InputError, match=r"axis: must be None, an int, \(0,\) or \(0, 1\)"):
        fake_quantize_minmax(torch.ones(2, 2, 2), 4, axis)
    with pytest.raises(gdfq.InputError, match=r"axis: .* shape \(2,\)"):
        fake_quantize_minmax(torch.ones(2), 4, (0, 1))


@given(st.data())
def test_equals_the_reference_on_drawn_tensors(data):
    shape = data.draw(draws.shapes(0, 4))
    w = data.draw(draws.tensors(shape, finite=False))
    axis = data.draw(st.sampled_from([None, *range(len(shape))]))
    bits = data.draw(draws.every_number_of_bits)
    given = (w, bits, axis, "identity", data.draw(st.booleans()))
    actual = torch.ops.gdfq.fake_quantize_minmax(*given)
    for got, wanted in zip(actual, fake_quantize_minmax_reference(*given), strict=True):
        assert same_bits(got, wanted)
    assert same_strides(actual[0], torch.empty_like(w))
