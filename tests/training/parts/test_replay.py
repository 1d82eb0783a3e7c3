"""Older images for the student."""

import pytest
import torch

from gdfq.training import Parts
from tests.helpers.parts import set_up, steps
from tests.helpers.tiny import tiny_trainer


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_replay(format):
    batch, kept = 50, 3
    replay = set_up("replay", Parts(replay_batches=kept, replay_share=0.4), batch_size=batch)
    older, shares = [], []
    for step in range(10):
        images = torch.randn(batch, 2, 4, 4).contiguous(memory_format=format)
        given = images, torch.arange(batch) + 100 * step, torch.randn(batch, 5)
        got = replay.student_batch(None, given)
        assert got[0].stride() == images.stride()
        # Labels say which batch a row is of: this one or one of the last three.
        of = got[1] // 100
        assert torch.equal(got[1] % 100, torch.arange(batch))
        assert of.min() >= max(0, step - kept)
        assert of.max() <= step
        older.append(given)
        for row in range(batch):
            source = older[int(of[row])]
            assert torch.equal(got[0][row], source[0][row])
            assert torch.equal(got[2][row], source[2][row])
        shares.append(float((of < step).float().mean()))
        if step >= kept:
            counts = [int((of == step - back).sum()) for back in (1, 2, 3)]
            assert min(counts) > 0
    assert shares[0] == 0
    assert sum(shares[1:]) / 9 == pytest.approx(0.4, abs=0.07)


def test_replayed_images_reach_the_student():
    trainer = tiny_trainer(
        parts=Parts(replay_batches=2, replay_share=0.9), warmup_epochs=0, fuse=False
    )
    seen = []
    trainer.calibrate(1)
    trainer.student.get_submodule("0").register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    made, make = [], trainer.images.make

    def recorded(*args):
        made.append(make(*args))
        return made[-1]

    trainer.images.make = recorded
    steps(trainer, 3)
    assert torch.equal(seen[0], made[0])
    assert not torch.equal(seen[2], made[2])
    rows = torch.cat(made)
    for row in seen[2]:
        assert (rows == row).flatten(1).all(1).any()


@pytest.mark.parametrize("mix", [0.0, 0.5])
def test_every_replayed_image_comes_with_its_label_and_the_teacher_s_logits(mix):
    trainer = tiny_trainer(
        parts=Parts(replay_batches=2, replay_share=0.7, mix_probability=mix), warmup_epochs=0,
        fuse=False,
    )  # fmt: skip
    trainer.calibrate(1)
    seen, made, given = [], [], []
    make, loss = trainer.images.make, trainer.algorithm.kd_ce
    trainer.student.get_submodule("0").register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )

    def recorded(z, labels):
        images = make(z, labels)
        made.extend(zip(images.detach(), labels, trainer.teacher(images)[0].detach(), strict=True))
        return images

    def taken(logits, teacher_logits, labels):
        given.append((teacher_logits, labels))
        return loss(logits, teacher_logits, labels)

    trainer.images.make = recorded
    trainer.algorithm.kd_ce = taken
    steps(trainer, 3)
    replayed = 0
    for step, (images, (teacher_logits, labels)) in enumerate(zip(seen, given, strict=True)):
        for row, image in enumerate(images):
            (index,) = (i for i, entry in enumerate(made) if torch.equal(entry[0], image))
            replayed += index < 16 * step
            assert torch.equal(labels[row], made[index][1])
            torch.testing.assert_close(teacher_logits[row], made[index][2])
    assert 10 < replayed < 32
