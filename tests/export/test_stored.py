"""Integers, scales and zero points of a file, by hand; and the modules that emit them."""

import pytest
import torch
from torch import nn

import gdfq
from gdfq.export.emit import Convolution, Hold
from gdfq.export.stored import (
    Folded,
    Grid,
    StoredWeight,
    act_grid,
    fold,
    largest_exact,
    range_grid,
    store,
    store_symmetric,
)
from gdfq.nn import QAct


def quantized_conv(bits=4, bias=True):
    torch.manual_seed(0)
    return gdfq.nn.QConv2d(3, 5, 3, weight_bits=bits, bias=bias).eval()


def normalization():
    norm = nn.BatchNorm2d(5).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -2.0, 0.0, 1.0, -0.1]))
        norm.bias.copy_(torch.randn(5))
        norm.running_mean.copy_(torch.randn(5))
        norm.running_var.copy_(torch.rand(5) + 0.5)
    return norm


# ---- folding ----


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_folded_layer_is_the_layer_and_its_batch_norm(bias):
    conv, norm = quantized_conv(bias=bias), normalization()
    folded = fold(conv, norm)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    codes, inverse, zero = (t.double() for t in conv.weight_codes())
    weight = (codes + zero.view(-1, 1, 1, 1)) / inverse.view(-1, 1, 1, 1)
    plain = None if conv.bias is None else conv.bias.double()
    expected = norm.double()(nn.functional.conv2d(x, weight, plain))
    found = nn.functional.conv2d(x, folded.values, folded.bias)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(folded.mean, norm.bias)
    torch.testing.assert_close(folded.spread, norm.weight.abs())


@torch.no_grad()
def test_codes_stay_codes_of_as_many_bits_behind_a_negative_factor():
    folded = fold(quantized_conv(bits=4), normalization())
    assert folded.codes.min() >= -8
    assert folded.codes.max() <= 7
    assert (folded.codes[2] == 0).all()
    assert folded.zero[2] == 0
    assert folded.scale[2] == folded.scale[[0, 1, 3, 4]].min()


# ---- what fits ----


def folded_of(codes, zero, scale=0.5):
    codes = torch.tensor(codes, dtype=torch.float64).view(1, -1)
    return Folded(codes, torch.tensor([float(zero)]).double(), torch.tensor([scale]).double(), None)


@pytest.mark.parametrize(
    ("codes", "zero", "bits", "wanted", "kind", "has_zero_point"),
    [
        ([-8, 7], 0, 4, "int4", "int4", False),
        ([-8, 7], 1, 4, "int4", "int4", True),
        ([-8, 7], 8, 4, "int4", "int4", True),  # as the zero point -8
        ([-8, 7], -7, 4, "int4", "int4", True),
        ([-8, 7], 9, 4, "int4", "int8", False),
        ([-8, 7], -8, 4, "int4", "int8", False),
        ([-16, 15], 0, 5, "int4", "int8", False),
        ([-127, 127], 0, 8, "int8", "int8", False),
        ([-128, 127], 0, 8, "int8", "int8", True),
        ([-127, 126], 1, 8, "int8", "int8", False),
        ([-127, 127], 1, 8, "int8", "int8", True),
        ([-8, 7], 120, 4, "int8", "int8", False),
        ([-8, 7], 121, 4, "int8", "int8", True),
        ([-8, 7], 128, 4, "int8", "int8", True),
        ([-8, 7], -127, 4, "int8", "int8", True),
        ([-8, 7], 129, 4, "int8", "float", False),
        ([-8, 7], -128, 4, "int8", "float", False),
    ],
)
def test_a_weight_is_stored_in_the_first_form_that_holds_its_codes(
    codes, zero, bits, wanted, kind, has_zero_point
):
    weight = folded_of(codes, zero)
    stored = store(weight, bits, wanted)
    assert (stored.kind, stored.zero_points is not None) == (kind, has_zero_point)
    if kind == "float":
        values = stored.codes
    else:
        zero_points = 0 if stored.zero_points is None else stored.zero_points.double()
        values = (stored.codes.double() - zero_points) * stored.scale.double()
    assert values.double().flatten().tolist() == weight.values.flatten().tolist()


@pytest.mark.parametrize(("activation", "largest"), [(15, 127), (128, 127), (129, 127), (255, 64)])
def test_the_largest_weight_of_processors_without_vnni(activation, largest):
    assert largest_exact(activation) == largest
    assert largest == 127 or 2 * activation * (largest + 1) > 32767


def test_a_weight_around_0_is_multiplied_by_the_largest_whole_number_or_rounded():
    stored = store_symmetric(folded_of([-8, 7], 0), 15)
    assert stored.codes.flatten().tolist() == [-120, 105]
    assert stored.scale.item() == pytest.approx(0.5 / 15)
    stored = store_symmetric(folded_of([-8, 7], 0), 255)
    assert stored.codes.flatten().tolist() == [-64, 56]
    stored = store_symmetric(folded_of([-128, 101], 0), 15)
    assert stored.codes.flatten().tolist() == [-127, 100]
    assert stored.scale.item() == pytest.approx(0.5 * 128 / 127)
    assert "rounded" in stored.note


# ---- grids ----


@pytest.mark.parametrize(
    ("act", "lo", "hi", "low", "high", "zero_point"),
    [
        ("none", -1.0, 2.0, -5, 10, 5),
        ("relu", -1.0, 2.0, 0, 10, 0),
        ("relu", 0.0, 3.0, 0, 15, 0),
        ("relu6", 0.0, 7.5, 0, 12, 0),
        ("relu6", -3.0, 12.0, 0, 6, 0),
        ("relu6", 7.0, 10.0, 30, 30, 0),
        ("none", 1.0, 4.0, 5, 20, 0),
        ("none", -4.0, -1.0, -20, -5, 20),
        ("none", 100.0, 101.5, 1000, 1015, None),
        ("none", -101.5, -100.0, -1015, -1000, None),
    ],
)
def test_the_grid_of_an_activation(act, lo, hi, low, high, zero_point):
    quantizer = QAct(act_bits=4, act=act)
    quantizer.lo.fill_(lo)
    quantizer.hi.fill_(hi)
    grid = act_grid(quantizer)
    assert (grid.lo, grid.hi, grid.zero_point) == (low, high, zero_point)
    assert grid.inv_scale == pytest.approx(15 / (hi - lo), rel=1e-6)
    assert (grid.note == "") == (zero_point is not None and low <= 0 <= high)


@pytest.mark.parametrize(
    ("low", "high", "zero_point", "step"),
    [(-1.0, 1.55, 100, 0.01), (1.0, 2.55, 0, 0.01), (-2.55, -1.0, 255, 0.01), (0.0, 0.0, 0, 1e-8)],
)
def test_the_8_bit_grid_of_a_range_contains_0(low, high, zero_point, step):
    grid = range_grid(low, high)
    assert (grid.zero_point, grid.lo, grid.hi) == (zero_point, -zero_point, 255 - zero_point)
    assert grid.step == pytest.approx(step)


# ---- modules ----


def test_an_int32_bias_is_the_nearest_multiple_of_both_steps():
    stored = StoredWeight("int8", torch.ones(4, 1, 1, 1, dtype=torch.int8), None,
                          torch.tensor([0.5, 0.5, 0.25, 2.0**-30]))  # fmt: skip
    bias = torch.tensor([0.74, -0.74, 0.3, 1e3], dtype=torch.float64)
    module = Convolution(nn.Conv2d(1, 4, 1), stored, bias, input_step=0.5)
    assert module.int32_bias.tolist() == [3, -3, 2, 2**31 - 1]
    assert module.bias_scale.tolist() == [0.25, 0.25, 0.125, 2.0**-31]
    assert module.bias is None


@pytest.mark.parametrize("low", [-5, 0, 3])
def test_what_is_held_is_unchanged(low):
    grid = Grid(inv_scale=4.0, lo=low, hi=low + 15, zero_point=max(0, -low), bits=4)
    hold = Hold(grid)
    values = torch.arange(grid.lo, grid.hi + 1) / grid.inv_scale
    assert torch.equal(hold(values), values)
    assert hold.below == (low - 1) / 4
