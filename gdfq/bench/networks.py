"""The networks whose training step is measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from gdfq import models
from gdfq.errors import InputError


@dataclass(frozen=True)
class Workload:
    """A teacher, ``resnet<depth>`` or ``torchvision:<name>``, and the images it takes."""

    model: str
    image_size: int
    batch_size: int
    num_classes: int
    conditional_bn: bool


# The paper's: small images with batch 200, ImageNet's with 16 and the conditional generator.
WORKLOADS = {
    "resnet20": Workload("resnet20", 32, 200, 10, False),
    "resnet18": Workload("torchvision:resnet18", 224, 16, 1000, True),
    "mobilenet_v2": Workload("torchvision:mobilenet_v2", 224, 16, 1000, True),
    "vgg16_bn": Workload("torchvision:vgg16_bn", 32, 200, 10, False),
    "resnet50": Workload("torchvision:resnet50", 224, 16, 1000, True),
}


def build(workload: Workload) -> nn.Module:
    """The network with random weights, its batch norms' statistics those of random images."""
    torch.manual_seed(0)
    if workload.model.startswith("torchvision:"):
        model = _torchvision(workload.model.removeprefix("torchvision:"), workload)
    else:
        depth = int(workload.model.removeprefix("resnet"))
        model = models.cifar_resnet(depth, workload.num_classes)
    images = torch.randn(max(2, min(workload.batch_size, 16)), 3, *(workload.image_size,) * 2)
    try:
        with torch.no_grad():
            model.train()(images)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"image_size: {workload.model} does not take {workload.image_size}x"
            f"{workload.image_size} images: {str(error).splitlines()[0]}"
        ) from error
    return model.eval()


def _torchvision(name: str, workload: Workload) -> nn.Module:
    try:
        import torchvision
    except ImportError as error:
        raise InputError(f"model: torchvision:{name} needs torchvision installed") from error
    if name not in torchvision.models.list_models(torchvision.models):
        raise InputError(f"model: torchvision has no network {name!r}")
    model = torchvision.models.get_model(name, num_classes=workload.num_classes)
    if name == "vgg16_bn" and workload.image_size == 32:
        # As usual for small images: one linear layer behind the last pooling.
        model.avgpool = nn.Identity()
        model.classifier = nn.Linear(512, workload.num_classes)
    return model
