"""The networks whose training step is measured."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gdfq.sources import load_teacher


@dataclass(frozen=True)
class Workload:
    """A teacher, named as in a recipe, and the images it takes."""

    model: str
    image_size: int
    batch_size: int
    num_classes: int
    conditional_bn: bool


# The paper's: small images with batch 200, ImageNet's with 16 and the conditional generator.
WORKLOADS = {
    "resnet20": Workload("gdfq:resnet20", 32, 200, 10, False),
    "resnet18": Workload("torchvision:resnet18", 224, 16, 1000, True),
    "mobilenet_v2": Workload("torchvision:mobilenet_v2", 224, 16, 1000, True),
    "vgg16_bn": Workload("torchvision:vgg16_bn", 32, 200, 10, False),
    "resnet50": Workload("torchvision:resnet50", 224, 16, 1000, True),
}


def build(workload: Workload) -> nn.Module:
    """The network with random weights, its batch norms' statistics those of random images."""
    size = workload.image_size
    classes = workload.num_classes
    model = load_teacher(workload.model, "random", image_size=size, num_classes=classes).network
    if workload.model == "torchvision:vgg16_bn" and size == 32:
        # As usual for small images: one linear layer behind the last pooling.
        model.avgpool = nn.Identity()
        model.classifier = nn.Linear(512, classes)
    return model
