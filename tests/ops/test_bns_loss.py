import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import gdfq
from gdfq.losses import bns_loss
from gdfq.ops.bns_loss import bns_loss_backward_reference, bns_loss_reference
from tests.ops import draws
from tests.ops.cases import every_dtype, same_bits

CHANNELS = (16, 1, 130, 3)


def statistics(channels=CHANNELS, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return [[torch.randn(c).to(dtype) for c in channels] for _ in range(4)]


def requiring_grad(lists):
    return [[t.clone().requires_grad_() for t in lists[0]], [t.clone().requires_grad_() for t in lists[1]], *lists[2:]]  # fmt: skip # noqa: E501


@every_dtype
@pytest.mark.parametrize("channels", [CHANNELS, (7,), (64,) * 20, (3, 5) * 70])
def test_equals_the_formula_in_float64(dtype, channels):
    given = statistics(channels, dtype)
    wide = [[t.double() for t in s] for s in given]
    expected = torch.stack(
        [
            ((m - rm) ** 2).mean() + ((v - rv) ** 2).mean()
            for m, v, rm, rv in zip(*wide, strict=True)
        ]
    ).mean()
    loss = bns_loss(*given)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(bns_loss_reference(*given).double(), expected, rtol=1e-5, atol=0)


@every_dtype
def test_gradients(dtype):
    given = requiring_grad(statistics(dtype=dtype))
    grads = torch.autograd.grad(bns_loss(*given) * 3, [*given[0], *given[1]])
    detached = [[t.detach() for t in s] for s in given]
    expected = bns_loss_backward_reference(torch.tensor(3.0), *detached)
    tolerance = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(
        list(grads), [*expected[0], *expected[1]], rtol=tolerance, atol=tolerance**2
    )


def test_gradients_of_many_layers():
    given = requiring_grad(statistics((3, 300) * 70))
    bns_loss(*given).backward()
    for i in (0, 1):
        for statistic, stored in zip(given[i], given[i + 2], strict=True):
            expected = 2 / (140 * len(stored)) * (statistic.detach() - stored)
            torch.testing.assert_close(statistic.grad, expected, rtol=1e-6, atol=0)


def test_gradcheck():
    given = requiring_grad(statistics((3, 2), torch.float64))
    stored = given[2:]
    for function in (bns_loss, bns_loss_reference):
        assert torch.autograd.gradcheck(
            lambda a, b, c, d, function=function: function([a, b], [c, d], *stored),
            (*given[0], *given[1]),
        )


def test_is_zero_where_statistics_agree():
    given = statistics()
    assert bns_loss(given[0], given[1], given[0], given[1]) == 0


def test_stored_statistics_of_another_dtype_are_rounded_to_the_batch_s():
    means, vars, running_means, running_vars = statistics((5,))
    halves = [running_means[0].half()], [running_vars[0].half()]
    expected = bns_loss(means, vars, *([t[0].float()] for t in halves))
    assert same_bits(bns_loss(means, vars, *halves), expected)


def test_only_one_statistic_requires_grad():
    means, vars, *stored = statistics((4, 5))
    means[1].requires_grad_()
    bns_loss(means, vars, *stored).backward()
    assert means[0].grad is None
    expected = (means[1] - stored[0][1]).detach() * 2 / (2 * 5)
    torch.testing.assert_close(means[1].grad, expected)


def test_opcheck():
    given = requiring_grad(statistics((4, 1)))
    opcheck(torch.ops.gdfq.bns_loss.default, tuple(given))
    detached = [[t.detach() for t in s] for s in given]
    opcheck(torch.ops.gdfq.bns_loss_backward.default, (torch.tensor(2.0), *detached))


def test_compiles_without_graph_break():
    given = requiring_grad(statistics((4, 2)))
    compiled = torch.compile(bns_loss, fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(f(*given), given[0]) for f in (bns_loss, compiled)]
    assert same_bits(grads[0][1], grads[1][1])


C3, C4 = torch.ones(3), torch.ones(4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], [], []), "at least one layer; got 0, 0, 0, 0"),
        (([C3], [C3], [C3], []), "one entry per layer each, .* got 1, 1, 1, 0"),
        (([C3, C3], [C3, C3], [C3, C4], [C3, C3]), r"layer 1: .* \(3,\), \(3,\), \(4,\), \(3,\)"),
        (([C3.int()], [C3], [C3], [C3]), "layer 0: dtype"),
        (([C3], [C3.to("meta")], [C3], [C3]), "layer 0: .* on one device"),
        (([C3[:0]],) * 4, "layer 0: .* not be empty"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(gdfq.InputError, match=message):
        bns_loss(*arguments)


@given(st.data())
def test_equals_the_reference_on_drawn_layers(data):
    layers = data.draw(st.lists(st.tuples(st.integers(1, 70)), min_size=1, max_size=6))
    dtype = data.draw(draws.dtypes)
    given = [[data.draw(draws.tensors(s, dtype)) for s in layers] for _ in range(4)]
    wide = [[t.double() for t in s] for s in given]
    expected = bns_loss_reference(*wide)
    torch.testing.assert_close(bns_loss(*given).double(), expected, rtol=1e-6, atol=0)
    one = torch.tensor(1.0)
    actual = torch.ops.gdfq.bns_loss_backward(one, *given)
    tolerance = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    for got, wanted in zip(actual, bns_loss_backward_reference(one, *wide), strict=True):
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * 1e-3)


def test_what_float32_cannot_hold_is_infinite():
    zeros, ones, huge = torch.zeros(4), torch.ones(4), torch.full((4,), 2e20)
    assert bns_loss([zeros], [huge], [zeros], [ones]) == float("inf")
