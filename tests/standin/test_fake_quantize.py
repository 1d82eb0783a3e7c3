import pytest
import torch

from gdfq.ops.fake_quantize import fake_quantize_backward_reference, fake_quantize_reference
from tests.ops.cases import LAYOUTS, every_dtype, every_layout, every_shape, same_bits
from tests.standin.library import SCHEDULES, Output, dense, layout_of


def ranges(x, axis):
    entries = () if axis is None else (x.shape[axis],)
    return -torch.rand(entries) - 0.1, torch.rand(entries) + 0.1


@every_dtype
@every_layout
@every_shape
@pytest.mark.parametrize("axis", [None, 0, 1, 3])
def test_equals_the_reference(standin, dtype, layout, shape, axis):
    torch.manual_seed(0)
    x = dense(LAYOUTS[layout](torch.randn(shape).to(dtype)))
    dy = torch.empty_like(x).copy_(torch.randn(shape))
    lo, hi = ranges(x, axis)
    for schedule in SCHEDULES[:2]:
        y = Output(x)
        standin.launch(
            "fake_quantize", dtype, x, y.tensor, lo, hi, 3, *layout_of(x, axis), schedule=schedule
        )
        assert same_bits(y.check(), fake_quantize_reference(x, lo, hi, 3, axis))
        dx = Output(x)
        standin.launch(
            "fake_quantize_backward",
            *(dtype, dy, x, dx.tensor, lo, hi, 3, *layout_of(x, axis)),
            schedule=schedule,
        )
        assert same_bits(dx.check(), fake_quantize_backward_reference(dy, x, lo, hi, 3, axis))


@every_dtype
@pytest.mark.parametrize("numel", [1, 3, 7, 8, 9, 31, 64, 1000, 4096, 4099, 9001])
@pytest.mark.parametrize(("skew_in", "skew_out"), [(0, 0), (1, 1), (3, 3), (1, 0), (0, 5), (7, 2)])
def test_every_alignment(standin, dtype, numel, skew_in, skew_out):
    torch.manual_seed(numel)
    x = torch.randn(numel + skew_in).to(dtype)[skew_in:]
    lo, hi = ranges(x, None)
    y = Output(x, skew_out)
    standin.launch("fake_quantize", dtype, x, y.tensor, lo, hi, 4, 1, 1, numel)
    assert same_bits(y.check(), fake_quantize_reference(x, lo, hi, 4))


@pytest.mark.parametrize("bits", range(2, 9))
def test_hard_values(standin, bits):
    from tests.ops.test_fake_quantize import hard_values

    lo, hi = torch.tensor(-0.37), torch.tensor(2.91)
    x = torch.from_numpy(hard_values(-0.37, 2.91, bits))
    dy = torch.randn_like(x)
    y, dx = Output(x), Output(x)
    standin.launch("fake_quantize", x.dtype, x, y.tensor, lo, hi, bits, 1, 1, x.numel())
    assert same_bits(y.check(), fake_quantize_reference(x, lo, hi, bits))
    standin.launch(
        "fake_quantize_backward", x.dtype, dy, x, dx.tensor, lo, hi, bits, 1, 1, x.numel()
    )
    assert same_bits(dx.check(), fake_quantize_backward_reference(dy, x, lo, hi, bits))
