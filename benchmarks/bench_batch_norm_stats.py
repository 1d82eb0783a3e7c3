"""batch_norm_stats: 2 bytes of traffic per byte of input forward, 3 backward."""

import torch

from gdfq.functional import batch_norm_stats
from gdfq.ops.batch_norm_stats import batch_norm_stats_reference

compiled = torch.compile(batch_norm_stats_reference, dynamic=False)


def eager(x, running_mean, running_var, weight, bias, eps):
    """Compute a hook's statistics and the layer, in stock PyTorch."""
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    y = torch.nn.functional.batch_norm(x, running_mean, running_var, weight, bias, eps=eps)
    return y, mean, var


def arguments(shape):
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    c = shape[1]
    return x, torch.zeros(c), torch.ones(c), torch.ones(c), torch.zeros(c), 1e-5


def test_batch_norm_stats_forward(interleave, shape):
    given = arguments(shape)
    interleave(
        lambda: batch_norm_stats(*given),
        {
            "eager": lambda: eager(*given),
            "torch.compile": lambda: compiled(*given),
        },
        traffic=2 * given[0].nbytes,
    )


compiled_eager = torch.compile(eager, dynamic=False)


def test_batch_norm_stats_training(interleave, shape):
    given = arguments(shape)
    x = given[0].requires_grad_()
    grads = (torch.randn_like(x), torch.randn(shape[1]), torch.randn(shape[1]))

    def step(function):
        return torch.autograd.grad(function(*given), x, grads)

    interleave(
        lambda: step(batch_norm_stats),
        {
            "eager": lambda: step(eager),
            "torch.compile": lambda: step(compiled_eager),
        },
        traffic=5 * x.nbytes,
    )
