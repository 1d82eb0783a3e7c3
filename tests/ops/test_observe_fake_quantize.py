import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import gdfq
from gdfq.functional import fake_quantize, observe_fake_quantize
from gdfq.ops.fake_quantize import fake_quantize_reference
from gdfq.ops.observe_fake_quantize import observe_fake_quantize_reference
from tests.ops import draws
from tests.ops.cases import (
    LAYOUTS,
    every_dtype,
    every_layout,
    every_shape,
    same_bits,
    same_strides,
    with_zero,
)


def buffers():
    return [*(torch.zeros(()) for _ in range(4)), torch.zeros((), dtype=torch.int64)]


@every_dtype
@every_layout
@every_shape
@with_zero
@pytest.mark.parametrize("shift", [-9, 0, 9])
def test_equals_the_reference(dtype, layout, shape, zero_in_range, shift):
    torch.manual_seed(0)
    ours, expected = buffers(), buffers()
    options = (4, 0.9, "identity", zero_in_range)
    for _ in range(3):
        x = LAYOUTS[layout]((torch.randn(shape) + shift).to(dtype))
        y = observe_fake_quantize(x, *ours, *options)
        observe_fake_quantize_reference(x, *expected, *options)
        for actual, wanted in zip(ours, expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=0)
        assert same_bits(y, fake_quantize_reference(x, ours[2], ours[3], 4))
        assert same_strides(y, torch.empty_like(x))


@pytest.mark.parametrize("shift", [-9, 0, 9])
def test_zero_in_range_moves_the_range_and_not_its_average(shift):
    torch.manual_seed(0)
    ours, plain = buffers(), buffers()
    for _ in range(3):
        x = torch.randn(100) + shift
        y = observe_fake_quantize(x, *ours, 4, zero_in_range=True)
        observe_fake_quantize(x, *plain, 4)
    for i in (0, 1, 4):
        assert same_bits(ours[i], plain[i])
    assert same_bits(ours[2], plain[2].clamp(max=0))
    assert same_bits(ours[3], plain[3].clamp(min=0))
    assert same_bits(y, fake_quantize(x, plain[2], plain[3], 4, zero_in_range=True))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.999])
def test_constant_batches_give_their_range_at_once_and_for_good(momentum):
    state = buffers()
    x = torch.tensor([-2.0, 0.5, 3.0])
    for t in range(1, 200):
        observe_fake_quantize(x, *state, 4, momentum)
        torch.testing.assert_close(state[2], torch.tensor(-2.0), rtol=2e-4, atol=0)
        torch.testing.assert_close(state[3], torch.tensor(3.0), rtol=2e-4, atol=0)
        assert state[4] == t


def test_average_is_the_formula_in_float64():
    torch.manual_seed(0)
    state, low, high = buffers(), 0.0, 0.0
    for t in range(1, 40):
        x = torch.randn(5000) * t
        observe_fake_quantize(x, *state, 4, 0.9)
        low = 0.9 * low + 0.1 * x.min().item()
        high = 0.9 * high + 0.1 * x.max().item()
        assert abs(state[2].item() / (low / (1 - 0.9**t)) - 1) < 1e-6
        assert abs(state[3].item() / (high / (1 - 0.9**t)) - 1) < 1e-6


@every_layout
@pytest.mark.parametrize("ste", ["identity", "clip"])
@with_zero
def test_gradient(layout, ste, zero_in_range):
    torch.manual_seed(0)
    state = buffers()
    shift = 9 if zero_in_range else 0
    narrow = torch.randn(100) / 4 + shift  # than the next batch
    observe_fake_quantize(narrow, *state, 4)
    x = LAYOUTS[layout](torch.randn(4, 5, 6, 7) + shift).requires_grad_()
    grad = torch.randn(4, 5, 6, 7)
    y = observe_fake_quantize(x, *state, 4, 0.9, ste, zero_in_range)
    lo, hi = state[2].clone(), state[3].clone()
    observe_fake_quantize(torch.randn(100) * 9, *state, 4)  # moves the range before backward
    (dx,) = torch.autograd.grad(y, x, grad)
    v = x.detach().requires_grad_()
    (expected,) = torch.autograd.grad(fake_quantize(v, lo, hi, 4, ste=ste), v, grad)
    assert same_bits(dx, expected)
    if ste == "clip":
        assert 0 < (dx == 0).float().mean() < 1


def test_autograd_notices_a_moved_range():
    state = buffers()
    x = torch.randn(50, requires_grad=True)
    observe_fake_quantize(x, *state, 4)
    y = fake_quantize(x, state[2], state[3], 4, ste="clip")
    observe_fake_quantize(x, *state, 4)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_nan_stays():
    for position in range(40):
        state = buffers()
        x = torch.randn(40)
        x[position] = float("nan")
        assert observe_fake_quantize(x, *state, 4).isnan().all()
        assert state[2].isnan()
        assert state[3].isnan()


def test_empty_batch_moves_nothing():
    state = buffers()
    assert observe_fake_quantize(torch.empty(0, 3), *state, 4).shape == (0, 3)
    assert [b.item() for b in state] == [0] * 5


@pytest.mark.parametrize("ste", ["identity", "clip"])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_opcheck(ste, requires_grad):
    x = torch.randn(2, 3, 4, 4, requires_grad=requires_grad)
    opcheck(torch.ops.gdfq.observe_fake_quantize.default, (x, *buffers(), 4, 0.9, ste, True))


@pytest.mark.parametrize("ste", ["identity", "clip"])
def test_compiles_without_graph_break(ste):
    def f(x, *state):
        return observe_fake_quantize(x * 2, *state, 4, ste=ste) + 1

    results = []
    for function in (f, torch.compile(f, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        state, x = buffers(), torch.randn(3, 5, requires_grad=True)
        y = function(x, *state)
        results.append([y, *torch.autograd.grad(y.square().sum(), x), *state])
    for first, second in zip(*results, strict=True):
        assert same_bits(first, second)


B = buffers()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2).int(), *B, 4), "x: dtype"),
        ((torch.ones(2), *B, 1), "bits: .* got 1"),
        ((torch.ones(2), *B, 4, 1.0), r"momentum: must be in \[0, 1\), got 1.0"),
        ((torch.ones(2), *B, 4, 0.9, "learned"), "ste: .* got 'learned'"),
        ((torch.ones(2), torch.zeros(1), *B[1:], 4), r"average_lo: must be 0-d .* shape \(1,\)"),
        ((torch.ones(2), *B[:2], B[2].double(), *B[3:], 4), "lo: must be 0-d torch.float32"),
        (
            (torch.ones(2), *B[:4], torch.zeros(()), 4),
            "num_batches_tracked: must be 0-d torch.int64",
        ),
        ((torch.ones(2), *B[:3], B[3].to("meta"), B[4], 4), "hi: must be on cpu like x"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(gdfq.InputError, match=message):
        observe_fake_quantize(*arguments)


@given(st.data())
def test_equals_the_reference_on_drawn_batches(data):
    ours, expected = buffers(), buffers()
    bits, momentum = data.draw(draws.every_number_of_bits), data.draw(st.floats(0, 0.99))
    options = (bits, momentum, "identity", data.draw(st.booleans()))
    for shape in data.draw(st.lists(draws.shapes(0, 4), min_size=1, max_size=4)):
        x = data.draw(draws.tensors(shape))
        y = observe_fake_quantize(x, *ours, *options)
        observe_fake_quantize_reference(x, *expected, *options)
        assert same_bits(y, fake_quantize_reference(x, ours[2], ours[3], bits))
        for actual, wanted in zip(ours, expected, strict=True):
            # An average of numbers of both signs cancels.
            torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=1e-4)
