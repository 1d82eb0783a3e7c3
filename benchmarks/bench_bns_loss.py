"""bns_loss over all layers of a network: a few thousand numbers, so calls dominate the cost."""

import pytest
import torch

from benchmarks.sizes import NORMS
from gdfq.losses import bns_loss
from gdfq.ops.bns_loss import bns_loss_reference


def eager(means, vars, running_means, running_vars):
    """Compute two mse_loss per layer, in stock PyTorch."""
    losses = [
        torch.nn.functional.mse_loss(m, rm) + torch.nn.functional.mse_loss(v, rv)
        for m, v, rm, rv in zip(means, vars, running_means, running_vars, strict=True)
    ]
    return torch.stack(losses).mean()


compiled = torch.compile(bns_loss_reference, dynamic=False)


@pytest.mark.parametrize("network", NORMS)
def test_bns_loss_training(interleave, network):
    given = [[torch.randn(c) for c in NORMS[network]] for _ in range(4)]
    inputs = [t.requires_grad_() for statistic in given[:2] for t in statistic]

    def step(function):
        return torch.autograd.grad(function(*given), inputs)

    interleave(
        lambda: step(bns_loss),
        {"eager": lambda: step(eager), "torch.compile": lambda: step(compiled)},
    )
