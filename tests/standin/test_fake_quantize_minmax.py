import pytest
import torch

from gdfq.ops.fake_quantize_minmax import fake_quantize_minmax_reference
from tests.ops.cases import every_dtype, same_bits
from tests.standin.library import SCHEDULES, Output


def run(standin, w, bits, skew=0, schedule=SCHEDULES[0], zero_in_range=False):
    rows, length = w.shape
    y = Output(w, skew)
    lo, hi = (Output(torch.empty(rows)) for _ in range(2))
    standin.launch(
        "fake_quantize_minmax",
        *(w.dtype, w, y.tensor, lo.tensor, hi.tensor, bits, zero_in_range, rows, length),
        schedule=schedule,
    )
    return y.check(), lo.check(), hi.check()


def agrees(standin, w, bits=4, skew=0, zero_in_range=False):
    expected = fake_quantize_minmax_reference(w, bits, 0, "identity", zero_in_range)
    return all(
        same_bits(actual, wanted)
        for schedule in SCHEDULES
        for actual, wanted in zip(
            run(standin, w, bits, skew, schedule, zero_in_range), expected, strict=True
        )
    )


# 27, 49 and 147 are weights whose rows are not aligned; 13,000 and 26,001 do not fit on chip.
SHAPES = (
    *((1, 1), (3, 2), (5, 7), (16, 27), (3, 49), (2, 64), (2, 147), (3, 576), (2, 4608)),
    *((2, 13000), (2, 26001)),
)


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize(("skew_in", "skew_out"), [(0, 0), (1, 1), (3, 0)])
def test_equals_the_reference(standin, dtype, shape, skew_in, skew_out):
    torch.manual_seed(0)
    w = torch.randn(shape[0] * shape[1] + skew_in).to(dtype)[skew_in:].view(shape)
    assert agrees(standin, w, skew=skew_out)


@pytest.mark.parametrize("bits", range(2, 9))
def test_bits(standin, bits):
    assert agrees(standin, torch.randn(3, 200), bits)


@pytest.mark.parametrize("position", [0, 1, 31, 32, 517, 1027])
def test_nan_stays_in_its_row(standin, position):
    w = torch.randn(3, 1028)
    w[1, position] = float("nan")
    assert agrees(standin, w)
    assert run(standin, w, 4)[0][1].isnan().all()


def test_constant_row(standin):
    assert agrees(standin, torch.full((2, 9), 0.7))


@pytest.mark.parametrize("length", [1, 27, 13000])
@pytest.mark.parametrize("shift", [-6, 0, 6])
def test_zero_in_range(standin, length, shift):
    assert agrees(standin, torch.randn(3, length) + shift, zero_in_range=True)


def test_extremes_anywhere(standin):
    for position in range(0, 700, 37):
        w = torch.randn(2, 700)
        w[0, position], w[1, 699 - position] = 50.0, -50.0
        assert agrees(standin, w)
