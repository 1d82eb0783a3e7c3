"""The limit on the norm of gradients."""

import torch

from gdfq.training import Parts
from tests.helpers.tiny import tiny_trainer


def test_gradients_are_shortened_to_a_norm():
    def after_a_step(**options):
        trainer = tiny_trainer(
            parts=Parts(**options), warmup_epochs=0, momentum=0.0, weight_decay=0.0,
            schedule="constant", student_lr=1.0, learned_ranges="act",
        )  # fmt: skip
        trainer.calibrate(2)
        before = [p.detach().clone() for p in trainer.student.parameters()]
        trainer.step()
        return trainer, before

    plain, _ = after_a_step()
    gradients = [p.grad for p in plain.student.parameters()]
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    for most, factor in ((2 * float(norm), 1.0), (float(norm) / 3, 1 / 3)):
        clipped, before = after_a_step(max_grad_norm=most)
        for parameter, gradient, old in zip(
            clipped.student.parameters(), gradients, before, strict=True
        ):
            assert torch.allclose(parameter.grad, factor * gradient, rtol=1e-5, atol=1e-7)
            if parameter.dim():  # ranges have a rate of their own
                assert torch.allclose(old - parameter, factor * gradient, rtol=1e-3, atol=1e-5)
