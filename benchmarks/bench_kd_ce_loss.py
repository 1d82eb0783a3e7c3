"""kd_ce_loss: three tensors of the logits' size read or written, loss and gradient together."""

import pytest
import torch
import torch.nn.functional as F

from gdfq.losses import kd_ce_loss


def eager(student, teacher, labels, temperature=20.0, alpha=1.0):
    """Compute the loss in stock PyTorch."""
    divergence = F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="sum",
        log_target=True,
    ) / (student.shape[0] * student.shape[1])
    return F.cross_entropy(student, labels) + alpha * temperature**2 * divergence


compiled = torch.compile(eager, dynamic=False)


@pytest.mark.parametrize("size", [(16, 21841), (200, 10), (16, 1000), (200, 100)], ids=str)
def test_kd_ce_loss_training(interleave, size):
    student, teacher = torch.randn(size, requires_grad=True), torch.randn(size)
    labels = torch.randint(size[1], size[:1])

    def step(function):
        return torch.autograd.grad(function(student, teacher, labels), student)

    interleave(
        lambda: step(kd_ce_loss),
        {
            "eager": lambda: step(eager),
            "torch.compile": lambda: step(compiled),
        },
        traffic=3 * teacher.nbytes,
    )
