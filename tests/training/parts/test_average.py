"""The exponential average of the student."""

import pytest
import torch
from torch import nn

import gdfq
from gdfq.training import Parts
from tests.helpers.parts import part_of, same_state, set_up, state
from tests.helpers.tiny import tiny_trainer


def test_the_average_is_that_of_all_updates():
    student = nn.Linear(3, 2)
    average = set_up("average", Parts(ema_decay=0.8), student=student)
    history = []
    for step in range(1, 8):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn(parameter.shape))
        history.append([p.detach().double().clone() for p in student.parameters()])
        average.after_update()
        weights = [0.8 ** (step - 1 - i) for i in range(step)]
        for index, value in enumerate(average.values.values()):
            total = sum(w * h[index] for w, h in zip(weights, history, strict=True))
            torch.testing.assert_close(value.double(), total / sum(weights), rtol=1e-5, atol=1e-6)


def test_the_outcome_has_the_average_and_the_student_s_ranges():
    trainer = tiny_trainer(parts=Parts(ema_decay=0.9))
    assert trainer.outcome is trainer.student
    returned = trainer.train()
    student, outcome = state(trainer.student), state(trainer.outcome)
    assert same_state(outcome, state(returned))
    names = dict(trainer.student.named_parameters())
    for name, value in outcome.items():
        expected = part_of(trainer, "average").values[name] if name in names else student[name]
        assert torch.equal(value, expected)
    assert not torch.equal(outcome["0.weight"], student["0.weight"])
    images = torch.randn(4, 2, 8, 8)
    assert returned(images).isfinite().all()


def test_a_loss_that_is_not_finite_puts_the_average_back_too():
    trainer = tiny_trainer(epochs=20, student_lr=1e30, parts=Parts(ema_decay=0.9))
    with pytest.raises(gdfq.NonFiniteLossError):
        trainer.train()
    assert all(p.isfinite().all() for p in trainer.outcome.parameters())
