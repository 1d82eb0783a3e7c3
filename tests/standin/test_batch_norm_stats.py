import pytest
import torch

from gdfq.ops.batch_norm_stats import (
    batch_norm_stats_backward_reference,
    batch_norm_stats_reference,
)
from tests.ops.cases import LAYOUTS, every_dtype, every_layout, every_shape, same_bits
from tests.ops.test_batch_norm_stats import parameters, statistics64
from tests.standin.library import SCHEDULES, Output, layout_of


def channel_layout(x):
    return (x.shape[0], 1, x.numel() // x.shape[0]) if x.shape[1] == 1 else layout_of(x, 1)


def walkable(x):
    return x.contiguous(memory_format=torch._prims_common.suggest_memory_format(x))


def forward(standin, x, arguments, schedule=SCHEDULES[0], skew=0):
    y = Output(x, skew)
    mean, var = (Output(torch.empty(x.shape[1])) for _ in range(2))
    standin.launch(
        "batch_norm_stats",
        *(x.dtype, x, y.tensor, mean.tensor, var.tensor, *arguments, *channel_layout(x)),
        schedule=schedule,
    )
    return y.check(), mean.check(), var.check()


@every_dtype
@every_layout
@every_shape
@pytest.mark.parametrize("affine", [True, False])
def test_forward(standin, dtype, layout, shape, affine):
    torch.manual_seed(0)
    x = walkable(LAYOUTS[layout](torch.randn(shape).to(dtype)))
    mean, var, weight, bias = parameters(shape[1])
    arguments = (mean, var, *((weight, bias) if affine else (None, None)), 1e-5)
    results = [forward(standin, x, arguments, schedule) for schedule in SCHEDULES[:2]]
    for first, second in zip(*results, strict=True):
        assert same_bits(first, second)
    y, mean, var = results[0]
    assert same_bits(y, batch_norm_stats_reference(x, *arguments)[0])
    mean64, var64 = statistics64(x)
    torch.testing.assert_close(mean.double(), mean64, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.double(), var64, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("shape", [(200, 16), (6, 8, 50), (700, 36), (3, 5, 100, 97), (90, 520)])
@pytest.mark.parametrize("skew", [0, 1, 2])
def test_other_shapes_and_alignments(standin, shape, skew):
    torch.manual_seed(0)
    numel = torch.Size(shape).numel()
    x = torch.randn(numel + skew)[skew:].view(shape)
    arguments = (*parameters(shape[1]), 1e-5)
    for out_skew in (0, skew):
        y, mean, var = forward(standin, x, arguments, SCHEDULES[1], out_skew)
        assert same_bits(y, batch_norm_stats_reference(x, *arguments)[0])
        mean64, var64 = statistics64(x)
        torch.testing.assert_close(mean.double(), mean64, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(var.double(), var64, rtol=1e-6, atol=0)


@pytest.mark.parametrize("ratio", [0, 1, 30, 1000, -1000])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_large_means_cost_no_accuracy(standin, ratio, layout):
    torch.manual_seed(0)
    std = torch.logspace(-2, 2, 12).view(1, -1, 1, 1)
    x = LAYOUTS[layout](torch.randn(8, 12, 28, 28) * std + ratio * std)
    _, mean, var = forward(
        standin, x, (torch.zeros(12), std.flatten() ** 2, None, None, 1e-5), SCHEDULES[1]
    )
    mean64, var64 = statistics64(x)
    assert ((mean - mean64).abs() / (mean64.abs() + std.flatten())).max() < 1e-6
    assert ((var - var64).abs() / var64).max() < 1e-6


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_one_outlier_costs_no_accuracy(standin, layout):
    torch.manual_seed(0)
    x = torch.randn(4, 4, 32, 32)
    x[0, :, 0, 0] = 1e4
    _, _, var = forward(standin, LAYOUTS[layout](x), (*parameters(4), 1e-5))
    torch.testing.assert_close(var.double(), statistics64(x)[1], rtol=1e-6, atol=0)


@every_dtype
@every_layout
@every_shape
@pytest.mark.parametrize("affine", [True, False])
def test_backward(standin, dtype, layout, shape, affine):
    torch.manual_seed(0)
    x = walkable(LAYOUTS[layout](torch.randn(shape).to(dtype)))
    dy = torch.empty_like(x).copy_(torch.randn(shape))
    mean, var, weight, grad_mean = parameters(shape[1])
    weight = weight if affine else None
    grad_var = torch.randn(shape[1])
    dx = Output(x)
    standin.launch(
        "batch_norm_stats_backward",
        *(dtype, dy, x, dx.tensor, grad_mean, grad_var, mean, var, weight, 1e-5),
        *channel_layout(x),
        schedule=SCHEDULES[1],
    )
    expected = batch_norm_stats_backward_reference(
        dy, grad_mean, grad_var, x, mean, var, weight, 1e-5
    )
    assert same_bits(dx.check(), expected)
