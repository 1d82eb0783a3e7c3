"""The student's loss, against its formulas in float64."""

import pytest
import torch
import torch.nn.functional as F

import gdfq
from gdfq.recipes import load_recipe
from gdfq.training import Parts
from gdfq.training.parts.objective import student_loss
from tests.helpers.parts import logits
from tests.helpers.tiny import tiny_trainer


def expected_loss(parts, student, teacher, labels, temperature, alpha):
    """The formulas of the objectives, sample by sample, in float64."""
    student, teacher = student.double(), teacher.double()
    batch, classes = student.shape
    divergence = matching = entropy = 0.0
    for s, t, y in zip(student, teacher, labels, strict=True):
        target = F.one_hot(y, classes).double() if y.dim() == 0 else y.double()
        p, q = (t / temperature).softmax(0), (s / temperature).softmax(0)
        divergence += (p * (p.log() - q.log())).mean() / batch
        matching += ((t - s) ** 2).mean() / batch
        distance = 1 - sum(min(a, b) for a, b in zip(target, t.softmax(0), strict=True))
        if parts.ce_gate is None or distance <= parts.ce_gate:
            entropy += -(target * s.log_softmax(0)).sum() / batch
    scaled = alpha * temperature**2 * divergence
    return {
        "kd_ce": parts.ce_weight * entropy + scaled,
        "logit_mse": parts.ce_weight * entropy + matching,
        "kl_only": scaled,
    }[parts.objective]


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("gate", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("objective", ["kd_ce", "logit_mse", "kl_only"])
def test_objectives(objective, weight, gate, labels):
    if (objective == "kl_only" and weight != 1) or (
        gate is not None and (objective == "kl_only" or weight == 0)
    ):
        pytest.skip("refused")
    parts = Parts(objective=objective, ce_weight=weight, ce_gate=gate)
    student, teacher, hard, soft = logits()
    labels = hard if labels == "hard" else soft
    student.requires_grad_()
    loss = student_loss(parts, student, teacher, labels, 4.0, 1.5)
    (gradient,) = torch.autograd.grad(loss, student)
    wide = student.detach().double().requires_grad_()
    expected = expected_loss(parts, wide, teacher, labels, 4.0, 1.5)
    (expected_gradient,) = torch.autograd.grad(expected, wide)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-6)


def test_a_student_without_a_loss_is_refused():
    for parts, reason in ((Parts(objective="kl_only"), "kl_only"), (Parts(ce_weight=0.0), "ce_w")):
        with pytest.raises(gdfq.InputError, match=f"alpha: must be > 0 with .*{reason}"):
            tiny_trainer(parts=parts, alpha=0.0)
        given = {**parts.changed(), "alpha": 0.0}
        with pytest.raises(gdfq.InputError, match="alpha: must be > 0"):
            load_recipe("fashion-mnist-resnet20").with_options(given)
    tiny_trainer(parts=Parts(objective="logit_mse", ce_weight=0.0), alpha=0.0)
