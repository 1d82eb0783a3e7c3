import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import gdfq
from gdfq.functional import fake_quantize_minmax, fake_quantize_minmax_list
from gdfq.ops.fake_quantize_minmax_list import (
    fake_quantize_minmax_list_backward_reference,
    fake_quantize_minmax_list_reference,
)
from tests.ops import draws
from tests.ops.cases import (
    LAYOUTS,
    every_dtype,
    every_layout,
    off_zero,
    same_bits,
    same_strides,
    with_zero,
)

SHAPES = ((16, 3, 3, 3), (8, 16, 3, 3), (5, 1, 3, 3), (1, 1, 1, 1), (10, 64, 1, 1), (3, 700, 5, 3))
OTHERS = ((10, 33), (7,), (0, 4), (4, 0))


def weights(dtype=torch.float32, layout="contiguous"):
    torch.manual_seed(0)
    four = [LAYOUTS[layout](off_zero(torch.randn(shape)).to(dtype)) for shape in SHAPES]
    return four + [off_zero(torch.randn(shape)).to(dtype) for shape in OTHERS]


@every_dtype
@every_layout
@with_zero
def test_equals_one_call_each_and_the_reference(dtype, layout, zero_in_range):
    ws = weights(dtype, layout)
    bits = [2 + i % 7 for i in range(len(ws))]
    ys = fake_quantize_minmax_list(ws, bits, zero_in_range=zero_in_range)
    for y, w, b in zip(ys, ws, bits, strict=True):
        assert same_bits(y, fake_quantize_minmax(w, b, zero_in_range=zero_in_range))
        assert same_strides(y, torch.empty_like(w))
    given = (ws, bits, "identity", zero_in_range)
    actual = torch.ops.gdfq.fake_quantize_minmax_list(*given)
    for got, wanted in zip(actual, fake_quantize_minmax_list_reference(*given), strict=True):
        for a, b in zip(got, wanted, strict=True):
            assert same_bits(a, b)


@every_dtype
@every_layout
@pytest.mark.parametrize("ste", ["identity", "clip"])
@with_zero
def test_gradient(dtype, layout, ste, zero_in_range):
    ws = [w.requires_grad_() for w in weights(dtype, layout)]
    grads = [torch.randn(w.shape).to(dtype) for w in ws]
    ys = fake_quantize_minmax_list(ws, 3, ste, zero_in_range)
    actual = torch.autograd.grad(ys, ws, grads)
    expected = grads
    if ste == "clip":
        plain = [w.detach() for w in ws]
        given = (plain, [3] * len(ws), ste, zero_in_range)
        _, los, his = fake_quantize_minmax_list_reference(*given)
        expected = fake_quantize_minmax_list_backward_reference(
            grads, plain, los, his, [3] * len(ws)
        )
    for a, b in zip(actual, expected, strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("ste", ["identity", "clip"])
def test_only_some_results_are_used(ste):
    ws = [torch.randn(4, 9, requires_grad=True) for _ in range(3)]
    ys = fake_quantize_minmax_list([*ws, torch.randn(2, 2)], 4, ste)
    ys[1].sum().backward()
    assert same_bits(ws[1].grad, torch.ones(4, 9))
    assert ws[0].grad is None or not ws[0].grad.any()


def test_clip_gradient_of_a_row_that_has_extremes():
    w = torch.tensor([[-1.0, 0.0, 1.0, 0.3]], requires_grad=True)
    (y,) = fake_quantize_minmax_list([w], 2, "clip")
    y.sum().backward()
    expected = torch.tensor([[-1.0, 0.0, 1.0, 0.3]], requires_grad=True)
    fake_quantize_minmax(expected, 2, ste="clip").sum().backward()
    assert same_bits(w.grad, expected.grad)


def test_more_tensors_than_a_launch_describes():
    torch.manual_seed(0)
    ws = [torch.randn(1 + i % 5, 7 + i, requires_grad=True) for i in range(120)]
    bits = [2 + i % 7 for i in range(120)]
    ys = fake_quantize_minmax_list(ws, bits, "clip")
    grads = [torch.randn_like(w) for w in ws]
    actual = torch.autograd.grad(ys, ws, grads)
    for w, b, y, grad, dw in zip(ws, bits, ys, grads, actual, strict=True):
        expected = fake_quantize_minmax(w, b, ste="clip")
        assert same_bits(y, expected)
        assert same_bits(dw, torch.autograd.grad(expected, w, grad)[0])


def test_none():
    assert fake_quantize_minmax_list([], 4) == []


@pytest.mark.parametrize("ste", ["identity", "clip"])
def test_opcheck(ste):
    ws = [torch.randn(4, 3, 3, 3, requires_grad=True), torch.randn(5, 2, requires_grad=True)]
    opcheck(torch.ops.gdfq.fake_quantize_minmax_list.default, (ws, [4, 3], ste, True))
    plain = [w.detach() for w in ws]
    _, los, his = fake_quantize_minmax_list_reference(plain, [4, 3])
    opcheck(
        torch.ops.gdfq.fake_quantize_minmax_list_backward.default, (plain, plain, los, his, [4, 3])
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([torch.ones(2, 2)], 1), "bits: .* got 1"),
        (([torch.ones(2, 2)], [4, 4]), r"bits: must be an int or 1 ints, .* got \[4, 4\]"),
        (([torch.ones(2), torch.ones(2).long()], 4), r"ws\[1\]: dtype"),
        (([torch.ones(2), torch.ones(())], 4), r"ws\[1\]: must have at least one dimension"),
        (([torch.ones(2), torch.ones(2, device="meta")], 4), r"ws\[1\]: must be on cpu"),
        (([torch.ones(2, 2)], 4, "x"), "ste: .* got 'x'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(gdfq.InputError, match=message):
        fake_quantize_minmax_list(*arguments)


@given(st.data())
def test_equals_the_reference_on_drawn_tensors(data):
    shapes = data.draw(st.lists(draws.shapes(1, 4), min_size=1, max_size=3))
    ws = [data.draw(draws.tensors(s, finite=False)) for s in shapes]
    grads = [data.draw(draws.strided(torch.randn(w.shape).to(w.dtype))) for w in ws]
    bits = [data.draw(draws.every_number_of_bits) for _ in ws]
    options = ("clip", data.draw(st.booleans()))
    expected = fake_quantize_minmax_list_reference(ws, bits, *options)
    actual = torch.ops.gdfq.fake_quantize_minmax_list(ws, bits, *options)
    for got, wanted in zip(actual, expected, strict=True):
        for a, b in zip(got, wanted, strict=True):
            assert same_bits(a, b)
    given = (grads, ws, *expected[1:], bits)
    dws = torch.ops.gdfq.fake_quantize_minmax_list_backward(*given)
    for a, b in zip(dws, fake_quantize_minmax_list_backward_reference(*given), strict=True):
        assert same_bits(a, b)
