import pytest
import torch

import gdfq
from gdfq.models import Generator


@pytest.mark.parametrize("conditional_bn", [False, True])
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 3), (32, 3)])
def test_shapes(conditional_bn, size, channels):
    generator = Generator(5, size, channels, latent_dim=12, conditional_bn=conditional_bn, width=16)
    labels = torch.tensor([0, 4, 2])
    images = generator(torch.randn(3, 12), labels)
    assert images.shape == (3, channels, size, size)
    images.sum().backward()
    assert all(p.grad is not None for p in generator.parameters())


def test_the_paper_s_small_generator():
    generator = Generator(10, 32)
    shapes = {name: tuple(p.shape) for name, p in generator.named_parameters()}
    assert shapes["label_embedding.weight"] == (10, 100)
    assert shapes["linear.weight"] == (128 * 8 * 8, 100)
    assert shapes["conv1.weight"] == (128, 128, 3, 3)
    assert shapes["conv2.weight"] == (64, 128, 3, 3)
    assert shapes["conv3.weight"] == (3, 64, 3, 3)
    assert [n.eps for n in (generator.bn0, generator.bn1, generator.bn2)] == [1e-5, 0.8, 0.8]
    assert generator.bn3.weight is None


@pytest.mark.parametrize("conditional_bn", [False, True])
def test_the_label_matters(conditional_bn):
    torch.manual_seed(0)
    generator = Generator(4, 8, conditional_bn=conditional_bn, width=8)
    if conditional_bn:  # every class starts with the same scale and shift
        torch.nn.init.normal_(generator.bn1.class_bias.weight)
    z = torch.randn(6, 100)
    first, second = (generator(z, torch.full((6,), label)) for label in (0, 1))
    assert not torch.allclose(first, second)


def test_images_are_normalized():
    generator = Generator(4, 8, width=8)
    images = generator(torch.randn(64, 100), torch.randint(4, (64,)))
    var, mean = torch.var_mean(images, (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(var, torch.ones(3), atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 30}, "image_size: must be a multiple of 4, got 30"),
        ({"image_size": 0}, "image_size: .* got 0"),
        ({"num_classes": 0}, "num_classes: .* got 0"),
        ({"channels": 0}, "channels: .* got 0"),
        ({"latent_dim": 0}, "latent_dim: .* got 0"),
        ({"width": 1}, "width"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(gdfq.InputError, match=message):
        Generator(**{"num_classes": 4, "image_size": 8, **arguments})
