import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import gdfq
from gdfq.functional import batch_norm_stats
from gdfq.ops.batch_norm_stats import (
    batch_norm_stats_backward_reference,
    batch_norm_stats_reference,
)
from tests.ops import draws
from tests.ops.cases import LAYOUTS, every_dtype, every_layout, every_shape, same_bits, same_strides


def parameters(channels, dtype=torch.float32):
    torch.manual_seed(1)
    mean, weight, bias = torch.randn(3, channels, dtype=dtype)
    return mean, torch.rand(channels, dtype=dtype) + 0.1, weight, bias


def statistics64(x):
    reduced = [d for d in range(x.dim()) if d != 1]
    var, mean = torch.var_mean(x.double(), reduced, correction=0)
    return mean, var


@every_dtype
@every_layout
@every_shape
def test_equals_the_reference(dtype, layout, shape):
    torch.manual_seed(0)
    x = LAYOUTS[layout](torch.randn(shape).to(dtype))
    arguments = (x, *parameters(shape[1]), 1e-5)
    y, mean, var = batch_norm_stats(*arguments)
    expected_y, _, _ = batch_norm_stats_reference(*arguments)
    assert same_bits(y, expected_y)
    assert same_strides(y, expected_y)
    mean64, var64 = statistics64(x)
    torch.testing.assert_close(mean.double(), mean64, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.double(), var64, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("shape", [(200, 16), (6, 8, 50), (2, 4, 3, 5, 7), (64, 1, 28, 28)])
def test_other_ranks(shape):
    x = torch.randn(shape)
    arguments = (x, *parameters(shape[1]), 1e-5)
    y, mean, var = batch_norm_stats(*arguments)
    expected = F.batch_norm(x, *arguments[1:5], eps=1e-5)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    mean64, var64 = statistics64(x)
    torch.testing.assert_close(mean.double(), mean64, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.double(), var64, rtol=1e-6, atol=0)


@pytest.mark.parametrize("ratio", [0, 1, 30, 1000, -1000])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("knows_the_mean", [True, False])
def test_large_means_cost_no_accuracy(ratio, layout, knows_the_mean):
    torch.manual_seed(0)
    std = torch.logspace(-2, 2, 12).view(1, -1, 1, 1)
    x = LAYOUTS[layout](torch.randn(16, 12, 28, 28) * std + ratio * std)
    running_mean = (ratio * std.flatten()) if knows_the_mean else torch.zeros(12)
    _, mean, var = batch_norm_stats(x, running_mean, std.flatten() ** 2, None, None, 1e-5)
    mean64, var64 = statistics64(x)
    assert ((mean - mean64).abs() / (mean64.abs() + std.flatten())).max() < 1e-6
    assert ((var - var64).abs() / var64).max() < 1e-5


def test_one_outlier_costs_no_accuracy():
    x = torch.randn(8, 4, 32, 32)
    x[0, :, 0, 0] = 1e4
    for layout in ("contiguous", "channels_last"):
        _, _, var = batch_norm_stats(LAYOUTS[layout](x), *parameters(4), 1e-5)
        torch.testing.assert_close(var.double(), statistics64(x)[1], rtol=1e-6, atol=0)


def test_constant_input_has_no_variance():
    _, mean, var = batch_norm_stats(torch.full((4, 2, 9, 9), 0.1), *parameters(2), 1e-5)
    assert (var >= 0).all()
    assert (var < 1e-12).all()
    assert same_bits(mean, torch.full((2,), 0.1))


@every_dtype
@every_layout
def test_gradient_through_output_and_statistics_together(dtype, layout):
    torch.manual_seed(0)
    shape = (6, 19, 7, 9)
    values = torch.randn(shape).to(dtype)
    running_mean, running_var, weight, bias = parameters(19)
    grads = (torch.randn(shape).to(dtype), torch.randn(19), torch.randn(19))

    x = LAYOUTS[layout](values).requires_grad_()
    outputs = batch_norm_stats(x, running_mean, running_var, weight, bias, 1e-5)
    (dx,) = torch.autograd.grad(outputs, x, grads)

    wide = LAYOUTS[layout](values).double().requires_grad_()
    arguments = (t.double() for t in (running_mean, running_var, weight, bias))
    outputs = batch_norm_stats_reference(wide, *arguments, 1e-5)
    (expected,) = torch.autograd.grad(outputs, wide, [g.double() for g in grads])
    tolerance = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(dx.double(), expected, rtol=tolerance, atol=tolerance)


def test_gradient_to_weight_and_bias():
    running_mean, running_var, weight, bias = parameters(5)
    x, grad = torch.randn(4, 5, 6, 6), torch.randn(4, 5, 6, 6)
    results = []
    for function in (
        lambda w, b: batch_norm_stats(x, running_mean, running_var, w, b, 1e-5)[0],
        lambda w, b: F.batch_norm(x, running_mean, running_var, w, b, eps=1e-5),
    ):
        w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        results.append(torch.autograd.grad(function(w, b), (w, b), grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("affine", [True, False])
def test_gradcheck(affine):
    running_mean, running_var, weight, bias = parameters(3, torch.float64)
    weight, bias = (weight.requires_grad_(), bias.requires_grad_()) if affine else (None, None)
    x = torch.randn(4, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    for function in (batch_norm_stats, batch_norm_stats_reference):
        assert torch.autograd.gradcheck(
            lambda *a, function=function: function(a[0], running_mean, running_var, *a[1:], 1e-5),
            (x, weight, bias),
        )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("affine", [True, False])
def test_opcheck(layout, affine):
    running_mean, running_var, weight, bias = parameters(3)
    x = LAYOUTS[layout](torch.randn(2, 3, 4, 4))
    affine_arguments = (weight, bias) if affine else (None, None)
    opcheck(
        torch.ops.gdfq.batch_norm_stats.default,
        (x.clone().requires_grad_(), running_mean, running_var, *affine_arguments, 1e-5),
    )
    opcheck(
        torch.ops.gdfq.batch_norm_stats_backward.default,
        (
            torch.randn_like(x),
            weight,
            bias,
            x,
            running_mean,
            running_var,
            affine_arguments[0],
            1e-5,
        ),
    )


C3 = torch.ones(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3), C3, C3, C3, C3, 1e-5), r"x: must be \(N, C, ...\)"),
        ((torch.ones(0, 3, 2, 2), C3, C3, C3, C3, 1e-5), "x: .* not empty"),
        ((torch.ones(2, 4), C3, C3, C3, C3, 1e-5), r"running_mean: shape must be \(4,\)"),
        ((torch.ones(2, 3), C3, torch.ones(4), C3, C3, 1e-5), "running_var: shape"),
        ((torch.ones(2, 3), C3, C3, torch.ones(3, 1), C3, 1e-5), "weight: shape"),
        ((torch.ones(2, 3), C3, C3, C3, C3.to("meta"), 1e-5), "bias: must be on cpu"),
        ((torch.ones(2, 3), C3, C3, C3, C3, 0.0), "eps: must be > 0, got 0.0"),
        ((torch.ones(2, 3).int(), C3, C3, C3, C3, 1e-5), "x: dtype"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(gdfq.InputError, match=message):
        batch_norm_stats(*arguments)


@given(st.data())
def test_equals_the_reference_on_drawn_tensors(data):
    shape = data.draw(draws.shapes(2, 4))
    x, grad = (data.draw(draws.tensors(shape)) for _ in range(2))
    grad, norm = grad.to(x.dtype), data.draw(draws.batch_norms(shape[1]))
    y, mean, var = batch_norm_stats(x, *norm, 1e-5)
    assert same_bits(y, batch_norm_stats_reference(x, *norm, 1e-5)[0])
    mean64, var64 = statistics64(x)
    torch.testing.assert_close(mean.double(), mean64, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(var.double(), var64, rtol=1e-5, atol=1e-10)
    grads = [data.draw(draws.tensors(shape[1:2], torch.float32)) for _ in range(2)]
    given = (grad, *grads, x, mean, norm[1], norm[2])
    dx = torch.ops.gdfq.batch_norm_stats_backward(*given, 1e-5)
    wide = (t if t is None else t.double() for t in given)
    expected = batch_norm_stats_backward_reference(*wide, 1e-5)
    tolerance = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[x.dtype]
    largest = expected.abs().max().item()
    if largest < torch.finfo(x.dtype).max:
        torch.testing.assert_close(dx.double(), expected, rtol=tolerance, atol=tolerance * largest)
