import pytest
import torch
import torch.nn.functional as F

from gdfq.nn import narrow_conv
from gdfq.nn.narrow_conv import narrow_conv2d


def results(function, x, weight, bias):
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias) if t is not None]
    y = function(leaves[0], leaves[1], leaves[2] if bias is not None else None)
    torch.manual_seed(1)
    y.backward(torch.randn(y.shape))
    return y, *(t.grad for t in leaves)


def plain(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize(
    "shape", [(3, 8, 5, 7), (2, 64, 32, 32), (1, 1, 1, 1), (2, 5, 1, 4)], ids=str
)
def test_it_is_the_convolution(monkeypatch, shape, outputs, bias):
    torch.manual_seed(0)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(outputs, shape[1], 3, 3)
    given = x, weight, torch.randn(outputs) if bias else None
    expected = results(plain, *given)
    monkeypatch.setattr(narrow_conv.F, "conv2d", refuse)
    got = results(narrow_conv2d, *given)
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


def refuse(*arguments, **options):
    raise AssertionError("the usual convolution was called")


X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
ELSEWHERE = {
    "contiguous": (X, torch.ones(3, 4, 3, 3)),
    "float64": (
        X.double().contiguous(memory_format=torch.channels_last),
        torch.ones(3, 4, 3, 3).double(),
    ),
    "many outputs": (X.contiguous(memory_format=torch.channels_last), torch.ones(4, 4, 3, 3)),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_elsewhere_it_is_pytorch_s(case):
    x, weight = ELSEWHERE[case]
    assert torch.equal(narrow_conv2d(x, weight), plain(x, weight, None))


def test_under_autocast_it_is_pytorch_s():
    x, weight = ELSEWHERE["many outputs"]
    with torch.autocast("cpu", torch.bfloat16):
        y = narrow_conv2d(x, weight[:3])
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, plain(x, weight[:3], None))


@pytest.mark.parametrize("needed", [0, 1, 2])
def test_only_the_gradients_that_are_needed(needed):
    given = [X.contiguous(memory_format=torch.channels_last), torch.ones(2, 4, 3, 3), torch.ones(2)]
    given[needed] = given[needed].clone().requires_grad_()
    narrow_conv2d(*given).square().sum().backward()
    twin = [t.detach() for t in given]
    twin[needed].requires_grad_()
    plain(*twin).square().sum().backward()
    torch.testing.assert_close(given[needed].grad, twin[needed].grad, rtol=1e-4, atol=1e-3)
