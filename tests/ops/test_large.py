"""Tensors of more than 2^31 elements: ``pytest tests/ops/test_large.py --large``.

In half precision, one tensor is 4.6 GB. Everywhere but at both ends and around element 2^31 it is
one constant: results are checked there, and sums are known.
"""

import os
from pathlib import Path

import pytest
import torch

from gdfq import functional, losses
from gdfq.ops.batch_norm_stats import batch_norm_stats_reference
from gdfq.ops.bn_act_fake_quantize import (
    bn_act_fake_quantize_backward_reference,
    bn_act_fake_quantize_reference,
)
from gdfq.ops.bn_leaky_relu import bn_leaky_relu_backward_reference
from gdfq.ops.count_changed_codes import count_changed_codes_reference
from gdfq.ops.fake_quantize import (
    fake_quantize_backward_reference,
    fake_quantize_learned_backward_reference,
    fake_quantize_reference,
)
from gdfq.ops.fake_quantize_minmax import fake_quantize_minmax_reference
from gdfq.ops.kd_ce_loss import kd_ce_loss_reference
from gdfq.ops.quantize_codes import quantize_codes_reference
from tests.ops.cases import same_bits

NEEDED = 20 * 10**9  # bytes
COLUMNS = 64
ROWS = 2**25 + 2**21  # of COLUMNS: 2^31 + 2^27 elements
MIDDLE = 2**31 // COLUMNS
WINDOWS = [slice(0, 40), slice(MIDDLE - 40, MIDDLE + 40), slice(ROWS - 40, ROWS)]
CONSTANT = 0.25

pytestmark = pytest.mark.large


def available_memory():
    if os.environ.get("GDFQ_TEST_DEVICE", "cpu") != "cpu":
        return torch.cuda.mem_get_info()[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])


@pytest.fixture(autouse=True)
def enough_memory(request):
    if not request.config.getoption("--large", False):
        pytest.skip("needs --large")
    if available_memory() < NEEDED:
        pytest.skip(f"needs {NEEDED // 10**9} GB of memory")


def large(dtype=torch.float16):
    """``(ROWS, COLUMNS)`` of one constant, and random numbers in the windows."""
    torch.manual_seed(0)
    x = torch.full((ROWS, COLUMNS), CONSTANT, dtype=dtype)
    for window in WINDOWS:
        x[window] = torch.randn(x[window].shape).to(dtype)
    return x


def windows(x):
    return torch.cat([x[window] for window in WINDOWS])


def statistics64(x):
    """Mean and biased variance of each column, from what the windows hold and the constant."""
    held = windows(x).double()
    rest = ROWS - len(held)
    mean = (held.sum(0) + rest * CONSTANT) / ROWS
    var = (((held - mean) ** 2).sum(0) + rest * (CONSTANT - mean) ** 2) / ROWS
    return mean, var


def bounds(entries=()):
    return torch.full(entries, -1.0), torch.full(entries, 1.5)


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=1e-12)


@pytest.mark.parametrize("axis", [None, 1, 0])
def test_fake_quantize(axis):
    x = large()
    entries = () if axis is None else (x.shape[axis],)
    y = functional.fake_quantize(x, *bounds(entries), 4, axis)
    held = windows(x)
    entries = () if axis is None else (held.shape[axis],)
    assert same_bits(windows(y), fake_quantize_reference(held, *bounds(entries), 4, axis))


def test_fake_quantize_backward():
    x = large()
    dx = torch.ops.gdfq.fake_quantize_backward(x, x, *bounds(), 4, None)
    held = windows(x)
    assert same_bits(windows(dx), fake_quantize_backward_reference(held, held, *bounds(), 4))


def test_fake_quantize_learned_backward():
    x = large()
    given = (*bounds((COLUMNS,)), 4, 1)
    dx, dlo, dhi = torch.ops.gdfq.fake_quantize_learned_backward(x, x, *given)
    held = windows(x)
    parts = fake_quantize_learned_backward_reference(held, held, *given)
    assert same_bits(windows(dx), parts[0])
    # The sums: the windows', and the constant's times its count; each has its own factor.
    one = torch.full((1, COLUMNS), CONSTANT, dtype=x.dtype)
    single = fake_quantize_learned_backward_reference(one, one, *given)
    for got, of_windows, of_one in ((dlo, parts[1], single[1]), (dhi, parts[2], single[2])):
        total = of_windows.double() * len(held) ** 0.5 + of_one.double() * (ROWS - len(held))
        close(got, total / ROWS**0.5, 1e-5)


def test_fake_quantize_minmax():
    w = large()
    y = functional.fake_quantize_minmax(w, 4)
    assert same_bits(windows(y), fake_quantize_minmax_reference(windows(w), 4)[0])


def test_fake_quantize_minmax_of_everything():
    w = large()
    w[-1, -1] = 9
    y, lo, hi = torch.ops.gdfq.fake_quantize_minmax(w, 4, None, "identity", True)
    assert lo == windows(w).min()
    assert hi == 9
    assert same_bits(windows(y), fake_quantize_reference(windows(w), lo, hi, 4))


def test_fake_quantize_minmax_list():
    w = large()
    (y, small) = functional.fake_quantize_minmax_list([w, w[:2]], 4)
    assert same_bits(windows(y), fake_quantize_minmax_reference(windows(w), 4)[0])
    assert same_bits(small, fake_quantize_minmax_reference(w[:2], 4)[0])


def test_fake_quantize_minmax_list_backward():
    w = large()
    lo, hi = bounds((ROWS,))
    (dw,) = torch.ops.gdfq.fake_quantize_minmax_list_backward([w], [w], [lo], [hi], [4])
    held = windows(w)
    assert same_bits(windows(dw), fake_quantize_backward_reference(held, held, *bounds(), 4))


def test_count_changed_codes():
    w = large()
    held, factor = windows(w), torch.tensor([0.5])
    constant = torch.full((1, 1), CONSTANT, dtype=w.dtype)

    def changed(count, x):
        lo, hi = bounds((len(x),))
        return count([x], [x], factor, [lo], [hi], [4])

    rest = COLUMNS * (ROWS - len(held)) * changed(count_changed_codes_reference, constant)
    assert rest > 2**31
    assert changed(functional.count_changed_codes, w) == rest + changed(
        count_changed_codes_reference, held
    )


def test_observe_fake_quantize():
    x = large()
    x[-1, -1] = 9
    buffers = [*(torch.zeros(()) for _ in range(4)), torch.zeros((), dtype=torch.int64)]
    y = functional.observe_fake_quantize(x, *buffers, 4)
    close(buffers[3], torch.tensor(9.0))
    assert same_bits(windows(y), fake_quantize_reference(windows(x), *buffers[2:4], 4))


def test_quantize_codes():
    x = large()
    given = (*bounds((COLUMNS,)), 4, 1)
    codes, _, _ = functional.quantize_codes(x, *given)
    assert same_bits(windows(codes), quantize_codes_reference(windows(x), *given)[0])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_pack_codes(bits):
    torch.manual_seed(0)
    half = 2 ** (bits - 1)
    codes = torch.zeros(ROWS, COLUMNS, dtype=torch.int8)
    for window in WINDOWS:
        codes[window] = torch.randint(-half, half, codes[window].shape, dtype=torch.int8)
    packed = functional.pack_codes(codes, bits)
    for window in WINDOWS:  # a row fills whole bytes
        bytes_of = slice(*(row * COLUMNS * bits // 8 for row in (window.start, window.stop)))
        assert same_bits(packed[bytes_of], functional.pack_codes(codes[window], bits))
    unpacked = functional.unpack_codes(packed, bits, codes.shape)
    assert same_bits(windows(unpacked), windows(codes))
    assert (unpacked == codes).all()


def batch_norm():
    torch.manual_seed(1)
    mean, weight, bias = torch.randn(3, COLUMNS)
    return mean, torch.rand(COLUMNS) + 0.1, weight, bias


# Channels along rows of memory, and in runs longer than 2^31 bytes.
def test_batch_norm_stats():
    x = large()
    y, mean, var = functional.batch_norm_stats(x, *batch_norm(), 1e-5)
    held = batch_norm_stats_reference(windows(x), *batch_norm(), 1e-5)[0]
    assert same_bits(windows(y), held)
    expected = statistics64(x)
    close(mean, expected[0])
    torch.testing.assert_close(var.double(), expected[1], rtol=1e-5, atol=1e-12)


def test_batch_norm_stats_of_one_long_channel():
    x = large().view(1, 1, ROWS, COLUMNS)
    y, mean, var = functional.batch_norm_stats(x, *(t[:1] for t in batch_norm()), 1e-5)
    one = batch_norm_stats_reference(windows(x[0, 0])[None, None], *(t[:1] for t in batch_norm()),
                                     1e-5)[0]  # fmt: skip
    assert same_bits(windows(y[0, 0]), one[0, 0])
    columns = statistics64(x[0, 0])
    close(mean[0], columns[0].mean())
    close(var[0], columns[1].mean() + columns[0].var(correction=0), 1e-5)


def test_batch_norm_stats_backward():
    x = large()
    mean, var, weight, _ = batch_norm()
    given = (torch.ones(COLUMNS), torch.ones(COLUMNS))
    dx = torch.ops.gdfq.batch_norm_stats_backward(x, *given, x, mean, var, weight, 1e-5)
    factor = weight / torch.sqrt(var + 1e-5)
    held = windows(x).float()
    expected = held * factor + (held - mean) * 2 / ROWS + 1 / ROWS
    torch.testing.assert_close(windows(dx).float(), expected, rtol=1e-3, atol=1e-6)


def test_bn_act_fake_quantize():
    x = large()
    given = (*batch_norm(), 1e-5, *bounds(), 4, "relu6", None, "clip")
    y = functional.bn_act_fake_quantize(x, *given)
    assert same_bits(windows(y), bn_act_fake_quantize_reference(windows(x), *given))


def test_observe_bn_act_fake_quantize():
    x = large()
    x[-1, -1] = 50
    buffers = [*(torch.zeros(()) for _ in range(4)), torch.zeros((), dtype=torch.int64)]
    y = functional.observe_bn_act_fake_quantize(x, *batch_norm(), 1e-5, *buffers, 4)
    held = (*batch_norm(), 1e-5, *buffers[2:4], 4)
    assert same_bits(windows(y), bn_act_fake_quantize_reference(windows(x), *held))
    mean, var, weight, bias = (t[-1].double() for t in batch_norm())
    assert buffers[3] >= float((50 - mean) * weight / (var + 1e-5).sqrt() + bias) * (1 - 1e-6)


def test_bn_act_fake_quantize_backward():
    x = large()
    given = (*batch_norm(), 1e-5, *bounds(), 4, "relu6", None, "clip")
    actual = torch.ops.gdfq.bn_act_fake_quantize_backward(x, x, *given)
    held = windows(x)
    expected = bn_act_fake_quantize_backward_reference(held, held, *given)
    assert same_bits(windows(actual[0]), expected[0])
    one = torch.full((1, COLUMNS), CONSTANT, dtype=x.dtype)
    rest = bn_act_fake_quantize_backward_reference(one, one, *given)
    for got, of_windows, of_one in zip(actual[2:], expected[2:], rest[2:], strict=True):
        total = of_windows.double() + of_one.double() * (ROWS - len(held))
        torch.testing.assert_close(got.double(), total, rtol=1e-5, atol=1e-3)


def test_bn_leaky_relu():
    x = large()
    _, _, weight, bias = batch_norm()
    y, mean, var = torch.ops.gdfq.bn_leaky_relu(x, weight, bias, 0.8, 0.2)
    expected = statistics64(x)
    close(mean, expected[0])
    torch.testing.assert_close(var.double(), expected[1], rtol=1e-5, atol=1e-12)
    v = (windows(x).float() - mean) * (weight / torch.sqrt(var + 0.8)) + bias
    expected = torch.where(v > 0, v, 0.2 * v)
    torch.testing.assert_close(windows(y).float(), expected, rtol=1e-3, atol=1e-5)


def test_bn_leaky_relu_backward():
    x = large()
    _, _, weight, bias = batch_norm()
    mean, var = (t.float() for t in statistics64(x))
    given = (mean, var, weight, bias, 0.8, 0.2)
    dx, dweight, dbias = torch.ops.gdfq.bn_leaky_relu_backward(x, x, *given)
    held = windows(x).double()
    one = torch.full((1, COLUMNS), CONSTANT, dtype=torch.float64)
    wide = tuple(t.double() for t in given[:4])
    sums = [torch.zeros(COLUMNS, dtype=torch.float64) for _ in range(2)]
    for rows, times in ((held, 1), (one, ROWS - len(held))):
        of_rows = bn_leaky_relu_backward_reference(rows, rows, *wide, 0.8, 0.2)[1:]
        sums = [s + times * part for s, part in zip(sums, of_rows, strict=True)]
    torch.testing.assert_close(dweight.double(), sums[0], rtol=1e-4, atol=1e2)
    torch.testing.assert_close(dbias.double(), sums[1], rtol=1e-5, atol=1)
    inverse = 1 / torch.sqrt(wide[1] + 0.8)
    factor, centered = wide[2] * inverse, held - wide[0]
    g = torch.where(centered * factor + wide[3] > 0, held, 0.2 * held)
    expected = factor * (g - sums[1] / ROWS - centered * inverse * sums[0] / ROWS)
    torch.testing.assert_close(windows(dx).double(), expected, rtol=1e-3, atol=1e-4)


def test_bns_loss():
    means = large().view(-1)
    zeros = torch.zeros_like(means)
    small = torch.ones(3, dtype=torch.float16)
    loss = losses.bns_loss([means, small], [zeros, small], [zeros, small], [zeros, small])
    held = windows(means.view(ROWS, COLUMNS)).double()
    rest = means.numel() - held.numel()
    close(loss, ((held**2).sum() + rest * CONSTANT**2) / means.numel() / 2, 1e-5)


def test_kd_ce_loss():
    student = large()
    labels = torch.zeros(ROWS, dtype=torch.int64)
    labels[WINDOWS[2]] = 3
    loss = losses.kd_ce_loss(student, student, labels, 4.0, 1.0)
    held, of_windows = windows(student), windows(labels)
    total = kd_ce_loss_reference(held.double(), held.double(), of_windows, 4.0)[0] * len(held)
    # A row of one constant: its classes are equally likely.
    rest = (ROWS - len(held)) * torch.log(torch.tensor(float(COLUMNS), dtype=torch.float64))
    close(loss, (total + rest) / ROWS)
