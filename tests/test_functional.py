import pytest
import torch
import torch.nn.functional as F

import gdfq
from gdfq.functional import bn_act_fake_quantize, fake_quantize


def arguments(channels):
    torch.manual_seed(0)
    mean, weight, bias = torch.randn(3, channels)
    return (
        mean,
        torch.rand(channels) + 0.1,
        weight,
        bias,
        1e-5,
        torch.tensor(0.0),
        torch.tensor(3.0),
    )


@pytest.mark.parametrize("act", ["relu", "relu6", "none"])
@pytest.mark.parametrize("with_residual", [False, True])
def test_bn_act_fake_quantize_is_its_parts(act, with_residual):
    x = torch.randn(2, 6, 5, 5)
    residual = torch.randn_like(x) if with_residual else None
    mean, var, weight, bias, eps, lo, hi = arguments(6)
    y = F.batch_norm(
        x.double(), mean.double(), var.double(), weight.double(), bias.double(), eps=eps
    )
    if with_residual:
        y = y + residual.double()
    y = {"relu": F.relu, "relu6": F.relu6, "none": lambda v: v}[act](y)
    expected = fake_quantize(y.float(), lo, hi, 4)
    actual = bn_act_fake_quantize(
        x, mean, var, weight, bias, eps, lo, hi, 4, act=act, residual=residual
    )
    # Batch norm has no single rounding: beside a tie a code may move by one step.
    moved = (actual - expected).abs()
    assert moved.max() <= 3 / 15 * 1.001
    assert (moved > 1e-6).float().mean() < 1e-2


def test_bn_act_fake_quantize_bad_arguments():
    x = torch.ones(2, 3, 4, 4)
    with pytest.raises(gdfq.InputError, match="residual: shape must be"):
        bn_act_fake_quantize(x, *arguments(3), 4, residual=torch.ones(2, 3, 4))
    with pytest.raises(
        gdfq.InputError, match="act: must be one of 'relu', 'relu6' or 'none', got 'gelu'"
    ):
        bn_act_fake_quantize(x, *arguments(3), 4, act="gelu")
    with pytest.raises(gdfq.InputError, match="bits"):
        bn_act_fake_quantize(x, *arguments(3), 1)
