"""The networks that people bring, as data: random weights, batch-norm statistics that fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import gdfq


@dataclass(frozen=True)
class Network:
    """One network of another library.

    ``size``: of the images it is tried with, the smallest that its layers take or a little more.
    ``special``: what a conversion has to cope with. ``error``: why the method cannot be used.
    """

    source: str
    name: str
    size: int = 64
    special: str = ""
    error: str = ""

    def make(self, num_classes: int = 10) -> nn.Module:
        """A network in evaluation mode with statistics of generated images."""
        torch.manual_seed(0)
        model = _MAKERS[self.source](self.name, num_classes).eval()
        _observe(model, self)
        return model


def _torchvision(name: str, num_classes: int) -> nn.Module:
    models = pytest.importorskip("torchvision").models
    # Their own initialization takes seconds, and warns.
    options = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
    return models.get_model(name, weights=None, num_classes=num_classes, **options)


def _timm(name: str, num_classes: int) -> nn.Module:
    return pytest.importorskip("timm").create_model(name, num_classes=num_classes)


def _pytorchcv(name: str, num_classes: int) -> nn.Module:
    provider = pytest.importorskip("pytorchcv.model_provider")
    return provider.get_model(name, num_classes=num_classes)


_MAKERS: dict[str, Callable[[str, int], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "pytorchcv": _pytorchcv,
}


def generator_of(network: Network) -> gdfq.models.Generator:
    """A small generator of its images, the same each time."""
    torch.manual_seed(1)
    return gdfq.models.Generator(10, network.size, latent_dim=16, width=16)


@torch.no_grad()
def _observe(model: nn.Module, network: Network) -> None:
    """Set the statistics of batch norms to those of images, as training would.

    Of the images that the method starts from: random layers, unlike trained ones, multiply what
    is unusual about an image from layer to layer, and overflow on images of another kind.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        if norm.weight is not None and not norm.weight.any():  # a residual's start, not its end
            norm.weight.fill_(0.3)
        norm.train()
    generator = generator_of(network)
    for _ in range(4 if norms else 0):
        model(generator(torch.randn(8, 16), torch.randint(10, (8,))))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


_NO_BATCH_NORM = "teacher: has no batch-norm layer"

NETWORKS = [
    Network("torchvision", "resnet18", special="one ReLU module at several places"),
    Network("torchvision", "resnet50"),
    Network("torchvision", "wide_resnet50_2"),
    Network("torchvision", "resnext50_32x4d", special="grouped convolutions"),
    Network("torchvision", "vgg16_bn", special="biases before batch norms"),
    Network("torchvision", "mobilenet_v2", special="ReLU6; linear bottlenecks"),
    Network(
        "torchvision",
        "mobilenet_v3_large",
        special="hard-swish (signed range), squeeze and excitation with hard-sigmoid",
    ),
    Network("torchvision", "shufflenet_v2_x1_0", special="channel shuffle and split"),
    Network(
        "torchvision",
        "efficientnet_b0",
        special="SiLU (signed range), squeeze and excitation, stochastic depth",
    ),
    Network(
        "torchvision",
        "inception_v3",
        size=96,
        special="functional ReLU, concatenation; auxiliary head unused",
    ),
    Network(
        "torchvision",
        "googlenet",
        special="functional ReLU, concatenation; auxiliary heads unused",
    ),
    Network("torchvision", "densenet121", special="batch norm of concatenations"),
    Network("torchvision", "regnet_y_400mf", special="squeeze and excitation with sigmoid"),
    Network("torchvision", "mnasnet1_0", special="linear bottlenecks"),
    Network(
        "torchvision",
        "squeezenet1_1",
        special="squeeze and expand by concatenation",
        error=_NO_BATCH_NORM,
    ),
    Network("timm", "efficientnet_lite0", special="BatchNormAct2d, ReLU6"),
    Network(
        "timm",
        "mobilenetv3_large_100",
        special="BatchNormAct2d, hard-swish, squeeze and excitation",
    ),
    Network("timm", "tf_efficientnet_lite0", special="Conv2dSame: padding by the image's size"),
    Network("timm", "resnet18d", special="average pooling in the shortcut"),
    Network("timm", "res2net50_26w_4s", special="splits, sums and concatenation in a block"),
    Network("timm", "ghostnet_100", special="concatenation of a layer with what it was made from"),
    Network("timm", "repvgg_a0", special="three batch norms in a sum, one of the block's input"),
    Network("timm", "convnext_tiny", special="layer norm, GELU", error=_NO_BATCH_NORM),
    Network("pytorchcv", "resnet20_cifar10", size=32),
    Network("pytorchcv", "resnet56_cifar10", size=32),
]


def trainer_of(
    teacher: nn.Module, student: nn.Module, network: Network, **options
) -> gdfq.GDFQTrainer:
    """A trainer of five steps in which generator and student learn."""
    settings = {
        "epochs": 5,
        "steps_per_epoch": 1,
        "warmup_epochs": 0,
        "calibration_batches": 1,
        "student_lr": 1e-6,
        "milestones": (),
        "memory_format": "contiguous",
    }
    generator = generator_of(network)
    return gdfq.GDFQTrainer(teacher, student, generator, 10, 2, **{**settings, **options})
