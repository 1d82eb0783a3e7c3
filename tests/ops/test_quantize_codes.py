import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import gdfq
from gdfq.functional import fake_quantize, quantize_codes
from gdfq.ops.quantize_codes import quantize_codes_reference
from tests.ops import draws
from tests.ops.cases import LAYOUTS, every_dtype, every_layout, every_shape, same_bits, same_strides


def dequantize(codes, inv_scale, zero, axis):
    if axis is not None:
        shape = [1] * codes.dim()
        shape[axis] = -1
        inv_scale, zero = inv_scale.view(shape), zero.view(shape)
    return (codes + zero) / inv_scale


@every_dtype
@every_layout
@every_shape
@pytest.mark.parametrize("axis", [None, 0, 1, 3])
def test_equals_the_reference_and_fake_quantize(dtype, layout, shape, axis):
    torch.manual_seed(0)
    x = LAYOUTS[layout](torch.randn(shape).to(dtype))
    entries = () if axis is None else (shape[axis],)
    lo, hi = -torch.rand(entries) - 0.1, torch.rand(entries) + 0.1
    actual = quantize_codes(x, lo, hi, 3, axis)
    for got, wanted in zip(actual, quantize_codes_reference(x, lo, hi, 3, axis), strict=True):
        assert same_bits(got, wanted)
    assert actual[0].dtype == torch.int8
    assert same_strides(actual[0], torch.empty_like(x))
    y = dequantize(*actual, axis).to(dtype)
    assert same_bits(y, fake_quantize(x, lo, hi, 3, axis))


@pytest.mark.parametrize("axis", [None, 1])
def test_zero_in_range_is_the_range_with_zero_in_it(axis):
    x, lo = torch.randn(2, 9, 4) * 3, torch.randn(() if axis is None else (9,)) * 2
    codes, inv_scale, zero = quantize_codes(x, lo, lo + 1, 3, axis, zero_in_range=True)
    bounds = lo.clamp(max=0), (lo + 1).clamp(min=0)
    for got, wanted in zip(
        (codes, inv_scale, zero), quantize_codes(x, *bounds, 3, axis), strict=True
    ):
        assert same_bits(got, wanted)
    assert ((-zero >= -4) & (-zero <= 3)).all()  # the code of 0


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_span_their_range(bits):
    x = torch.linspace(-3, 3, 100_001)
    codes, _, zero = quantize_codes(x, torch.tensor(-1.0), torch.tensor(1.7), bits)
    assert codes.min() == -(2 ** (bits - 1))
    assert codes.max() == 2 ** (bits - 1) - 1
    assert zero == zero.round()


def test_nan_gets_the_lowest_code_and_infinities_the_ends():
    x = torch.tensor([float("nan"), float("inf"), -float("inf")])
    codes, _, _ = quantize_codes(x, torch.tensor(-1.0), torch.tensor(1.0), 4)
    assert codes.tolist() == [-8, 7, -8]


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_empty(shape):
    lo = torch.zeros(shape[0])
    codes, inv_scale, _ = quantize_codes(torch.empty(shape), lo, lo + 1, 4, 0)
    assert codes.shape == shape
    assert inv_scale.shape == (shape[0],)
    assert (inv_scale == 15).all()


@pytest.mark.parametrize("axis", [None, 1])
def test_opcheck(axis):
    entries = () if axis is None else (3,)
    lo, hi = torch.full(entries, -1.0), torch.full(entries, 1.0)
    opcheck(torch.ops.gdfq.quantize_codes.default, (torch.randn(2, 3, 4, 4), lo, hi, 4, axis))


ZERO, ONE = torch.tensor(0.0), torch.tensor(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2).int(), ZERO, ONE, 4), "x: dtype"),
        ((torch.ones(2), ZERO, ONE, 9), "bits: .* got 9"),
        ((torch.ones(2), torch.zeros(1), ONE, 4), r"lo: shape must be \(\)"),
        ((torch.ones(2), ZERO, ONE, 4, 1), "axis: .* got 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(gdfq.InputError, match=message):
        quantize_codes(*arguments)


@given(st.data())
def test_equals_the_reference_on_drawn_tensors(data):
    shape = data.draw(draws.shapes(0, 4))
    x = data.draw(draws.tensors(shape, finite=False))
    axis = data.draw(st.sampled_from([None, *range(len(shape))]))
    lo, hi = data.draw(draws.ranges(() if axis is None else (shape[axis],)))
    given = (x, lo, hi, data.draw(draws.every_number_of_bits), axis)
    for got, wanted in zip(quantize_codes(*given), quantize_codes_reference(*given), strict=True):
        assert same_bits(got, wanted)
