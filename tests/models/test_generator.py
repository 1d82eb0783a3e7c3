import pytest
import torch
import torch.nn.functional as F

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
        ({"image_size": 3}, "image_size: must be an int >= 4, got 3"),
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


def composed(generator, z, labels):
    def normalize(norm, x):
        conditional = generator.conditional_bn and norm is not generator.bn3
        weight = None if conditional else norm.weight
        bias = None if conditional else norm.bias
        y = F.batch_norm(
            x, norm.running_mean, norm.running_var, weight, bias, norm.training, eps=norm.eps
        )
        if conditional:
            scale, shift = norm.class_weight(labels), norm.class_bias(labels)
            y = y * scale[:, :, None, None] + shift[:, :, None, None]
        return y

    if not generator.conditional_bn:
        z = z * generator.label_embedding(labels)
    size = generator.image_size // 4
    x = normalize(generator.bn0, generator.linear(z).view(len(z), -1, size, size))
    x = generator.conv1(F.interpolate(x, scale_factor=2, mode="nearest"))
    x = F.leaky_relu(normalize(generator.bn1, x), 0.2)
    x = generator.conv2(F.interpolate(x, scale_factor=2, mode="nearest"))
    x = F.leaky_relu(normalize(generator.bn2, x), 0.2)
    return normalize(generator.bn3, torch.tanh(generator.conv3(x)))


@pytest.mark.parametrize("conditional_bn", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_equals_the_composition(conditional_bn, training, channels_last):
    torch.manual_seed(0)
    generator = Generator(5, 16, conditional_bn=conditional_bn, width=24).double()
    for name, parameter in generator.named_parameters():
        if "bn" in name or "class" in name:
            torch.nn.init.normal_(parameter)
    if channels_last:
        generator = generator.to(memory_format=torch.channels_last)
    generator.train(training)
    z, labels = torch.randn(6, 100).double(), torch.randint(5, (6,))
    parameters = [p for p in generator.parameters() if p.requires_grad]

    before = {name: value.clone() for name, value in generator.state_dict().items()}
    results = []
    for forward in (generator, lambda *a: composed(generator, *a)):
        generator.load_state_dict(before)
        images = forward(z, labels)
        gradients = torch.autograd.grad(images.square().sum(), parameters, allow_unused=True)
        buffers = {n: b.clone() for n, b in generator.named_buffers() if "num" not in n}
        results.append((images, gradients, buffers))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


def test_counts_its_batches_in_training_only():
    generator = Generator(5, 16, width=8)
    z, labels = torch.randn(6, 100), torch.randint(5, (6,))
    generator(z, labels)
    generator.eval()(z, labels)
    assert [
        m.num_batches_tracked.item() for m in generator.modules() if hasattr(m, "momentum")
    ] == [1] * 4


@pytest.mark.parametrize("conditional_bn", [False, True])
def test_state_dict_names(conditional_bn):
    names = set(Generator(5, 16, conditional_bn=conditional_bn, width=8).state_dict())
    running = {"running_mean", "running_var", "num_batches_tracked"}
    affine = {"class_weight.weight", "class_bias.weight"} if conditional_bn else {"weight", "bias"}
    expected = {f"{layer}.{name}" for layer in ("linear", "conv1", "conv2", "conv3") for name in
                ("weight", "bias")}  # fmt: skip
    expected |= {f"bn{i}.{name}" for i in range(3) for name in running | affine}
    expected |= {f"bn3.{name}" for name in running}
    if not conditional_bn:
        expected.add("label_embedding.weight")
    assert names == expected


def test_its_arguments_are_taken_by_place_too():
    generator = Generator(10, 8, 1, 5, True, 6)
    assert (generator.channels, generator.latent_dim) == (1, 5)
    assert (generator.conditional_bn, generator.width) == (True, 6)
