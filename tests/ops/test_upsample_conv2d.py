import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gdfq
from gdfq.functional import upsample_conv2d
from gdfq.ops.upsample_conv2d import transposed_kernel, upsample_conv2d_reference
from tests.ops import draws
from tests.ops.cases import LAYOUTS, every_dtype, every_layout

SIZES = ((2, 3, 4, 4, 5), (1, 1, 1, 1, 1), (3, 16, 7, 5, 8), (2, 8, 1, 9, 3))


def arguments(size, dtype, with_bias=True):
    torch.manual_seed(0)
    n, channels, height, width, out = size
    x = torch.randn(n, channels, height, width, dtype=dtype)
    weight = torch.randn(out, channels, 3, 3, dtype=dtype) / (3 * channels**0.5)
    return x, weight, torch.randn(out, dtype=dtype) if with_bias else None


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_output_and_gradients_are_exact_in_float64(size, with_bias):
    given = arguments(size, torch.float64, with_bias)
    inputs = [t.requires_grad_() for t in given if t is not None]
    y, expected = upsample_conv2d(*given), upsample_conv2d_reference(*given)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(y)
    torch.testing.assert_close(
        torch.autograd.grad(y, inputs, grad),
        torch.autograd.grad(expected, inputs, grad),
        rtol=1e-12,
        atol=1e-11,
    )


@every_dtype
@every_layout
@pytest.mark.parametrize("size", SIZES)
def test_other_dtypes_and_layouts(dtype, layout, size):
    x, weight, bias = arguments(size, torch.float32)
    x, weight, bias = (t.to(dtype) for t in (x, weight, bias))
    y = upsample_conv2d(LAYOUTS[layout](x), weight, bias)
    x = LAYOUTS[layout](x).double()
    expected = upsample_conv2d_reference(x, weight.double(), bias.double())
    tolerance = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


def test_kernel_is_the_turned_filter_convolved_with_ones():
    weight = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    turned = weight.flip(2, 3).reshape(20, 1, 3, 3)
    ones = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(turned, ones, padding=1).view(5, 4, 4, 4)
    torch.testing.assert_close(transposed_kernel(weight), expected.transpose(0, 1))


def test_gradcheck():
    given = [t.requires_grad_() for t in arguments((2, 2, 3, 2, 2), torch.float64)]
    assert torch.autograd.gradcheck(upsample_conv2d, given)


def test_channels_last_stays():
    x, weight, bias = arguments((2, 16, 8, 8, 16), torch.float32)
    y = upsample_conv2d(x.contiguous(memory_format=torch.channels_last), weight, bias)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_empty():
    x, weight, bias = arguments((2, 3, 4, 4, 5), torch.float32)
    assert upsample_conv2d(x[:0], weight, bias).shape == (0, 5, 8, 8)


def test_compiles_without_graph_break():
    given = arguments((2, 3, 4, 4, 5), torch.float32)
    compiled = torch.compile(upsample_conv2d, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), upsample_conv2d(*given))


X, W, B = torch.ones(1, 2, 4, 4), torch.ones(3, 2, 3, 3), torch.ones(3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((torch.ones(2, 4, 4), W, B), r"x: must be \(N, C, H, W\)"),
        ((X.int(), W, B), "x: dtype"),
        ((X, torch.ones(3, 2, 5, 5), B), r"weight: shape must be \(O, 2, 3, 3\)"),
        ((X, torch.ones(3, 1, 3, 3), B), r"weight: shape must be \(O, 2, 3, 3\)"),
        ((X, W, torch.ones(2)), r"bias: shape must be \(3,\)"),
        ((X, W.half(), B), "weight: dtype must be torch.float32 like x"),
        ((X, W.to("meta"), B), "weight: must be on cpu like x"),
    ],
)
def test_bad_arguments(given, message):
    with pytest.raises(gdfq.InputError, match=message):
        upsample_conv2d(*given)


@given(st.data())
def test_equals_the_reference_on_drawn_tensors(data):
    n, channels, height, width, out = data.draw(
        st.tuples(*(st.integers(1, high) for high in (3, 6, 9, 9, 6)))
    )
    shapes = ((n, channels, height, width), (out, channels, 3, 3), (out,))
    given = [data.draw(draws.tensors(shape, torch.float64)) for shape in shapes]
    expected = upsample_conv2d_reference(*given)
    largest = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(upsample_conv2d(*given), expected, rtol=0, atol=1e-12 * largest)
