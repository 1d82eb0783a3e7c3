"""Networks that can be trained in one memory format alone."""

import pytest
import torch
from torch import nn

import gdfq
from tests.helpers.tiny import tiny_teacher, tiny_trainer


class Flat(nn.Module):
    """A head as in VGG, by ``view``, which channels-last features do not allow."""

    def __init__(self):
        super().__init__()
        self.features, self.fc = tiny_teacher()[:6], nn.Linear(12 * 4 * 4, 4)

    def forward(self, x):
        x = self.features(x)
        return self.fc(x.view(x.size(0), -1))


class Doubling(nn.Module):
    """Doubles its images where ``reshape`` does not copy them."""

    def __init__(self):
        super().__init__()
        self.rest = tiny_teacher()

    def forward(self, x):
        x = x + 1
        x.reshape(x.shape[0], -1).mul_(2)
        return self.rest(x)


class In3d(nn.Module):
    def __init__(self):
        super().__init__()
        self.rest, self.deep = tiny_teacher(), nn.Conv3d(1, 1, 1)

    def forward(self, x):
        return self.rest(self.deep(x.unsqueeze(1)).squeeze(1))


def made(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().eval()


class Viewing(gdfq.models.Generator):
    def forward(self, z, labels):
        images = super().forward(z, labels)
        return images.view(len(z), -1).view(images.shape)


NETWORKS = {
    Flat: "view size is not compatible",
    Doubling: "what it computes there is something else",
    In3d: "required rank 4 tensor",
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_format_is_the_one_that_a_network_can_be_trained_in(kind):
    model = made(kind)
    trainer = tiny_trainer(model, 8, memory_format="auto", student_lr=1e-9)
    assert trainer.memory_format == "contiguous"
    assert trainer.describe().startswith("memory format: contiguous\n")
    student = trainer.train()
    x = torch.randn(64, 2, 8, 8)
    with torch.no_grad():
        expected, found = model(x.clone()), student(x)
    assert (found - expected).norm() < 0.06 * expected.norm()
    before = [p.stride() for p in model.parameters()]
    with pytest.raises(gdfq.InputError, match=rf"^memory_format: the teacher .*: {NETWORKS[kind]}"):
        tiny_trainer(model, memory_format="channels_last")
    assert [p.stride() for p in model.parameters()] == before


def test_a_generator_that_takes_one_format_alone_decides_it():
    teacher = tiny_teacher()
    generator = Viewing(4, 8, channels=2, latent_dim=10, width=8)
    args = (teacher, gdfq.quantize_model(teacher), generator, 4, 16)
    assert gdfq.GDFQTrainer(*args).memory_format == "contiguous"
    with pytest.raises(
        gdfq.InputError, match=r"^memory_format: the generator .*'channels_last': v"
    ):
        gdfq.GDFQTrainer(*args, memory_format="channels_last")


def test_networks_that_take_both_formats_are_timed_in_both():
    for dynamic_ranges in ("none", "act"):
        trainer = tiny_trainer(memory_format="auto", dynamic_ranges=dynamic_ranges)
        assert trainer.memory_format_seconds.keys() == {"channels_last", "contiguous"}
