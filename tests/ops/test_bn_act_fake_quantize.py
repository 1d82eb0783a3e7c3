import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import gdfq
from gdfq.functional import bn_act_fake_quantize, fake_quantize
from gdfq.ops.bn_act_fake_quantize import (
    bn_act_fake_quantize_backward_reference,
    bn_act_fake_quantize_reference,
)
from tests.ops import draws
from tests.ops.cases import LAYOUTS, every_dtype, every_layout, every_shape, same_bits, same_strides

LO, HI = torch.tensor(-0.4), torch.tensor(2.3)
every_act = pytest.mark.parametrize("act", ["relu", "relu6", "none"])
with_residual = pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])


def batch_norm(channels, dtype=torch.float32):
    torch.manual_seed(1)
    mean, weight, bias = torch.randn(3, channels, dtype=dtype)
    return mean, torch.rand(channels, dtype=dtype) + 0.1, weight, bias, 1e-5


@every_dtype
@every_layout
@every_shape
@every_act
@with_residual
def test_equals_the_reference(dtype, layout, shape, act, residual):
    torch.manual_seed(0)
    x = LAYOUTS[layout](torch.randn(shape).to(dtype))
    added = torch.randn(shape).to(dtype) if residual else None
    arguments = (x, *batch_norm(shape[1]), LO, HI, 3, act, added)
    y = bn_act_fake_quantize(*arguments)
    expected = bn_act_fake_quantize_reference(*arguments)
    assert same_bits(y, expected)
    assert same_strides(y, expected)


@every_act
@with_residual
def test_is_batch_norm_residual_activation_and_quantizer(act, residual):
    """Against PyTorch's own layers: at most one step, on at most 1e-5 of the elements."""
    torch.manual_seed(0)
    x = torch.randn(16, 24, 28, 28) * 3
    added = torch.randn_like(x) if residual else None
    mean, var, weight, bias, eps = batch_norm(24)
    v = F.batch_norm(x, mean, var, weight, bias, eps=eps)
    v = v if added is None else v + added
    v = {"relu": F.relu, "relu6": F.relu6, "none": lambda v: v}[act](v)
    expected = fake_quantize(v, LO, HI, 4)
    y = bn_act_fake_quantize(x, mean, var, weight, bias, eps, LO, HI, 4, act, added)
    step = (HI - LO) / 15
    assert (y - expected).abs().max() <= step * 1.001
    assert ((y - expected).abs() > step / 2).float().mean() <= 1e-5


@every_dtype
@every_layout
@every_act
@with_residual
@pytest.mark.parametrize("ste", ["identity", "clip"])
@pytest.mark.parametrize("shape", [(4, 19, 7, 9), (2, 48, 5, 3)])
def test_gradients(dtype, layout, act, residual, ste, shape):
    torch.manual_seed(0)
    x = LAYOUTS[layout]((torch.randn(shape) * 3).to(dtype)).requires_grad_()
    added = torch.randn(shape).to(dtype).requires_grad_() if residual else None
    mean, var, weight, bias, eps = batch_norm(shape[1])
    weight.requires_grad_(), bias.requires_grad_()
    grad = torch.randn(shape).to(dtype)
    arguments = (x, mean, var, weight, bias, eps, LO, HI, 4, act, added, ste)
    inputs = [x, weight, bias, *([added] if residual else [])]
    dx, dweight, dbias, *dresidual = torch.autograd.grad(
        bn_act_fake_quantize(*arguments), inputs, grad
    )
    with torch.no_grad():
        expected = bn_act_fake_quantize_backward_reference(grad, *arguments)
    assert same_bits(dx, expected[0])
    if residual:
        assert same_bits(dresidual[0], expected[1])
    # Relative to the sum of magnitudes: the sums themselves cancel.
    magnitude = grad.double().abs().sum((0, 2, 3))
    assert ((dbias.double() - expected[3].double()).abs() <= 1e-6 * magnitude).all()
    assert ((dweight.double() - expected[2].double()).abs() <= 1e-5 * magnitude).all()


@every_act
@with_residual
@pytest.mark.parametrize("affine", [True, False])
def test_gradient_formula_is_that_of_the_surrogate(act, residual, affine):
    """With the identity estimator the gradients are autograd's of the part before the quantizer."""
    torch.manual_seed(0)
    x = (torch.randn(3, 5, 4, 2) * 3).double().requires_grad_()
    added = torch.randn(3, 5, 4, 2).double().requires_grad_() if residual else None
    mean, var, weight, bias, eps = batch_norm(5, torch.float64)
    weight, bias = (weight.requires_grad_(), bias.requires_grad_()) if affine else (None, None)
    grad = torch.randn_like(x)

    def surrogate(x, weight, bias, added):
        v = F.batch_norm(x, mean, var, weight, bias, eps=eps)
        v = v if added is None else v + added
        return {"relu": F.relu, "relu6": F.relu6, "none": lambda v: v}[act](v)

    inputs = [t for t in (x, weight, bias, added) if t is not None]
    assert torch.autograd.gradcheck(surrogate, (x, weight, bias, added))
    expected = torch.autograd.grad(surrogate(x, weight, bias, added), inputs, grad)
    y = bn_act_fake_quantize(x, mean, var, weight, bias, eps, LO, HI, 4, act, added)
    torch.testing.assert_close(torch.autograd.grad(y, inputs, grad), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("lo", "hi"), [(0.4, 2.3), (-2.3, -0.4), (-0.4, 2.3)])
@pytest.mark.parametrize("ste", ["identity", "clip"])
def test_zero_in_range_is_the_range_with_zero_in_it(lo, hi, ste):
    torch.manual_seed(0)
    x, norm = torch.randn(4, 5, 7, 9) * 3, batch_norm(5)
    results = []
    for bounds, zero in (((lo, hi), True), ((min(lo, 0.0), max(hi, 0.0)), False)):
        v = x.clone().requires_grad_()
        given = (*map(torch.tensor, bounds), 3, "none", None, ste, zero)
        y = bn_act_fake_quantize(v, *norm, *given)
        results.append((y, *torch.autograd.grad(y, v, x)))
    for actual, expected in zip(*results, strict=True):
        assert same_bits(actual, expected)


def test_gradient_is_zero_at_the_ends_of_the_activation():
    x = torch.tensor([[-1.0, -0.0, 0.0, 1e-30, 3.0, 6.0, 7.0]]).T
    one = torch.ones(1)
    expected = {
        "none": [1, 1, 1, 1, 1, 1, 1],
        "relu": [0, 0, 0, 1, 1, 1, 1],
        "relu6": [0, 0, 0, 1, 1, 0, 0],
    }
    for act, gradient in expected.items():
        v = x.clone().requires_grad_()
        # One to the bit: 1 / sqrt(1 + 1e-30) is 1.
        y = bn_act_fake_quantize(v, 0 * one, one, None, None, 1e-30, LO, torch.tensor(9.0), 4, act)
        y.sum().backward()
        assert v.grad.flatten().tolist() == gradient


def test_nan_and_infinities():
    inf = float("inf")
    x = torch.tensor([[float("nan"), inf, -inf, 1.0]]).T.contiguous()
    one = torch.ones(1)
    for act in ("relu", "relu6", "none"):
        arguments = (x, 0 * one, one, None, None, 1e-5, LO, HI, 4, act)
        y = bn_act_fake_quantize(*arguments)
        assert same_bits(y, bn_act_fake_quantize_reference(*arguments))
        assert y.isnan().flatten().tolist() == [True, False, False, False]


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
def test_empty(shape):
    mean, var, weight, bias, eps = batch_norm(3)
    weight.requires_grad_()
    x = torch.empty(shape, requires_grad=True)
    y = bn_act_fake_quantize(x, mean, var, weight, bias, eps, LO, HI, 4)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    assert same_bits(weight.grad, torch.zeros(3))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_result_does_not_depend_on_the_number_of_threads(layout):
    torch.manual_seed(0)
    x = LAYOUTS[layout](torch.randn(24, 20, 61, 67))
    arguments = (torch.randn_like(x), x, *batch_norm(20), LO, HI, 4, "relu", None, "clip")
    threads = torch.get_num_threads()
    results = []
    for number in (1, 3):
        torch.set_num_threads(number)
        results.append(torch.ops.gdfq.bn_act_fake_quantize_backward(*arguments))
    torch.set_num_threads(threads)
    for first, second in zip(*results, strict=True):
        assert same_bits(first, second)
    expected = bn_act_fake_quantize_backward_reference(*arguments)
    magnitude = arguments[0].double().abs().sum((0, 2, 3))
    for actual, wanted in zip(results[0][2:], expected[2:], strict=True):
        assert ((actual.double() - wanted.double()).abs() <= 1e-6 * magnitude).all()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("affine", [True, False])
@with_residual
def test_opcheck(layout, affine, residual):
    x = LAYOUTS[layout](torch.randn(2, 3, 4, 4))
    added = torch.randn(2, 3, 4, 4, requires_grad=True) if residual else None
    mean, var, weight, bias, eps = batch_norm(3)
    weight, bias = (weight.requires_grad_(), bias) if affine else (None, None)
    rest = (mean, var, weight, bias, eps, LO, HI, 4, "relu", added, "clip")
    opcheck(torch.ops.gdfq.bn_act_fake_quantize.default, (x.clone().requires_grad_(), *rest))
    rest = tuple(t.detach() if isinstance(t, torch.Tensor) else t for t in rest)
    opcheck(torch.ops.gdfq.bn_act_fake_quantize_backward.default, (torch.randn_like(x), x, *rest))


def test_compiles_without_graph_break():
    x = torch.randn(2, 3, 4, 4)
    frozen = batch_norm(3)

    def f(x):
        return bn_act_fake_quantize(x * 2, *frozen, LO, HI, 4, residual=x) + 1

    assert same_bits(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))


C3 = torch.ones(3)
X = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3), C3, C3, C3, C3, 1e-5, LO, HI, 4), r"x: must be \(N, C, ...\)"),
        ((X.int(), C3, C3, C3, C3, 1e-5, LO, HI, 4), "x: dtype"),
        ((X, torch.ones(4), C3, C3, C3, 1e-5, LO, HI, 4), r"running_mean: shape must be \(3,\)"),
        ((X, C3, C3, torch.ones(1), C3, 1e-5, LO, HI, 4), "weight: shape"),
        ((X, C3, C3, C3, C3, 0.0, LO, HI, 4), "eps: must be > 0, got 0.0"),
        ((X, C3, C3, C3, C3, 1e-5, C3, HI, 4), r"lo: shape must be \(\)"),
        ((X, C3, C3, C3, C3, 1e-5, LO, HI, 9), "bits: .* got 9"),
        ((X, C3, C3, C3, C3, 1e-5, LO, HI, 4, "gelu"), "act: .* got 'gelu'"),
        ((X, C3, C3, C3, C3, 1e-5, LO, HI, 4, "relu", C3), r"residual: shape must be \(2, 3\)"),
        ((X, C3, C3, C3, C3, 1e-5, LO, HI, 4, "relu", X.half()), "residual: dtype must be"),
        ((X, C3, C3, C3, C3, 1e-5, LO, HI, 4, "relu", None, "x"), "ste: .* got 'x'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(gdfq.InputError, match=message):
        bn_act_fake_quantize(*arguments)


@given(st.data())
def test_equals_the_reference_on_drawn_tensors(data):
    shape = data.draw(draws.shapes(2, 4))
    x, grad, added = (data.draw(draws.tensors(shape)) for _ in range(3))
    added = added.to(x.dtype) if data.draw(st.booleans()) else None
    act = data.draw(st.sampled_from(["relu", "relu6", "none"]))
    ste = data.draw(st.sampled_from(["identity", "clip"]))
    norm, bounds = data.draw(draws.batch_norms(shape[1])), data.draw(draws.ranges(()))
    bits = data.draw(draws.every_number_of_bits)
    given = (x, *norm, 1e-5, *bounds, bits, act, added, ste)
    assert same_bits(bn_act_fake_quantize(*given), bn_act_fake_quantize_reference(*given))
    given = (grad.to(x.dtype), *given)
    actual = torch.ops.gdfq.bn_act_fake_quantize_backward(*given)
    expected = bn_act_fake_quantize_backward_reference(*given)
    assert same_bits(actual[0], expected[0])
    assert same_bits(actual[1], expected[1])
    # Relative to the sum of magnitudes: the sums themselves cancel.
    centered = (x.double().movedim(1, -1) - norm[0]).movedim(-1, 1).abs()
    magnitude = (grad.double().abs() * (1 + centered)).sum().item()
    for got, wanted in zip(actual[2:], expected[2:], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=4e-6 * magnitude)
