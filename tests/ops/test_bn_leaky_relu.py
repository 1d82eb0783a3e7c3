import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.library import opcheck

import gdfq
from gdfq.functional import bn_leaky_relu
from gdfq.ops.bn_leaky_relu import (
    _affine,
    bn_leaky_relu_backward_reference,
    bn_leaky_relu_reference,
)
from tests.ops import draws
from tests.ops.cases import LAYOUTS, every_dtype, every_layout, every_shape, same_bits, same_strides

per_sample = pytest.mark.parametrize("conditional", [False, True], ids=["plain", "conditional"])


def parameters(shape, conditional, dtype=torch.float32):
    torch.manual_seed(1)
    entries = shape[:2] if conditional else shape[1:2]
    return torch.randn(entries, dtype=dtype), torch.randn(entries, dtype=dtype)


@every_dtype
@every_layout
@every_shape
@per_sample
@pytest.mark.parametrize("slope", [0.2, 1.0])
def test_output_and_statistics(dtype, layout, shape, conditional, slope):
    torch.manual_seed(0)
    shape = (2, *shape[1:]) if shape == (1, 1, 1, 1) else shape
    x = LAYOUTS[layout]((torch.randn(shape) * 3 + 1).to(dtype))
    weight, bias = parameters(shape, conditional)
    y, mean, var = torch.ops.gdfq.bn_leaky_relu(x, weight, bias, 0.8, slope)
    var64, mean64 = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), mean64, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.double(), var64, rtol=1e-6, atol=1e-12)
    # From the same statistics, the same bits.
    expected = F.leaky_relu(_affine(x, mean, var, weight, bias, 0.8)[0], slope).to(dtype)
    assert same_bits(y, expected)
    memory_format = torch._prims_common.suggest_memory_format(x)
    assert same_strides(y, expected.contiguous(memory_format=memory_format))


@every_dtype
@every_layout
@per_sample
@pytest.mark.parametrize("shape", [(6, 19, 7, 9), (4, 80, 5, 3), (9, 4, 1, 1)])
def test_gradients(dtype, layout, conditional, shape):
    torch.manual_seed(0)
    x = LAYOUTS[layout]((torch.randn(shape) * 3 + 1).to(dtype))
    weight, bias = parameters(shape, conditional)
    grad = torch.randn(shape).to(dtype)
    tensors = [t.clone().requires_grad_() for t in (x, weight, bias)]
    y = bn_leaky_relu(tensors[0], None, None, *tensors[1:], 0.8)
    actual = torch.autograd.grad(y, tensors, grad)
    wide = [t.double().requires_grad_() for t in (x, weight, bias)]
    y = bn_leaky_relu_reference(*wide, 0.8)[0]
    expected = torch.autograd.grad(y, wide, grad.double())
    tolerance = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(actual[0].double(), expected[0], rtol=tolerance, atol=tolerance)
    # Relative to the sum of magnitudes: the sums themselves cancel.
    magnitude = 10 * grad.double().abs().sum((2, 3) if conditional else (0, 2, 3))
    for i in (1, 2):
        assert ((actual[i].double() - expected[i]).abs() <= 1e-6 * magnitude).all()


@per_sample
@pytest.mark.parametrize("affine", [True, False])
def test_gradcheck(conditional, affine):
    x = torch.randn(4, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    weight, bias = parameters(x.shape, conditional, torch.float64)
    weight, bias = (weight.requires_grad_(), bias.requires_grad_()) if affine else (None, None)
    assert torch.autograd.gradcheck(
        lambda *a: bn_leaky_relu(a[0], None, None, *a[1:], 0.8), (x, weight, bias)
    )
    # The formula of the backward pass, against autograd's.
    y, mean, var = bn_leaky_relu_reference(x, weight, bias, 0.8)
    grad = torch.randn_like(y)
    inputs = [t for t in (x, weight, bias) if t is not None]
    expected = torch.autograd.grad(y, inputs, grad)
    with torch.no_grad():
        actual = bn_leaky_relu_backward_reference(grad, x, mean, var, weight, bias, 0.8)
    torch.testing.assert_close(actual[: len(inputs)], expected)


def test_one_weight_for_all_samples_beside_a_bias_for_each():
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    weight = torch.randn(3, requires_grad=True)
    bias = torch.randn(4, 3, requires_grad=True)
    grad = torch.randn(4, 3, 5, 5)
    actual = torch.autograd.grad(
        bn_leaky_relu(x, None, None, weight, bias, 0.8), (x, weight, bias), grad
    )
    spread = weight.expand(4, 3)
    y = bn_leaky_relu(x, None, None, spread, bias, 0.8)
    expected = torch.autograd.grad(y, (x, weight, bias), grad)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_running_statistics_are_those_of_the_module(dtype):
    norm = nn.BatchNorm2d(5, eps=0.8).to(dtype)
    mean, var = torch.zeros(5, dtype=dtype), torch.ones(5, dtype=dtype)
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randn(4, 5, 3, 3, dtype=dtype) * 2 + 1
        expected = F.leaky_relu(norm(x), 0.2)
        y = bn_leaky_relu(x, mean, var, norm.weight, norm.bias, 0.8)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean, norm.running_mean)
    torch.testing.assert_close(var, norm.running_var)


@pytest.mark.parametrize("ratio", [30, 1000, -1000])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_large_means_cost_no_accuracy(ratio, layout):
    torch.manual_seed(0)
    std = torch.logspace(-2, 2, 12).view(1, -1, 1, 1)
    x = LAYOUTS[layout](torch.randn(16, 12, 28, 28) * std + ratio * std)
    _, mean, var = torch.ops.gdfq.bn_leaky_relu(x, None, None, 1e-5, 0.2)
    var64, mean64 = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), mean64, rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), var64, rtol=1e-5, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("affine", [True, False])
@per_sample
def test_opcheck(layout, affine, conditional):
    x = LAYOUTS[layout](torch.randn(2, 3, 4, 4))
    weight, bias = parameters(x.shape, conditional)
    weight, bias = (weight.requires_grad_(), bias) if affine else (None, None)
    opcheck(
        torch.ops.gdfq.bn_leaky_relu.default, (x.clone().requires_grad_(), weight, bias, 0.8, 0.2)
    )
    weight = None if weight is None else weight.detach()
    statistics = torch.rand(3), torch.rand(3)
    opcheck(
        torch.ops.gdfq.bn_leaky_relu_backward.default,
        (torch.randn_like(x), x, *statistics, weight, bias, 0.8, 0.2),
    )


def test_compiles_without_graph_break():
    def f(x, mean, var):
        return bn_leaky_relu(x * 2, mean, var, None, None, 0.8) + 1

    x = torch.randn(2, 3, 4, 4)
    results = []
    for function in (f, torch.compile(f, fullgraph=True, backend="aot_eager")):
        state = torch.zeros(3), torch.ones(3)
        results.append([function(x, *state), *state])
    for first, second in zip(*results, strict=True):
        assert same_bits(first, second)


X, C3 = torch.ones(2, 3, 4, 4), torch.ones(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3), C3, C3, C3, C3, 0.8), r"x: must be \(N, C, ...\)"),
        ((torch.ones(1, 3), C3, C3, C3, C3, 0.8), "at least 2 elements per channel"),
        ((X.int(), C3, C3, C3, C3, 0.8), "x: dtype"),
        ((X, torch.ones(4), C3, C3, C3, 0.8), r"running_mean: shape must be \(3,\)"),
        ((X, C3, C3, torch.ones(3, 2), C3, 0.8), r"weight: shape must be \(3,\) or \(2, 3\)"),
        ((X, C3, C3, C3, C3.to("meta"), 0.8), "bias: must be on cpu"),
        ((X, C3, C3, C3, C3, 0.0), "eps: must be > 0"),
        ((X, C3, C3, C3, C3, 0.8, 1.5), r"momentum: must be in \[0, 1\], got 1.5"),
        ((X, C3, C3, C3, C3, 0.8, 0.1, -0.1), r"negative_slope: must be in \[0, 1\], got -0.1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(gdfq.InputError, match=message):
        bn_leaky_relu(*arguments)


@given(st.data())
def test_equals_the_formula_on_drawn_tensors(data):
    shape = data.draw(draws.shapes(2, 4).filter(lambda s: math.prod(s) >= 2 * s[1]))
    x, grad = (data.draw(draws.tensors(shape)) for _ in range(2))
    entries = shape[:2] if data.draw(st.booleans()) else shape[1:2]
    weight, bias = (data.draw(draws.tensors(entries, torch.float32)) for _ in range(2))
    slope = data.draw(st.floats(0, 1))
    y, mean, var = torch.ops.gdfq.bn_leaky_relu(x, weight, bias, 0.8, slope)
    v = _affine(x, mean, var, weight, bias, 0.8)[0]
    assert same_bits(y, F.leaky_relu(v, slope).to(x.dtype))
    given = (grad.to(x.dtype), x, mean, var, weight, bias)
    actual = torch.ops.gdfq.bn_leaky_relu_backward(*given, 0.8, slope)
    expected = bn_leaky_relu_backward_reference(*(t.double() for t in given), 0.8, slope)
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
    for a, b in zip(actual, expected, strict=True):
        # Relative to the largest number in the sums, which themselves cancel.
        largest = grad.double().abs().sum() * (1 + weight.abs().max()) * 2
        near = tolerance[a.dtype] * min(largest.item(), 6e4)
        torch.testing.assert_close(a.double(), b, rtol=tolerance[a.dtype], atol=near)
