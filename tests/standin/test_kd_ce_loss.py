import pytest
import torch

from gdfq.ops.kd_ce_loss import kd_ce_loss_reference
from tests.ops.cases import every_dtype
from tests.standin.library import SCHEDULES, Output


def run(standin, student, teacher, labels, schedule):
    loss = Output(torch.empty(()))
    gradient = Output(torch.empty(student.shape))
    classes, probabilities = (labels, None) if labels.dim() == 1 else (None, labels)
    standin.launch(
        "kd_ce_loss",
        *(student.dtype, student, teacher, classes, probabilities, 20.0, 1.0),
        *(loss.tensor, gradient.tensor, *student.shape),
        schedule=schedule,
    )
    return loss.check(), gradient.check()


@every_dtype
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("shape", [(3, 10), (1, 1), (2, 700), (2, 7001), (1, 21841)])
def test_rows_on_chip_and_longer_ones(standin, dtype, soft, shape):
    torch.manual_seed(0)
    student, teacher = (torch.randn(shape).to(dtype) for _ in range(2))
    labels = torch.rand(shape).softmax(1) if soft else torch.randint(shape[1], shape[:1])
    results = [run(standin, student, teacher, labels, schedule) for schedule in SCHEDULES[:2]]
    expected = kd_ce_loss_reference(student, teacher, labels, 20.0, 1.0)
    for result in results:
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-12)
    assert torch.equal(results[0][0], results[1][0])


@pytest.mark.parametrize("label", [-1, 3])
def test_a_class_that_does_not_exist_makes_the_loss_nan(standin, label):
    logits = torch.ones(2, 3)
    loss, gradient = run(standin, logits, logits, torch.tensor([0, label]), SCHEDULES[0])
    assert loss.isnan()
    assert gradient.isfinite().all()
