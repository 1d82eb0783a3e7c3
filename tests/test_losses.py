import pytest
import torch
import torch.nn.functional as F

import gdfq
from gdfq.losses import bns_loss, kd_ce_loss


def test_kd_ce_loss_is_the_formula():
    student, teacher = torch.randn(2, 8, 5).double().unbind()
    labels = torch.arange(8) % 5
    p = torch.softmax(teacher / 20, 1)
    q = torch.softmax(student / 20, 1)
    expected = (p * (p.log() - q.log())).mean() * 400 * 0.7
    expected = expected - torch.log_softmax(student, 1)[torch.arange(8), labels].mean()
    loss = kd_ce_loss(student, teacher, labels, temperature=20.0, alpha=0.7)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_kd_ce_loss_gradient_is_the_formula():
    batch, classes, temperature, alpha = 6, 11, 20.0, 1.5
    student = torch.randn(batch, classes, requires_grad=True)
    teacher = torch.randn(batch, classes, requires_grad=True)
    labels = torch.randint(classes, (batch,))
    kd_ce_loss(student, teacher, labels, temperature, alpha).backward()
    softened = torch.softmax(student / temperature, 1) - torch.softmax(teacher / temperature, 1)
    expected = alpha * temperature / (batch * classes) * softened
    expected += (torch.softmax(student, 1) - F.one_hot(labels, classes)) / batch
    torch.testing.assert_close(student.grad, expected, rtol=1e-4, atol=1e-6)
    assert teacher.grad is None


def test_kd_ce_loss_takes_soft_labels():
    student, teacher = torch.randn(2, 4, 3).unbind()
    labels = torch.tensor([0, 2, 1, 1])
    hard = kd_ce_loss(student, teacher, labels)
    soft = kd_ce_loss(student, teacher, F.one_hot(labels, 3).float())
    torch.testing.assert_close(hard, soft)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2, 3), torch.ones(2, 4), torch.zeros(2).long()), "student_logits, teacher"),
        ((torch.ones(2), torch.ones(2), torch.zeros(2).long()), "student_logits, teacher"),
        ((torch.ones(2, 3), torch.ones(2, 3), torch.zeros(3).long()), "labels: shape"),
        ((torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2).long(), 0.0), "temperature: .* 0"),
        ((torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2).long(), 1.0, -1.0), "alpha: .* -1"),
    ],
)
def test_kd_ce_loss_bad_arguments(arguments, message):
    with pytest.raises(gdfq.InputError, match=message):
        kd_ce_loss(*arguments)


def test_bns_loss_is_the_formula():
    sizes = (3, 16, 5)
    layers = [[torch.rand(c) for c in sizes] for _ in range(4)]
    means, variances, running_means, running_vars = layers
    expected = sum(
        ((m - rm) ** 2).mean() + ((v - rv) ** 2).mean()
        for m, v, rm, rv in zip(*layers, strict=True)
    ) / len(sizes)
    loss = bns_loss(means, variances, running_means, running_vars)
    torch.testing.assert_close(loss, expected)


def test_bns_loss_gradcheck():
    statistics = [torch.rand(4, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    stored = [torch.rand(4, dtype=torch.float64) for _ in range(4)]
    assert torch.autograd.gradcheck(
        lambda a, b, c, d: bns_loss([a, b], [c, d], stored[:2], stored[2:]), statistics
    )


def test_bns_loss_bad_arguments():
    with pytest.raises(gdfq.InputError, match="at least one layer"):
        bns_loss([], [], [], [])
    with pytest.raises(gdfq.InputError, match="one entry per layer"):
        bns_loss([torch.ones(2)], [torch.ones(2)], [torch.ones(2)], [])
    with pytest.raises(gdfq.InputError, match="layer 0: statistics must have one shape"):
        bns_loss([torch.ones(2)], [torch.ones(2)], [torch.ones(3)], [torch.ones(2)])
