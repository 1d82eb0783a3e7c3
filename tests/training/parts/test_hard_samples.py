"""Hard samples, for the generator and for the student."""

import copy

import pytest
import torch
import torch.nn.functional as F

from gdfq.training import Parts
from gdfq.training.parts.hard_samples import harder_images, teacher_cross_entropy
from tests.helpers.parts import logits, steps
from tests.helpers.tiny import tiny_teacher, tiny_trainer


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_generator_s_cross_entropy_weighs_hard_samples(gamma):
    _, teacher, hard, soft = logits()
    for labels in (hard, soft):
        target = F.one_hot(hard, 5).float() if labels is hard else soft
        p = teacher.softmax(1)
        sure = torch.minimum(target, p).sum(1)
        entropy = -(target * teacher.log_softmax(1)).sum(1)
        expected = ((1 - sure) ** gamma * entropy).mean()
        torch.testing.assert_close(teacher_cross_entropy(teacher, labels, gamma), expected)


def test_the_exponent_reaches_the_generator_s_loss():
    trainer = tiny_trainer(parts=Parts(hard_sample_gamma=3.0))
    random = trainer.rng.get_state()
    z, labels = trainer.images.sample()
    logits = tiny_teacher()(copy.deepcopy(trainer.generator)(z, labels))
    trainer.rng.set_state(random)
    p = logits.softmax(1)[torch.arange(16), labels]
    expected = ((1 - p) ** 3 * -p.log()).mean()
    torch.testing.assert_close(trainer.step()["generator_ce"], expected, rtol=1e-4, atol=1e-6)


def test_the_step_that_hardens_images_is_the_one_that_was_given(monkeypatch):
    given = []

    def recorded(student, images, labels, step):
        given.append(step)
        return images

    monkeypatch.setattr("gdfq.training.parts.hard_samples.harder_images", recorded)
    steps(tiny_trainer(parts=Parts(hard_sample_step=0.03), warmup_epochs=0), 2)
    assert given == [0.03, 0.03]


def test_a_sample_the_teacher_is_certain_of_has_a_finite_gradient():
    certain = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    teacher_cross_entropy(certain, torch.tensor([0]), 0.5).backward()
    assert certain.grad.isfinite().all()


def test_harder_images_are_harder():
    trainer = tiny_trainer(warmup_epochs=0)
    trainer.calibrate(2)
    z, labels = trainer.images.sample()
    images = trainer.images.make(z, labels).detach()
    harder = harder_images(trainer.student, images, labels, 0.02)
    moved = (harder - images).abs()
    assert not harder.requires_grad
    assert all(p.grad is None for p in trainer.student.parameters())
    assert float(moved.max()) == pytest.approx(0.02, rel=1e-3)
    losses = [F.cross_entropy(trainer.student(x), labels) for x in (images, harder)]
    assert losses[1] > losses[0]
