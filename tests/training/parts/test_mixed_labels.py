"""Labels that are mixes of classes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gdfq
from gdfq.training import Parts
from gdfq.training.parts.mixed_labels import mixed_labels
from tests.helpers.tiny import tiny_teacher, tiny_trainer


def test_mixed_labels():
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(7, (4000,), generator=random)
    soft = mixed_labels(labels, 7, 0.4, 3, random)
    torch.testing.assert_close(soft.sum(1), torch.ones(4000))
    assert (soft >= 0).all()
    of_one = (soft > 0).sum(1) == 1
    assert torch.equal(soft[of_one], F.one_hot(labels[of_one], 7).float())
    assert ((soft > 0).sum(1)[~of_one] == 3).all()
    assert float((~of_one).float().mean()) == pytest.approx(0.4, abs=0.03)
    # No class is preferred, and shares are those of a softmax of normal numbers.
    mixes = soft[~of_one]
    assert (mixes > 0).float().mean(0).tolist() == pytest.approx([3 / 7] * 7, abs=0.06)
    reference = torch.randn(100_000, 3, generator=random).softmax(1)
    assert float(mixes[mixes > 0].std()) == pytest.approx(float(reference.std()), rel=0.1)


@pytest.mark.parametrize("conditional", [False, True])
def test_the_generator_mixes_embeddings(conditional):
    generator = gdfq.models.Generator(
        4, 8, channels=2, latent_dim=10, width=8, conditional_bn=conditional
    )
    for parameter in generator.parameters():
        nn.init.normal_(parameter, std=0.5)
    z, labels = torch.randn(6, 10), torch.randint(4, (6,))
    one_hot = F.one_hot(labels, 4).float()
    torch.testing.assert_close(
        copy.deepcopy(generator)(z, one_hot), generator(z, labels), rtol=1e-4, atol=1e-5
    )
    # A class whose embeddings are the mean of two others' is their mix by halves.
    with torch.no_grad():
        for module in generator.modules():
            if isinstance(module, nn.Embedding):
                module.weight[3] = (module.weight[0] + module.weight[1]) / 2
    halves = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).expand(6, 4)
    torch.testing.assert_close(
        copy.deepcopy(generator)(z, halves),
        generator(z, torch.full((6,), 3)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_calibration_sees_mixed_labels_too():
    trainer = tiny_trainer(parts=Parts(mix_probability=1.0))
    _, labels = trainer.images.sample()
    assert labels.shape == (16, 4)
    trainer.calibrate(2)


def test_a_generator_that_takes_no_mixed_labels_is_refused():
    class Own(nn.Module):
        latent_dim = 10

        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(4, 10)
            self.linear = nn.Linear(10, 128)

        def forward(self, z, labels):
            return self.linear(z * self.embedding(labels)).view(-1, 2, 8, 8)

    teacher = tiny_teacher()
    student = gdfq.quantize_model(teacher, 4, 4)
    with pytest.raises(gdfq.InputError, match=r"mix_probability: .* labels \(N, 4\), shares"):
        gdfq.GDFQTrainer(teacher, student, Own(), 4, 8, parts=Parts(mix_probability=0.5))
